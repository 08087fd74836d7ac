"""From an interval and a margin to a verdict; equivalence; margins that follow the baseline."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from numpy.typing import ArrayLike, NDArray

from evalq.errors import StatisticsError
from evalq.stats._check import finite_vector, inside
from evalq.stats.clusters import clustered_mean

__all__ = [
    "Equivalence",
    "Outcome",
    "Verdict",
    "equivalence",
    "relative_margin",
    "threshold_verdict",
    "verdict",
]

Outcome = Literal["pass", "fail", "inconclusive"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What an interval says about a margin.

    Args:
        verdict: pass, fail or inconclusive.
        detected_loss: the whole interval lies below 0: there is a loss, be it within the margin.
            A pass can carry it.
    """

    verdict: Outcome
    detected_loss: bool

    def __str__(self) -> str:
        return self.verdict


@dataclass(frozen=True, slots=True)
class Equivalence:
    """Two one-sided tests.

    Args:
        equivalent: both reject at ``alpha``.
        p: the larger of the two one-sided p-values.
        p_lower, p_upper: of "the difference is at most -margin", and "at least +margin".
        ci: the two-sided interval at 1 - 2 alpha that lies within the margins when equivalent.
    """

    equivalent: bool
    p: float
    p_lower: float
    p_upper: float
    ci: tuple[float, float]


def _interval(ci: tuple[float, float], point: float) -> tuple[float, float]:
    low, high = float(ci[0]), float(ci[1])
    # An estimate may leave its interval by the last bit of a float, where the two touch.
    slack = 1e-12 * max(1.0, abs(point))
    if any(math.isnan(x) for x in (low, high, point)) or not low - slack <= point <= high + slack:
        raise StatisticsError(f"{point!r} does not lie in its interval [{low!r}, {high!r}]")
    return low, high


def verdict(ci: tuple[float, float], delta: float, margin: float) -> Verdict:
    """Non-inferiority of ``delta`` (variant - parent) at a margin.

    Pass when L > -margin. Fail when U < -margin, or when U < 0 and delta <= -margin. Otherwise
    inconclusive. With a 90 % interval a pass has a one-sided error of 5 %.

    Args:
        ci: two-sided interval [L, U] of ``delta``.
        delta: the estimate; it never decides alone.
        margin: a positive loss one is ready to accept, in the unit of ``delta``.

    Raises:
        StatisticsError: a margin that is not positive and finite, NaN, or an estimate outside its
            interval.

    >>> verdict((-0.018, -0.002), -0.01, margin=0.02)
    Verdict(verdict='pass', detected_loss=True)
    >>> verdict((-0.05, 0.01), -0.02, margin=0.02).verdict
    'inconclusive'
    >>> verdict((-0.05, -0.01), -0.03, margin=0.02).verdict
    'fail'
    """
    if not (math.isfinite(margin) and margin > 0):
        raise StatisticsError(
            f"margin {margin!r} is not a positive number", hint="It is the loss you would accept."
        )
    low, high = _interval(ci, delta)
    outcome: Outcome = "inconclusive"
    if low > -margin:
        outcome = "pass"
    elif high < -margin or (high < 0 and delta <= -margin):
        outcome = "fail"
    return Verdict(outcome, high < 0)


def threshold_verdict(
    ci: tuple[float, float], *, maximum: float | None = None, minimum: float | None = None
) -> Outcome:
    """An interval against a limit: pass when all of it keeps the limit, fail when none of it does.

    For KL, top-1 agreement, perplexity ratios and costs. An interval that touches the limit from
    the good side keeps it.

    Raises:
        StatisticsError: not exactly one limit, or NaN.

    >>> threshold_verdict((0.010, 0.020), maximum=0.05)
    'pass'
    >>> threshold_verdict((0.88, 0.92), minimum=0.90)
    'inconclusive'
    """
    low, high = ci
    if maximum is not None and minimum is None:
        limit = maximum
    elif minimum is not None and maximum is None:
        low, high, limit = -high, -low, -minimum
    else:
        raise StatisticsError("give exactly one of maximum and minimum")
    if any(math.isnan(x) for x in (low, high, limit)):
        raise StatisticsError("an interval or its limit is not a number")
    if high <= limit:
        return "pass"
    return "fail" if low > limit else "inconclusive"


def equivalence(
    differences: ArrayLike,
    margin: float,
    clusters: Sequence[Any] | NDArray[Any] | None = None,
    alpha: float = 0.05,
) -> Equivalence:
    """Two one-sided t tests (Schuirmann 1987) that the mean difference lies within ±margin.

    Without clusters these are the numbers of ``statsmodels`` ``ttost_paired``; with them, those of
    the cluster-robust mean.

    Args:
        differences: ``[N]`` variant - parent.
        margin: positive.
        clusters: ``[N]`` labels.
        alpha: of each one-sided test.

    Raises:
        StatisticsError: as ``clustered_mean``; a margin that is not positive; alpha not in
            (0, .5); fewer than two clusters.
    """
    values = finite_vector(differences, "differences")
    inside(alpha, 0, 0.5, "alpha")
    if not (math.isfinite(margin) and margin > 0):
        raise StatisticsError(f"margin {margin!r} is not a positive number")
    mean = clustered_mean(values, clusters, 1 - 2 * alpha)
    lower, upper = mean.p_above(-margin), mean.p_below(margin)
    p = max(lower, upper)
    return Equivalence(p <= alpha, p, lower, upper, mean.ci)


def relative_margin(fraction: float, baseline: float, floor: float) -> float:
    """An absolute margin: ``fraction`` of the baseline's accuracy, but at least ``floor``.

    The guard is for low baselines, where a relative margin shrinks to nothing and no number of
    items could resolve it.

    Args:
        fraction: share of the baseline that may be lost, in (0, 1).
        baseline: accuracy in [0, 1].
        floor: least absolute margin, in (0, 1).

    Raises:
        StatisticsError: a number outside its range.

    >>> relative_margin(0.02, 0.80, floor=0.005)
    0.016
    >>> relative_margin(0.02, 0.05, floor=0.005)
    0.005
    """
    inside(fraction, 0, 1, "relative margin")
    inside(floor, 0, 1, "least margin")
    if not 0 <= baseline <= 1:
        raise StatisticsError(f"baseline {baseline!r} is not an accuracy in [0, 1]")
    return max(fraction * baseline, floor)
