"""Many slices at once: adjusted p-values, and effects shrunk towards what they share."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from evalq.errors import StatisticsError
from evalq.stats._check import finite_vector, inside

__all__ = ["Shrunken", "benjamini_hochberg", "holm", "shrink", "weighted_holm"]

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Shrunken:
    """Effects of many slices under a random-effects model.

    Args:
        effects: ``[S]`` best linear unbiased predictions, between each slice's own effect and
            the common mean.
        low, high: ``[S]`` ends of their intervals.
        mean: the common mean.
        mean_ci: its interval.
        tau: standard deviation of the true effects between slices.
    """

    effects: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    mean: float
    mean_ci: tuple[float, float]
    tau: float


def _p_values(p: ArrayLike) -> Floats:
    array = np.asarray(p, dtype=np.float64)
    if array.ndim != 1 or not ((array >= 0) & (array <= 1)).all():
        raise StatisticsError("p-values must be a vector of numbers in [0, 1]")
    return array


def holm(p: ArrayLike) -> Floats:
    """Holm's (1979) adjusted p-values: a family-wise error of at most alpha, whatever depends.

    The numbers of ``statsmodels`` ``multipletests(p, method="holm")``, which the tests hold it to,
    at a hundredth of the time; none for an empty family.

    Args:
        p: ``[S]`` p-values.

    Raises:
        StatisticsError: not a vector of numbers in [0, 1].

    >>> holm([0.01, 0.04, 0.03]).round(3).tolist()
    [0.03, 0.06, 0.06]
    """
    array = _p_values(p)
    return weighted_holm(array, np.ones(array.size))


def benjamini_hochberg(p: ArrayLike) -> Floats:
    """Benjamini and Hochberg's (1995) adjusted p-values (false discovery rate), for display.

    The numbers of ``statsmodels`` ``multipletests(p, method="fdr_bh")``; args and errors as
    ``holm``.

    >>> benjamini_hochberg([0.01, 0.04, 0.03]).round(3).tolist()
    [0.03, 0.04, 0.04]
    """
    array = _p_values(p)
    order = np.argsort(array, kind="stable")
    stepped = array[order] * array.size / np.arange(1, array.size + 1)
    adjusted = np.empty_like(array)
    adjusted[order] = np.minimum(np.minimum.accumulate(stepped[::-1])[::-1], 1.0)
    return adjusted


def weighted_holm(p: ArrayLike, weights: ArrayLike) -> Floats:
    """Holm's procedure with unequal shares of alpha (Holm 1979, section 4).

    A hypothesis of weight w is first tried at ``alpha w / sum(w)``; what is rejected hands its
    share on to the rest. With equal weights this is ``holm``.

    Args:
        p: ``[S]`` p-values.
        weights: ``[S]`` positive.

    Returns:
        Adjusted p-values, to be held against alpha itself.

    Raises:
        StatisticsError: p as in ``holm``; weights that are not positive, or not as many.

    >>> weighted_holm([0.02, 0.04], [0.5, 0.5]).tolist()
    [0.04, 0.04]
    """
    array = _p_values(p)
    if array.size == 0:
        return array
    shares = finite_vector(weights, "weights")
    if shares.size != array.size or (shares <= 0).any():
        raise StatisticsError("weights must be one positive number for each p-value")
    order = np.argsort(array / shares, kind="stable")
    # What is left of the weights when the hypothesis's turn comes: sums from the end.
    left = np.cumsum(shares[order][::-1])[::-1]
    stepped = np.maximum.accumulate(array[order] / shares[order] * left)
    adjusted = np.empty_like(array)
    adjusted[order] = np.minimum(stepped, 1.0)
    return adjusted


def shrink(effects: ArrayLike, variances: ArrayLike, confidence: float = 0.90) -> Shrunken:
    """Random-effects shrinkage of noisy slices (DerSimonian and Laird 1986).

    The variance between slices is ``statsmodels`` ``combine_effects``'; each slice is pulled to
    the common mean by its share of noise, v / (v + tau^2).

    Args:
        effects: ``[S]`` differences of each slice, S >= 2.
        variances: ``[S]`` positive variances of them. Where no item flipped the plain variance
            is 0; take it of (b + .5, c + .5) then.
        confidence: of the intervals.

    Raises:
        StatisticsError: fewer than two slices, lengths that differ, variances not positive.

    Slices that differ by no more than noise are pulled together entirely:

    >>> result = shrink([-0.02, 0.00, -0.01], [0.01, 0.01, 0.01])
    >>> result.tau, [round(x, 3) for x in result.effects]
    (0.0, [-0.01, -0.01, -0.01])
    """
    inside(confidence, 0, 1, "confidence")
    values = finite_vector(effects, "effects")
    noise = finite_vector(variances, "variances")
    if values.size < 2 or values.size != noise.size or (noise <= 0).any():
        raise StatisticsError(
            "shrinkage needs at least two slices, each with a positive variance of its effect"
        )
    from scipy.special import ndtri
    from statsmodels.stats.meta_analysis import combine_effects

    combined = combine_effects(values, noise, method_re="dl", use_t=False)
    tau2 = max(float(combined.tau2), 0.0)
    mean, variance = float(combined.mean_effect_re), float(1 / (1 / (noise + tau2)).sum())
    kept = tau2 / (tau2 + noise)
    predicted = mean + kept * (values - mean)
    # Own noise that is left, and the doubt about the common mean (Morris 1983, first order).
    error = np.sqrt(kept * noise + (1 - kept) ** 2 * variance)
    z = float(ndtri((1 + confidence) / 2))
    half = z * variance**0.5
    return Shrunken(
        effects=tuple(predicted.tolist()),
        low=tuple((predicted - z * error).tolist()),
        high=tuple((predicted + z * error).tolist()),
        mean=mean,
        mean_ci=(mean - half, mean + half),
        tau=tau2**0.5,
    )
