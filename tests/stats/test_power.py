from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evalq import stats
from evalq.errors import StatisticsError


def test_published_plans() -> None:
    assert stats.items_needed(0.09, 0.01) == 5565
    assert stats.items_needed(0.09, 0.02) == 1392
    assert stats.items_needed(0.13, 0.01) == 8038
    assert stats.items_needed(0.13, 0.02) == 2010


@given(st.floats(0.01, 0.5), st.floats(0.005, 0.05))
@settings(max_examples=100, deadline=None)
def test_detectable_margin_inverts_items_needed(rate: float, margin: float) -> None:
    n = stats.items_needed(rate, margin)
    assert stats.detectable_margin(rate, n) <= margin * (1 + 1e-9)
    if n > 1:
        assert stats.detectable_margin(rate, n - 1) > margin * (1 - 1e-9)
    assert stats.planned_power(rate, margin, n) >= 0.80 - 1e-9


@given(st.floats(0.05, 0.5), st.floats(0.01, 0.05), st.floats(0, 0.009))
@settings(max_examples=60, deadline=None)
def test_more_flips_or_loss_need_more_items(rate: float, margin: float, loss: float) -> None:
    assert stats.items_needed(rate, margin, loss) >= stats.items_needed(rate, margin)
    assert stats.items_needed(min(1.0, rate * 1.5), margin) >= stats.items_needed(rate, margin)
    assert stats.items_needed(rate, margin, design_effect=2) >= stats.items_needed(rate, margin)


def test_power_by_simulation() -> None:
    n = stats.items_needed(0.10, 0.03)
    rng = np.random.default_rng(0)
    draws = rng.multinomial(n, [0.05, 0.05, 0.90], 4000)
    low, _ = stats.tango_interval(draws[:, 0], draws[:, 1], n, 0.90)
    assert float((low > -0.03).mean()) == pytest.approx(0.80, abs=0.03)


def test_items_to_settle() -> None:
    seen = stats.paired_binary(60, 50, 1000)
    assert stats.verdict(seen.ci, seen.delta, 0.02).verdict == "inconclusive"
    plan = stats.items_to_settle(seen.delta, seen.flip_rate, 1000, 0.02)
    assert plan.towards == "pass"
    assert plan.items == stats.items_needed(0.11, 0.02, 0.01)
    assert plan.more == plan.items - 1000
    bad = stats.items_to_settle(-0.03, 0.20, 300, 0.02)
    assert bad.towards == "fail"
    k = bad.items / 300
    later = stats.paired_binary(round(34.5 * k), round(25.5 * k), round(300 * k))
    assert stats.verdict(later.ci, later.delta, 0.02).verdict == "fail"
    none = stats.items_to_settle(0.0, 0.0, 50, 0.02)
    assert none.items > 50
    assert stats.verdict(stats.paired_binary(0, 0, none.items).ci, 0.0, 0.02).verdict == "pass"


@pytest.mark.parametrize(
    "arguments",
    [
        {"flip_rate": 0.0, "margin": 0.01},
        {"flip_rate": 1.5, "margin": 0.01},
        {"flip_rate": math.nan, "margin": 0.01},
        {"flip_rate": 0.1, "margin": 0.0},
        {"flip_rate": 0.1, "margin": -0.01},
        {"flip_rate": 0.1, "margin": 0.01, "true_loss": 0.01},
        {"flip_rate": 0.1, "margin": 0.5, "true_loss": 0.2},
        {"flip_rate": 0.1, "margin": 0.01, "confidence": 1.0},
        {"flip_rate": 0.1, "margin": 0.01, "power": 0.4},
        {"flip_rate": 0.1, "margin": 0.01, "design_effect": 0.0},
    ],
)
def test_bad_input(arguments: dict[str, float]) -> None:
    with pytest.raises(StatisticsError):
        stats.items_needed(**arguments)


def test_bad_item_counts() -> None:
    for items in (0, -3, 1.5):
        with pytest.raises(StatisticsError):
            stats.detectable_margin(0.1, items)  # type: ignore[arg-type]
