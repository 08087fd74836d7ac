from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from statsmodels.stats.weightstats import ttost_paired

from evalq import stats
from evalq.errors import StatisticsError


@pytest.mark.parametrize(
    ("ci", "delta", "expected", "loss"),
    [
        ((-0.005, 0.010), 0.002, "pass", False),
        ((-0.008, -0.001), -0.004, "pass", True),
        ((-0.010, 0.010), 0.000, "inconclusive", False),  # L = -M is not above -M
        ((-0.050, -0.011), -0.030, "fail", True),
        ((-0.050, -0.001), -0.030, "fail", True),  # a loss is sure, and its estimate is beyond M
        ((-0.030, -0.001), -0.009, "inconclusive", True),
        ((-0.050, 0.010), -0.020, "inconclusive", False),  # never on a point estimate
    ],
)
def test_table(ci: tuple[float, float], delta: float, expected: str, loss: bool) -> None:
    found = stats.verdict(ci, delta, 0.01)
    assert (found.verdict, found.detected_loss) == (expected, loss)
    assert str(found) == expected


@given(st.integers(0, 80), st.integers(0, 80), st.integers(160, 2000), st.floats(0.005, 0.1))
@settings(max_examples=150, deadline=None)
def test_a_larger_margin_never_turns_a_pass_around(b: int, c: int, n: int, margin: float) -> None:
    result = stats.paired_binary(b, c, n)
    order = {"fail": 0, "inconclusive": 1, "pass": 2}
    small = stats.verdict(result.ci, result.delta, margin)
    large = stats.verdict(result.ci, result.delta, 1.5 * margin)
    assert order[large.verdict] >= order[small.verdict]
    assert small.detected_loss == large.detected_loss


@pytest.mark.parametrize("margin", [0.0, -0.01, math.nan, math.inf])
def test_margin_must_be_positive(margin: float) -> None:
    with pytest.raises(StatisticsError, match="margin"):
        stats.verdict((-0.1, 0.1), 0.0, margin)


def test_estimate_outside_its_interval() -> None:
    with pytest.raises(StatisticsError, match="interval"):
        stats.verdict((0.1, 0.2), 0.0, 0.01)
    with pytest.raises(StatisticsError):
        stats.verdict((math.nan, 0.2), 0.0, 0.01)


def test_thresholds() -> None:
    assert stats.threshold_verdict((0.01, 0.05), maximum=0.05) == "pass"
    assert stats.threshold_verdict((0.04, 0.06), maximum=0.05) == "inconclusive"
    assert stats.threshold_verdict((0.051, 0.06), maximum=0.05) == "fail"
    assert stats.threshold_verdict((0.90, 0.95), minimum=0.90) == "pass"
    assert stats.threshold_verdict((0.80, 0.89), minimum=0.90) == "fail"
    for limits in ({}, {"maximum": 1.0, "minimum": 0.5}):
        with pytest.raises(StatisticsError):
            stats.threshold_verdict((0.0, 1.0), **limits)


def test_equivalence_against_statsmodels() -> None:
    rng = np.random.default_rng(2)
    parent = rng.normal(0.8, 0.1, 120)
    variant = parent + rng.normal(-0.002, 0.03, 120)
    p, lower, upper = ttost_paired(variant, parent, -0.01, 0.01)
    ours = stats.equivalence(variant - parent, 0.01)
    assert ours.p == pytest.approx(p)
    assert ours.p_lower == pytest.approx(lower[1])
    assert ours.p_upper == pytest.approx(upper[1])
    assert ours.equivalent == (ours.ci[0] > -0.01 and ours.ci[1] < 0.01)


def test_relative_margin_and_its_guard() -> None:
    assert stats.relative_margin(0.02, 0.8, 0.005) == pytest.approx(0.016)
    assert stats.relative_margin(0.02, 0.0, 0.005) == 0.005
    for bad in ((0.0, 0.5, 0.01), (0.1, 1.5, 0.01), (0.1, 0.5, -0.01), (0.1, math.nan, 0.01)):
        with pytest.raises(StatisticsError):
            stats.relative_margin(*bad)
