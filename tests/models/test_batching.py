from __future__ import annotations

import random
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from evalq.models.batching import Budget, Shape, common_prefix, of_like_length, pack

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


@given(st.lists(st.integers(1, 60), max_size=40), st.integers(1, 400))
def test_groups_of_like_length(lengths, enough):
    groups = of_like_length(lengths, enough)
    assert sorted(i for g in groups for i in g) == list(range(len(lengths)))
    for group in groups:
        longest = max(lengths[i] for i in group)
        for count, i in enumerate(group):
            # Padding by more than a fifth only while the group is small.
            assert lengths[i] >= 0.8 * longest or count * longest < enough


def test_short_prompts_are_not_padded_to_long_ones_in_a_full_pass():
    heads = [tuple(range(n)) for n in (90, 90, 88, 30, 29, 28)]
    shapes = [Shape((i, *h), 1, 0, 1) for i, h in enumerate(heads)]
    whole = Budget(4096, 4096, 4096, 64)
    assert pack(shapes, whole) == [[0, 1, 2, 3, 4, 5]]
    assert pack(shapes, replace(whole, enough=200)) == [[0, 1, 2], [3, 4, 5]]
