from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evalq import stats
from evalq.errors import StatisticsError


def _by_hand(costs: np.ndarray, quality: np.ndarray) -> list[bool]:
    out = []
    for i in range(len(costs)):
        beaten = any(
            costs[j] <= costs[i]
            and quality[j] >= quality[i]
            and (costs[j] < costs[i] or quality[j] > quality[i])
            for j in range(len(costs))
        )
        out.append(not beaten)
    return out


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=12))
@settings(max_examples=150, deadline=None)
def test_pareto_by_hand(points: list[tuple[int, int]]) -> None:
    costs, quality = np.array(points, dtype=float).T
    found = stats.pareto(costs, quality)
    assert found.tolist() == _by_hand(costs, quality)
    assert found.any()
    assert stats.pareto(costs[:, None], quality).tolist() == found.tolist()


def test_several_costs() -> None:
    costs = [[10, -5], [10, -7], [12, -9]]
    assert stats.pareto(costs, [0.9, 0.9, 0.9]).tolist() == [False, True, True]


def test_probabilities() -> None:
    rng = np.random.default_rng(0)
    parent = (rng.random(2000) < 0.8).astype(float)
    broken = parent * (rng.random(2000) < 0.5)
    twin = parent.copy()
    scores = np.stack([parent, twin, broken, broken], axis=1)
    found = stats.frontier_probability(scores, [16, 8, 4, 9], np.random.default_rng(1))
    assert found.tolist() == [0.0, 1.0, 1.0, 0.0]


def test_a_coin_flip_is_a_coin_flip() -> None:
    """Differences that cancel: the dearer variant is on the frontier half the time."""
    d = np.tile([1.0, -1.0], 500)
    scores = np.stack([np.zeros(1000), d], axis=1)
    found = stats.frontier_probability(scores, [1.0, 2.0], np.random.default_rng(2), 4000)
    assert found[0] == 1.0
    assert found[1] == pytest.approx(0.5, abs=0.04)


def test_clusters_go_together() -> None:
    """100 copies of each of 4 documents are worth 4 items, not 400."""
    doc = np.array([1.0, 1.0, -1.0, 0.5])
    scores = np.stack([np.zeros(400), np.repeat(doc, 100)], axis=1)
    rng = np.random.default_rng(3)
    together = stats.frontier_probability(
        scores, [1, 2], rng, clusters=np.repeat(np.arange(4), 100)
    )
    apart = stats.frontier_probability(scores, [1, 2], rng)
    assert apart[1] > 0.99
    assert 0.6 < together[1] < 0.95


def test_seeded_and_fast() -> None:
    scores = (np.random.default_rng(0).random((10_000, 10)) < 0.8).astype(float)
    started = time.perf_counter()
    first = stats.frontier_probability(scores, np.arange(10), np.random.default_rng(5))
    assert time.perf_counter() - started < 10  # under 1 s alone; the machine may be busy
    again = stats.frontier_probability(scores, np.arange(10), np.random.default_rng(5))
    assert first.tolist() == again.tolist()


def test_bad_input() -> None:
    rng = np.random.default_rng(0)
    for scores, costs, resamples in (
        (np.zeros((0, 2)), [1, 2], 10),
        (np.zeros((3, 2)), [1, 2, 3], 10),
        (np.full((3, 2), np.nan), [1, 2], 10),
        (np.zeros((3, 2)), [1, np.inf], 10),
        (np.zeros((3, 2)), [1, 2], 0),
    ):
        with pytest.raises(StatisticsError):
            stats.frontier_probability(scores, costs, rng, resamples)
    with pytest.raises(StatisticsError):
        stats.pareto([1, 2], [0.5])
