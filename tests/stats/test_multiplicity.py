from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from statsmodels.stats.multitest import multipletests

from evalq import stats
from evalq.errors import StatisticsError

P = st.lists(st.floats(0, 1), min_size=1, max_size=12)


def test_holm_by_hand() -> None:
    assert stats.holm([0.01, 0.04, 0.03, 0.005]).tolist() == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert stats.holm([]).size == 0


def test_benjamini_hochberg_1995() -> None:
    """Their 15 p-values of an infarction trial: four rejected at q = .05, three by Bonferroni."""
    p = [0.0001, 0.0004, 0.0019, 0.0095, 0.0201, 0.0278, 0.0298, 0.0344, 0.0459, 0.3240, 0.4262,
         0.5719, 0.6528, 0.7590, 1.0]  # fmt: skip
    assert int((stats.benjamini_hochberg(p) <= 0.05).sum()) == 4
    assert int((stats.holm(p) <= 0.05).sum()) == 3


def test_against_statsmodels() -> None:
    rng = np.random.default_rng(0)
    for size in (1, 2, 7, 20):
        p = rng.random(size) ** 3
        p[: size // 3] = p[0]
        for ours, method in ((stats.holm, "holm"), (stats.benjamini_hochberg, "fdr_bh")):
            assert np.allclose(ours(p), multipletests(p, method=method)[1], atol=1e-14)
    assert stats.benjamini_hochberg([]).size == 0


@given(P)
@settings(max_examples=80, deadline=None)
def test_equal_weights_are_plain_holm(p: list[float]) -> None:
    ours = stats.weighted_holm(p, np.full(len(p), 0.3))
    assert np.allclose(ours, stats.holm(p), atol=1e-12)


@given(P, st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None)
def test_order_does_not_matter(p: list[float], random: object) -> None:
    order = list(range(len(p)))
    random.shuffle(order)  # type: ignore[attr-defined]
    weights = np.linspace(1, 2, len(p))
    there = stats.weighted_holm(p, weights)
    back = stats.weighted_holm(np.array(p)[order], weights[order])
    assert np.allclose(there[order], back)
    assert (there >= np.array(p) - 1e-12).all()


def test_weighted_holm_keeps_the_family_wise_error() -> None:
    rng = np.random.default_rng(4)
    weights = np.array([0.5] + [0.5 / 8] * 8)
    wrong = sum((stats.weighted_holm(rng.random(9), weights) <= 0.05).any() for _ in range(4000))
    assert wrong / 4000 <= 0.05 + 3 * (0.05 * 0.95 / 4000) ** 0.5


def test_shrinkage_recovers_the_spread() -> None:
    """BCG trials (Colditz et al. 1994) as in metafor's manual: tau^2 .3088 (DL), mean -.7141."""
    effects = [-0.8893, -1.5854, -1.3481, -1.4416, -0.2175, -0.7861, -1.6209, 0.0120, -0.4694,
               -1.3713, -0.3394, 0.4459, -0.0173]  # fmt: skip
    variances = [0.3256, 0.1946, 0.4154, 0.0200, 0.0512, 0.0069, 0.2230, 0.0040, 0.0564, 0.0730,
                 0.0124, 0.5325, 0.0714]  # fmt: skip
    found = stats.shrink(effects, variances, 0.95)
    assert found.tau**2 == pytest.approx(0.3088, abs=5e-4)
    assert found.mean == pytest.approx(-0.7141, abs=5e-4)
    assert found.mean_ci == pytest.approx((-1.0644, -0.3638), abs=1e-3)
    own, pulled = np.array(effects), np.array(found.effects)
    assert (np.abs(pulled - found.mean) <= np.abs(own - found.mean)).all()


def test_bad_input() -> None:
    for bad in ([0.5, 1.2], [np.nan], [-0.1], [[0.5]]):
        with pytest.raises(StatisticsError):
            stats.holm(bad)
    with pytest.raises(StatisticsError):
        stats.weighted_holm([0.1, 0.2], [1.0])
    with pytest.raises(StatisticsError):
        stats.weighted_holm([0.1], [0.0])
    for effects, variances in (([0.1], [0.1]), ([0.1, 0.2], [0.1, 0.0]), ([0.1, 0.2], [0.1])):
        with pytest.raises(StatisticsError):
            stats.shrink(effects, variances)
