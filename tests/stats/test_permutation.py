from __future__ import annotations

import numpy as np
import pytest
from scipy import stats as sps

from evalq import stats
from evalq.errors import StatisticsError


def test_close_to_the_exact_binomial() -> None:
    d = np.array([-1.0] * 12 + [1.0] * 4 + [0.0] * 100)
    p = stats.sign_flip_test(d, np.random.default_rng(0), permutations=20_000)
    assert p == pytest.approx(sps.binomtest(12, 16, 0.5, "greater").pvalue, abs=0.006)


def test_never_zero_and_seeded() -> None:
    d = -np.ones(200)
    assert stats.sign_flip_test(d, np.random.default_rng(0), permutations=99) == 0.01
    noisy = np.random.default_rng(1).normal(size=50)
    ps = {stats.sign_flip_test(noisy, np.random.default_rng(2), permutations=500) for _ in "ab"}
    assert len(ps) == 1
    assert stats.sign_flip_test(np.zeros(5), np.random.default_rng(0)) == 1.0


def test_order_and_cluster_names_do_not_matter() -> None:
    rng = np.random.default_rng(3)
    d, g = rng.normal(size=60), rng.integers(0, 15, 60)
    order = rng.permutation(60)
    there = stats.sign_flip_test(d, np.random.default_rng(4), g, 999)
    back = stats.sign_flip_test(d[order], np.random.default_rng(4), (20 - g)[order], 999)
    assert there == back


def test_bad_input() -> None:
    with pytest.raises(StatisticsError):
        stats.sign_flip_test([], np.random.default_rng(0))
    with pytest.raises(StatisticsError):
        stats.sign_flip_test([1.0], np.random.default_rng(0), permutations=0)
