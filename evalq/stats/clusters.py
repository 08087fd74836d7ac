"""Means of values that come in clusters: several questions on a document, tokens of a text.

Values of one cluster are not independent, so the variance is taken of cluster sums (Liang and
Zeger 1986) and the interval is Student's t with G - 1 degrees of freedom, G the clusters. These
are the numbers of ``statsmodels`` ``OLS(x, 1).fit(cov_type="cluster", use_t=True)``, which the
tests hold them to; the closed form is used because a report needs thousands of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import stdtr, stdtrit

from evalq.errors import StatisticsError
from evalq.stats._check import cluster_codes, finite_vector, inside

__all__ = [
    "FEW_CLUSTERS",
    "Distribution",
    "MeanResult",
    "cluster_warnings",
    "clustered_mean",
    "design_effect",
    "distribution",
    "perplexity_ratio",
]

FEW_CLUSTERS = 30
"""Below so many clusters a cluster-robust variance is too small on average."""


@dataclass(frozen=True, slots=True)
class MeanResult:
    """A mean and its interval.

    Args:
        mean: the estimate.
        ci: two-sided interval at ``confidence``.
        clusters: independent clusters, G.
        values: values that went in.
        standard_error: of ``mean``.
        confidence: of the two-sided interval; each end is a one-sided bound at
            ``(1 + confidence) / 2``.
        warnings: what a reader has to know before trusting the interval.
    """

    mean: float
    ci: tuple[float, float]
    clusters: int
    values: int
    standard_error: float
    confidence: float
    warnings: tuple[str, ...] = ()

    def p_above(self, threshold: float) -> float:
        """One-sided p of "the mean is at most ``threshold``" (small: it is above)."""
        return _p_greater(self.mean - threshold, self.standard_error, self.clusters)

    def p_below(self, threshold: float) -> float:
        """One-sided p of "the mean is at least ``threshold``" (small: it is below)."""
        return _p_greater(threshold - self.mean, self.standard_error, self.clusters)


@dataclass(frozen=True, slots=True)
class Distribution:
    """A clustered mean with what the mean hides.

    Args:
        mean: the mean with its interval.
        median, p95, p99, max: of the single values, without intervals.
    """

    mean: MeanResult
    median: float
    p95: float
    p99: float
    max: float


def _p_greater(excess: float, standard_error: float, clusters: int) -> float:
    if standard_error == 0:
        return 0.0 if excess > 0 else 1.0
    return float(stdtr(clusters - 1, -excess / standard_error))


def cluster_warnings(clusters: int, values: int) -> tuple[str, ...]:
    """The warning about few clusters, if it is due."""
    if clusters >= FEW_CLUSTERS:
        return ()
    of = "clusters" if clusters < values else "values"
    return (f"only {clusters} independent {of} (fewer than {FEW_CLUSTERS}): the interval is rough",)


def _mean_and_se(
    values: NDArray[np.float64],
    codes: NDArray[np.intp],
    clusters: int,
    units: NDArray[np.float64] | None,
) -> tuple[float, float]:
    """Ratio of sums and the square root of its sandwich variance with the factor G / (G - 1)."""
    weights = np.ones_like(values) if units is None else units
    total = math.fsum(weights)
    mean = math.fsum(values) / total
    sums = np.bincount(codes, weights=values - mean * weights, minlength=clusters)
    # Sorted, so that neither the order of the items nor the names of the clusters changes a bit.
    variance = clusters / (clusters - 1) * math.fsum(np.sort(sums * sums)) / total**2
    return mean, math.sqrt(variance)


def clustered_mean(
    values: ArrayLike,
    clusters: Sequence[Any] | NDArray[Any] | None = None,
    confidence: float = 0.90,
    units: ArrayLike | None = None,
) -> MeanResult:
    """Mean of ``values`` with a cluster-robust interval, t with G - 1 degrees of freedom.

    Args:
        values: ``[N]`` finite numbers.
        clusters: ``[N]`` labels; without them each value is a cluster of its own, and the interval
            is the ordinary t interval of a mean.
        confidence: of the two-sided interval.
        units: ``[N]`` positive sizes; the mean is then ``sum(values) / sum(units)`` (a ratio
            estimator), for example summed NLL over tokens.

    Raises:
        StatisticsError: no values, NaN or infinite ones, labels that do not fit, fewer than two
            clusters, a confidence outside (0, 1), units that are not positive.

    >>> result = clustered_mean([1.0, 2.0, 3.0, 4.0], ["a", "a", "b", "b"])
    >>> result.mean, result.clusters, round(result.standard_error, 6)
    (2.5, 2, 1.0)
    """
    array = finite_vector(values, "values")
    inside(confidence, 0, 1, "confidence")
    codes, count = cluster_codes(clusters, array.size)
    if count < 2:
        raise StatisticsError(
            f"{array.size} values of one cluster tell nothing about their spread",
            hint="An interval needs at least two independent clusters.",
        )
    sizes = None if units is None else finite_vector(units, "units")
    if sizes is not None and (sizes.size != array.size or (sizes <= 0).any()):
        raise StatisticsError("units must be one positive number for each value")
    mean, error = _mean_and_se(array, codes, count, sizes)
    half = error * float(stdtrit(count - 1, (1 + confidence) / 2))
    warnings = cluster_warnings(count, array.size)
    if error == 0:
        warnings += ("the values do not vary at all, so the interval has no width",)
    return MeanResult(
        mean, (mean - half, mean + half), count, array.size, error, confidence, warnings
    )


def perplexity_ratio(
    nll_parent: ArrayLike,
    nll_variant: ArrayLike,
    clusters: Sequence[Any] | NDArray[Any] | None = None,
    confidence: float = 0.90,
    units: ArrayLike | None = None,
) -> MeanResult:
    """Perplexity of the variant over the parent's: exp of the mean difference of NLL.

    Args:
        nll_parent, nll_variant: ``[N]`` negative log-likelihoods in nats of the same tokens (or of
            the same items, with ``units`` the tokens in each).
        clusters: ``[N]`` documents.
        confidence: of the two-sided interval.
        units: tokens that each NLL is summed over; one each when left out.

    Returns:
        The ratio, its interval (the ends exponentiated) and its standard error by the delta
        method (ratio times the error of the logarithm), as llama.cpp's ``llama-perplexity`` prints
        it: for Llama-3-8B at q4_K_M a ratio of 1.028160 ± .000723, a log ratio of .0277708.

    Raises:
        StatisticsError: as ``clustered_mean``, or lengths that differ.
    """
    parent = finite_vector(nll_parent, "NLLs of the parent")
    variant = finite_vector(nll_variant, "NLLs of the variant")
    if parent.size != variant.size:
        raise StatisticsError(
            f"{parent.size} NLLs of the parent stand against {variant.size} of the variant"
        )
    log = clustered_mean(variant - parent, clusters, confidence, units)
    with np.errstate(over="ignore"):
        ratio, low, high = (float(x) for x in np.exp(np.array([log.mean, *log.ci])))
    if not math.isfinite(ratio):
        raise StatisticsError(f"the perplexity ratio exp({log.mean:.4g}) exceeds any number")
    return MeanResult(
        ratio,
        (low, high),
        log.clusters,
        log.values,
        ratio * log.standard_error,
        confidence,
        log.warnings,
    )


def distribution(
    values: ArrayLike,
    clusters: Sequence[Any] | NDArray[Any] | None = None,
    confidence: float = 0.90,
) -> Distribution:
    """Clustered mean, median, 95th and 99th percentile (linear interpolation) and maximum.

    Args and errors as ``clustered_mean``; used for KL divergence, where the tail is what hurts.
    """
    array = finite_vector(values, "values")
    mean = clustered_mean(array, clusters, confidence)
    median, p95, p99 = (float(x) for x in np.quantile(array, [0.5, 0.95, 0.99]))
    return Distribution(mean, median, p95, p99, float(array.max()))


def design_effect(values: ArrayLike, clusters: Sequence[Any] | NDArray[Any] | None) -> float:
    """Variance of the clustered mean over that of as many independent values (Kish 1965).

    1.0 where nothing varies or there is one cluster only: nothing can be said then.

    Raises:
        StatisticsError: as ``clustered_mean``.

    >>> round(design_effect([0, 0, 1, 1], ["a", "a", "b", "b"]), 9)
    3.0
    """
    array = finite_vector(values, "values")
    codes, count = cluster_codes(clusters, array.size)
    if count < 2 or array.size < 2:
        return 1.0
    _, clustered = _mean_and_se(array, codes, count, None)
    _, single = _mean_and_se(array, np.arange(array.size), array.size, None)
    return 1.0 if single == 0 else (clustered / single) ** 2
