from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from evalq.models.batching import Budget, Shape, common_prefix, pack

tokens = st.lists(st.integers(0, 2), max_size=30)


@given(tokens, tokens)
def test_common_prefix(a, b):
    expected = 0
    for x, y in zip(a, b, strict=False):
        if x != y:
            break
        expected += 1
    assert common_prefix(a, b) == expected


shapes = st.builds(
    Shape,
    head=st.lists(st.integers(0, 1), min_size=1, max_size=60).map(tuple),
    rows=st.integers(1, 5),
    tail=st.integers(0, 6),
    scored=st.integers(1, 7),
)


@settings(deadline=None)
@given(st.lists(shapes, max_size=40), st.integers(1, 300), st.integers(1, 12))
def test_every_shape_once_and_within_budget(items, limit, rows):
    budget = Budget(limit, 4 * limit, limit, rows)
    batches = pack(items, budget)
    assert sorted(i for b in batches for i in b) == list(range(len(items)))
    for batch in batches:
        if len(batch) > 1:
            assert sum(items[i].rows for i in batch) <= rows
            held = max(len(items[i].head) for i in batch) + max(items[i].tail for i in batch)
            assert sum(items[i].rows for i in batch) * held <= 4 * limit


def test_prompts_that_begin_alike_come_together():
    rng = random.Random(0)
    shots = [tuple(rng.randrange(9) for _ in range(80)) for _ in range(3)]
    heads = [
        (*shots[i % 3], *(rng.randrange(9) for _ in range(rng.randrange(1, 20)))) for i in range(30)
    ]
    batches = pack([Shape(h, 1, 4, 1) for h in heads], Budget(10_000, 10_000, 10_000, 64))
    assert len(batches) == 3
    for batch in batches:
        assert len({heads[i][:80] for i in batch}) == 1


def test_unlike_prompts_are_sorted_by_length():
    rng = random.Random(0)
    heads = [tuple(rng.randrange(99) for _ in range(rng.randrange(1, 50))) for _ in range(40)]
    batches = pack([Shape(h, 1, 0, 1) for h in heads], Budget(200, 800, 200, 64))
    lengths = [len(heads[i]) for b in batches for i in b]
    assert lengths == sorted(lengths, reverse=True)
