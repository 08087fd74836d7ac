"""Intervals that hold at any stopping time: their error when one does stop at will."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evalq import stats
from evalq.errors import StatisticsError
from evalq.stats.anytime import _joint, _split


def flips(rng: np.random.Generator, n: int, lost: float, gained: float) -> np.ndarray:
    u = rng.random(n)
    return np.where(u < lost, -1.0, np.where(u < lost + gained, 1.0, 0.0))


def test_the_bound_inverts_the_e_value_of_the_margin() -> None:
    d = flips(np.random.default_rng(0), 400, 0.03, 0.02)
    found = stats.evidence(d)
    for margin in (0.01, 0.05, 0.2):
        assert float(found.log_e(-margin)[0]) == pytest.approx(
            float(stats.noninferiority_log_e(d, margin)[-1]), rel=1e-9, abs=1e-12
        )
    low = found.lower(0.05)
    assert float(found.log_e(low - 1e-6)[0]) > -np.log(0.05) > float(found.log_e(low + 1e-6)[0])


@given(st.integers(0, 30), st.integers(0, 30), st.integers(0, 300))
@settings(max_examples=40, deadline=None)
def test_an_interval_holds_its_mean_and_mirrors(lost: int, gained: int, same: int) -> None:
    if lost + gained + same == 0:
        return
    d = np.array([-1.0] * lost + [1.0] * gained + [0.0] * same)
    one, other = stats.anytime(stats.evidence(d)), stats.anytime(stats.evidence(-d))
    assert one.ci[0] <= one.mean <= one.ci[1]
    assert one.ci == pytest.approx((-other.ci[1], -other.ci[0]))
    assert (one.p_worse <= 0.05) == (one.ci[1] <= 0)


def test_a_decision_is_where_the_interval_lies() -> None:
    rng = np.random.default_rng(9)
    seen = set()
    for n in range(10, 600, 20):
        for lost in (0.0, 0.03, 0.2):
            found = stats.evidence(flips(rng, n, lost, 0.01))
            low, high = stats.anytime(found).ci
            expected = "pass" if low > -0.05 else "fail" if high < -0.05 else ""
            assert stats.decided(found, 0.05) == expected
            seen.add(expected)
    assert seen == {"pass", "fail", ""}


def test_clusters_are_one_unit_by_their_mean() -> None:
    found = stats.evidence([-1.0, 0.0, 1.0, 0.0], ["a", "a", "b", "c"])
    assert found.units == 3
    assert dict(zip(found.values, found.counts, strict=True)) == {-0.5: 1, 0.0: 1, 1.0: 1}


def test_stopping_at_the_best_moment_keeps_the_error() -> None:
    """Look after every tenth item and keep the worst: the truth is excluded in at most alpha."""
    rng = np.random.default_rng(1)
    below = above = 0
    runs = 600
    for _ in range(runs):
        d = flips(rng, 600, 0.06, 0.02)  # mean -0.04
        looks = [stats.evidence(d[:n]) for n in range(10, 601, 10)]
        below += any(float(e.log_e(-0.04)[0]) >= -np.log(0.05) for e in looks)
        above += any(float(e.mirrored.log_e(0.04)[0]) >= -np.log(0.05) for e in looks)
    bar = 0.05 + 2 * (0.05 * 0.95 / runs) ** 0.5
    assert below / runs <= bar
    assert above / runs <= bar


@pytest.mark.parametrize("independent", [True, False])
def test_pooling_slices_that_stopped_at_their_own_time(independent: bool) -> None:
    """Each slice stops at its lowest look; the pooled interval has to hold the truth still."""
    rng = np.random.default_rng(2)
    rates = [(0.02, 0.02), (0.06, 0.02), (0.10, 0.01)]
    weights = np.array([300.0, 200.0, 100.0])
    truth = float(weights @ np.array([g - b for b, g in rates]) / weights.sum())
    wrong = 0
    runs = 200
    for _ in range(runs):
        strata = []
        for lost, gained in rates:
            d = flips(rng, 300, lost, gained)
            stop = min(range(20, 301, 20), key=lambda n, d=d: float(d[:n].mean()))
            strata.append(stats.evidence(d[:stop]))
        found = stats.pooled_anytime(strata, weights, 0.90, independent)
        wrong += not found.ci[0] <= truth <= found.ci[1]
    assert wrong / runs <= 0.10


def test_the_joint_bound_is_no_wider_than_its_parts() -> None:
    rng = np.random.default_rng(3)
    strata = [stats.evidence(flips(rng, 200, 0.03, 0.02)) for _ in range(9)]
    share = np.full(9, 1 / 9)
    assert _joint(strata, share)(0.05) > _split(strata, share)(0.05)
    one = stats.pooled_anytime(strata[:1], [2.0])
    assert one == stats.anytime(strata[0])
    none = [stats.evidence([]), strata[0]]
    found = stats.pooled_anytime(none, [1.0, 1.0])
    assert found.ci[0] <= -0.5 < 0.5 <= found.ci[1]  # half of it was never looked at


def test_graded_differences() -> None:
    rng = np.random.default_rng(4)
    d = np.clip(rng.normal(-0.05, 0.2, 2000), -1, 1)
    found = stats.anytime(stats.evidence(d))
    assert found.ci[0] < d.mean() < found.ci[1] < 0
    assert found.p_worse < 1e-6
    exact = -stats.evidence(-d).lower(0.05)
    assert found.ci[1] == pytest.approx(exact, abs=0.005)
    assert found.ci[1] >= exact  # rounding only widens


def test_bad_input() -> None:
    some = stats.evidence([0.0, 1.0])
    for call in (
        lambda: stats.evidence([0.0, 1.5]),
        lambda: stats.evidence([np.nan]),
        lambda: stats.anytime(stats.evidence([])),
        lambda: stats.anytime(some, 1.0),
        lambda: stats.pooled_anytime([], []),
        lambda: stats.pooled_anytime([some, some], [1.0, 0.0]),
        lambda: stats.pooled_anytime([some, some], [1.0]),
    ):
        with pytest.raises(StatisticsError):
            call()
