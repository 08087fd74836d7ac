"""Two variants on the same items: what was lost, with an interval, and whether it is a loss.

Orientation: ``lost`` (b) items only the parent gets right, ``gained`` (c) items only the variant
gets right, ``delta = (c - b) / n`` is variant - parent in accuracy (0 to 1). Fagerland, Lydersen
and Laake 2014 ("Recommended tests and confidence intervals for paired binomial proportions")
review the tests; Tango 1998 gave the interval.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import betainc, chdtrc, gammaln, ndtri, stdtr, stdtrit

from evalq.errors import StatisticsError
from evalq.stats._check import finite_vector, flip_counts, inside
from evalq.stats.clusters import MeanResult, cluster_warnings, clustered_mean, design_effect

__all__ = [
    "ChiSquare",
    "PairedResult",
    "clustered_tango",
    "mcnemar_chi2",
    "mcnemar_exact",
    "mcnemar_midp",
    "mcnemar_worse",
    "paired_binary",
    "paired_clustered",
    "paired_mean",
    "tango_interval",
    "tango_z",
]

FEW_FLIPS = 10
LEAST_FLIPS = 5
"""Five flips, all one way, are the fewest that give a one-sided exact p of at most .05."""

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class PairedResult:
    """A difference, variant - parent, over the same items.

    Args:
        delta: mean difference (accuracy: 0 to 1).
        ci: two-sided interval of ``delta`` at ``confidence``.
        items: paired items.
        lost, gained: items where the variant is worse, and better.
        p_worse: one-sided p of "not worse": exact McNemar, or t over clusters.
        p_two_sided_midp: two-sided p: mid-p McNemar, or (not binary, or clustered) the t test's.
        method: how the interval was made, in words.
        warnings: what a reader has to know before trusting it.
        clusters: independent clusters; ``items`` where nothing is shared.
        confidence: of ``ci``.
    """

    delta: float
    ci: tuple[float, float]
    items: int
    lost: int
    gained: int
    p_worse: float
    p_two_sided_midp: float
    method: str
    warnings: tuple[str, ...] = ()
    clusters: int = 0
    confidence: float = 0.90

    @property
    def flip_rate(self) -> float:
        """Share of items that changed, either way. High alone, it is no degradation."""
        return (self.lost + self.gained) / self.items


@dataclass(frozen=True, slots=True)
class ChiSquare:
    """McNemar's statistic (1 degree of freedom) and its two-sided p."""

    statistic: float
    p: float


def _score_variance(b: Floats, c: Floats, n: Floats, delta: Floats) -> Floats:
    """n^2 times Tango's variance of the difference, at the restricted maximum likelihood.

    q, the probability that only the parent is right, solves
    2n q^2 - (b + c - (2n + b - c) D) q - b D (1 - D) = 0 and is its larger root. Where D > 0, the
    subtraction cancels, so the root is then taken by its conjugate.
    """
    linear = b + c - (2 * n + b - c) * delta
    product = b * delta * (1 - delta)
    root = np.sqrt(np.maximum(linear * linear + 8 * n * product, 0.0))
    with np.errstate(divide="ignore", invalid="ignore"):
        conjugate = np.where(root - linear > 0, 2 * product / (root - linear), 0.0)
    q = np.where(linear >= 0, (linear + root) / (4 * n), conjugate)
    q = np.maximum(q, np.maximum(0.0, -delta))
    return np.maximum(n * (2 * q + delta * (1 - delta)), 0.0)


def tango_z(lost: ArrayLike, gained: ArrayLike, items: ArrayLike, delta: ArrayLike) -> Floats:
    """Tango's score statistic z(D) of the hypothesis that the true difference is ``delta``.

    z(D) = (c - b - nD) / sqrt(n (2q + D (1 - D))); approximately standard normal under D. At
    D = 0 its square is McNemar's statistic without correction. Vectorized over all arguments.

    Raises:
        StatisticsError: counts as ``paired_binary``, or a delta outside [-1, 1].

    >>> round(float(tango_z(150, 86, 1600, 0.0)) ** 2, 3)
    17.356
    """
    b, c, n = flip_counts(lost, gained, items)
    point = np.asarray(delta, dtype=np.float64)
    if not (np.abs(point) <= 1).all():
        raise StatisticsError("a difference of two accuracies lies in [-1, 1]")
    b, c, n, point = np.broadcast_arrays(b, c, n, point)
    excess = c - b - n * point
    with np.errstate(divide="ignore", invalid="ignore"):
        z = excess / np.sqrt(_score_variance(b, c, n, point))
    return np.where(excess == 0, 0.0, z)


def tango_interval(
    lost: ArrayLike, gained: ArrayLike, items: ArrayLike, confidence: float = 0.95
) -> tuple[Floats, Floats]:
    """Tango's score interval of (gained - lost) / items, for independent items.

    All D with |z(D)| at most the normal quantile, found by bisection to the last bit. Vectorized:
    counts broadcast, and 100,000 intervals take about a second.

    Returns:
        Lower and upper ends, float64 in the shape of the counts.

    Raises:
        StatisticsError: counts that are negative, fractional, NaN or do not fit, or no items.

    Bentur's data (Fagerland et al. 2014, table 1), there in b - c orientation (-.517, -.026):

    >>> low, high = tango_interval(1, 7, 21, 0.95)
    >>> round(float(low), 3), round(float(high), 3)
    (0.026, 0.517)

    R's ``PropCIs::scoreci.mp(60, 20, 1000, .95)``:

    >>> low, high = tango_interval(60, 20, 1000, 0.95)
    >>> round(float(low), 4), round(float(high), 4)
    (-0.0584, -0.0231)
    """
    inside(confidence, 0, 1, "confidence")
    b, c, n = flip_counts(lost, gained, items)
    return _invert(b, c, n, np.full_like(n, float(ndtri((1 + confidence) / 2))))


def clustered_tango(
    lost: ArrayLike,
    gained: ArrayLike,
    items: ArrayLike,
    clusters: ArrayLike,
    effect: ArrayLike,
    confidence: float = 0.90,
) -> tuple[Floats, Floats]:
    """Tango's interval where items share clusters: counts over the design effect, t for z.

    Dividing b, c and n by the design effect leaves the estimate and multiplies the score's
    variance by it (Rao and Scott 1992); the quantile is Student's with G - 1 degrees of freedom.
    Unlike the t interval of the cluster-robust mean it takes the variance at the difference that
    is tried, so it keeps its level with few flips, all one way. Without any flip the design effect
    is unknown, and each cluster counts as one item. Vectorized.

    Args:
        lost, gained, items: counts.
        clusters: G, at least 2.
        effect: design effect, at least 1.

    Raises:
        StatisticsError: counts as ``tango_interval``, fewer than 2 clusters, more clusters than
            items, a design effect below 1.
    """
    inside(confidence, 0, 1, "confidence")
    b, c, n = flip_counts(lost, gained, items)
    groups, inflation = np.asarray(clusters, np.float64), np.asarray(effect, np.float64)
    if not ((groups >= 2) & (groups <= n)).all():
        raise StatisticsError("clusters must be at least 2 and at most the items")
    if not ((inflation >= 1) & np.isfinite(inflation)).all():
        raise StatisticsError("a design effect is a finite number of at least 1")
    b, c, n, groups, inflation = np.broadcast_arrays(b, c, n, groups, inflation)
    scale = np.where(b + c == 0, n / groups, inflation)
    quantile = np.asarray(stdtrit(groups - 1, (1 + confidence) / 2), np.float64)
    return _invert(b / scale, c / scale, n / scale, quantile)


def _invert(b: Floats, c: Floats, n: Floats, z: Floats) -> tuple[Floats, Floats]:
    """Both ends of the D with z(D)^2 at most z^2, by bisection from the estimate outwards."""
    estimate = (c - b) / n
    end = np.stack([np.full_like(estimate, -1.0), np.full_like(estimate, 1.0)])
    inner, outer = np.stack([estimate, estimate]), end
    for _ in range(64):
        middle = (inner + outer) / 2
        excess = c - b - n * middle
        accepted = excess * excess <= z * z * _score_variance(b, c, n, middle)
        inner = np.where(accepted, middle, inner)
        outer = np.where(accepted, outer, middle)
    # All items lost (or gained): every D up to the end itself is accepted.
    inner = np.where(estimate == end, end, inner)
    return inner[0], inner[1]


def mcnemar_worse(lost: ArrayLike, gained: ArrayLike) -> Floats:
    """Exact one-sided p that the variant is worse: P(Bin(b + c, 1/2) >= b). 1 without flips.

    ``scipy.stats.binomtest(b, b + c, .5, "greater")``, vectorized.

    >>> float(mcnemar_worse(5, 0))
    0.03125
    """
    b, c, _ = flip_counts(lost, gained, _many(lost, gained))
    return np.where(b > 0, betainc(np.maximum(b, 1), c + 1, 0.5), 1.0)


def mcnemar_exact(lost: ArrayLike, gained: ArrayLike) -> Floats:
    """Exact two-sided p: twice the smaller tail, at most 1.

    >>> round(float(mcnemar_exact(1, 7)), 4)
    0.0703
    """
    b, c, _ = flip_counts(lost, gained, _many(lost, gained))
    return np.minimum(1.0, 2 * _cdf(np.minimum(b, c), np.maximum(b, c)))


def mcnemar_midp(lost: ArrayLike, gained: ArrayLike) -> Floats:
    """Two-sided mid-p: 2 cdf(min(b, c)) - pmf(min(b, c)) under Bin(b + c, 1/2). 1 if b = c.

    >>> round(float(mcnemar_midp(1, 7)), 4)
    0.0391
    """
    b, c, _ = flip_counts(lost, gained, _many(lost, gained))
    k, m = np.minimum(b, c), b + c
    pmf = np.exp(gammaln(m + 1) - gammaln(k + 1) - gammaln(m - k + 1) - m * math.log(2))
    return np.where(b == c, 1.0, np.clip(2 * _cdf(k, m - k) - pmf, 0.0, 1.0))


def _cdf(few: Floats, many: Floats) -> Floats:
    """P(Bin(few + many, 1/2) <= few)."""
    return np.where(many > 0, betainc(np.maximum(many, 1), few + 1, 0.5), 1.0)


def _many(lost: ArrayLike, gained: ArrayLike) -> Floats:
    """Items enough for any count, for tests that do not depend on the items that stayed."""
    flips = np.asarray(lost, dtype=np.float64) + np.asarray(gained, dtype=np.float64)
    return np.where(flips >= 1, flips, 1.0)


def mcnemar_chi2(lost: int, gained: int, corrected: bool = False) -> ChiSquare:
    """McNemar's asymptotic test, (b - c)^2 / (b + c), or with Edwards' continuity correction.

    Raises:
        StatisticsError: no flips, so that the statistic is 0 / 0; use ``mcnemar_exact``.

    Agresti's approval ratings, 794 / 150 / 86 / 570:

    >>> plain, careful = mcnemar_chi2(150, 86), mcnemar_chi2(150, 86, corrected=True)
    >>> round(plain.statistic, 3), f"{plain.p:.3e}", round(careful.statistic, 3), f"{careful.p:.3e}"
    (17.356, '3.099e-05', 16.818, '4.115e-05')
    """
    b, c, _ = (float(x) for x in flip_counts(lost, gained, _many(lost, gained)))
    if b + c == 0:
        raise StatisticsError(
            "McNemar's chi-square is undefined without flips", hint="The exact test gives p = 1."
        )
    excess = max(abs(b - c) - (1.0 if corrected else 0.0), 0.0)
    statistic = excess**2 / (b + c)
    return ChiSquare(statistic, float(chdtrc(1, statistic)))


def _binary_warnings(lost: int, gained: int, items: int) -> tuple[str, ...]:
    warnings = []
    if lost + gained < FEW_FLIPS:
        warnings.append(f"only {lost + gained} flips (fewer than {FEW_FLIPS}): little evidence")
    if items < LEAST_FLIPS:
        warnings.append(
            f"{items} items: {LEAST_FLIPS} one-sided flips, the least for p <= .05, cannot occur"
        )
    return tuple(warnings)


def paired_binary(lost: int, gained: int, items: int, confidence: float = 0.90) -> PairedResult:
    """Difference in accuracy over independent items, from the counts of flips.

    Args:
        lost, gained, items: b, c and n of the module's orientation.
        confidence: of Tango's two-sided score interval; .90 makes each end a one-sided .95 bound.

    Raises:
        StatisticsError: a negative or fractional count, no items, more flips than items, or a
            confidence outside (0, 1).

    R's ``PropCIs::scoreci.mp(25, 28, 618, .90)``:

    >>> result = paired_binary(25, 28, 618)
    >>> [round(x, 4) for x in result.ci]
    [-0.0148, 0.0247]
    """
    low, high = tango_interval(lost, gained, items, confidence)
    b, c, n = int(lost), int(gained), int(items)
    return PairedResult(
        delta=(c - b) / n,
        ci=(float(low), float(high)),
        items=n,
        lost=b,
        gained=c,
        p_worse=float(mcnemar_worse(b, c)),
        p_two_sided_midp=float(mcnemar_midp(b, c)),
        method="Tango score interval, exact McNemar",
        warnings=_binary_warnings(b, c, n),
        clusters=n,
        confidence=confidence,
    )


def paired_mean(
    differences: ArrayLike,
    clusters: Sequence[Any] | NDArray[Any] | None = None,
    confidence: float = 0.90,
) -> PairedResult:
    """Mean difference, variant - parent, cluster-robust with t(G - 1).

    For scores that are not 0 or 1. Where they are, ``paired_binary`` (independent items) and
    ``paired_clustered`` keep their level with few flips, which the t interval does not.

    Where no difference varies, the t interval has no width and would claim certainty. If the
    differences are 0 throughout, the interval is then Tango's for no flips among G independent
    units, which holds for any difference bounded by 1; otherwise it stays as it is, with a
    warning.

    Args:
        differences: ``[N]`` score of the variant less the parent's, per item.
        clusters: ``[N]`` labels, or ``None`` for independent items.
        confidence: of the two-sided interval.

    Raises:
        StatisticsError: as ``clustered_mean``.
    """
    values = finite_vector(differences, "differences")
    mean = clustered_mean(values, clusters, confidence)
    lost, gained = int((values < 0).sum()), int((values > 0).sum())
    ci, how = mean.ci, f"cluster-robust mean, t({mean.clusters - 1})"
    warnings = cluster_warnings(mean.clusters, mean.values)
    if np.isin(values, (-1.0, 0.0, 1.0)).all():
        warnings += _binary_warnings(lost, gained, values.size)
    if lost + gained == 0:
        low, high = tango_interval(0, 0, mean.clusters, confidence)
        ci, how = (float(low), float(high)), "score interval for no differences among clusters"
    elif mean.standard_error == 0:
        warnings += ("every difference is the same: the interval has no width",)
    return PairedResult(
        delta=mean.mean,
        ci=ci,
        items=mean.values,
        lost=lost,
        gained=gained,
        p_worse=mean.p_below(0.0),
        p_two_sided_midp=_two_sided(mean),
        method=how,
        warnings=warnings,
        clusters=mean.clusters,
        confidence=confidence,
    )


def paired_clustered(
    differences: ArrayLike,
    clusters: Sequence[Any] | NDArray[Any],
    confidence: float = 0.90,
) -> PairedResult:
    """Difference in accuracy over right-or-wrong items that share clusters.

    The interval is ``clustered_tango`` with the design effect of the differences (not below 1).
    In simulations of 400 items in 100 clusters with 2 % of items flipping, a true loss at the
    margin passed 10 % of the time by the t interval of the cluster-robust mean and 5 % by this one
    (``make bench-gate``). ``p_worse`` is the larger of the score test's, which knows the clusters,
    and the exact McNemar test's, which knows that flips are few; so is the two-sided p.

    Args:
        differences: ``[N]``, each -1, 0 or 1.
        clusters: ``[N]`` labels.
        confidence: of the two-sided interval.

    Raises:
        StatisticsError: as ``paired_mean``, or a difference that is not -1, 0 or 1.
    """
    values = finite_vector(differences, "differences")
    if not np.isin(values, (-1.0, 0.0, 1.0)).all():
        raise StatisticsError(
            "differences of right-or-wrong items are -1, 0 or 1",
            hint="For other scores use paired_mean.",
        )
    mean = clustered_mean(values, clusters, confidence)
    effect = max(1.0, design_effect(values, clusters))
    n, groups = values.size, mean.clusters
    b, c = int((values < 0).sum()), int((values > 0).sum())
    low, high = clustered_tango(b, c, n, groups, effect, confidence)
    p_worse, p_two = float(mcnemar_worse(b, c)), float(mcnemar_midp(b, c))
    if b + c:
        score = (c - b) / math.sqrt((b + c) * effect)
        p_worse = max(p_worse, float(stdtr(groups - 1, score)))
        p_two = max(p_two, float(2 * stdtr(groups - 1, -abs(score))))
    return PairedResult(
        delta=(c - b) / n,
        ci=(float(low), float(high)),
        items=n,
        lost=b,
        gained=c,
        p_worse=p_worse,
        p_two_sided_midp=p_two,
        method=f"Tango score interval, design effect {effect:.2f}, t({groups - 1})",
        warnings=cluster_warnings(groups, n) + _binary_warnings(b, c, n),
        clusters=groups,
        confidence=confidence,
    )


def _two_sided(mean: MeanResult) -> float:
    if mean.mean == 0:
        return 1.0
    if mean.standard_error == 0:
        return 0.0
    return float(2 * stdtr(mean.clusters - 1, -abs(mean.mean) / mean.standard_error))
