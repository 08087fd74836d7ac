"""Intervals that hold whenever one stops looking, for one slice and for several pooled.

A one-sided bound inverts the betting e-value of ``sequential``: a mean m stays possible while the
evidence against "the mean is m or less" is below 1 / alpha, and the chance that the true mean is
ever excluded is at most alpha (Ville; Waudby-Smith and Ramdas 2024). Only counts of differences go
in, not their order, so what was stopped on can be computed again from stored records.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from evalq.errors import StatisticsError
from evalq.stats._check import cluster_codes, finite_vector, inside
from evalq.stats.sequential import BETS

__all__ = ["AnytimeResult", "Evidence", "anytime", "decided", "evidence", "pooled_anytime"]

Floats = NDArray[np.float64]

_GRID = np.linspace(-1.0, 1.0, 2001)
_LEVELS = 512
"""Steps of the grid that graded differences are rounded to, against their own side."""
_PRICES = np.geomspace(1e-5, 10.0, 80)


@dataclass(frozen=True)
class Evidence:
    """Units of one slice, by how often each difference occurred.

    Args:
        values: ``[K]`` differences in [-1, 1], each once.
        counts: ``[K]`` of them.
    """

    values: Floats
    counts: Floats

    @property
    def units(self) -> int:
        """How many."""
        return int(self.counts.sum())

    @property
    def mean(self) -> float:
        """Of the differences; 0 where there are none."""
        return float(self.values @ self.counts / self.counts.sum()) if self.units else 0.0

    @property
    def mirrored(self) -> Evidence:
        """With the two sides exchanged."""
        return Evidence(-self.values, self.counts)

    def log_e(self, bound: ArrayLike) -> Floats:
        """Log e-values against "the mean is ``bound`` or less"; falls as ``bound`` rises.

        Args:
            bound: ``[...]`` in (-1, 1].
        """
        at = np.atleast_1d(np.asarray(bound, dtype=np.float64))
        if not self.units:
            return np.zeros(at.shape)
        out = np.empty(at.shape)
        for start in range(0, at.size, 256):  # bounds the memory of graded scores
            part = at.flat[start : start + 256]
            gain = (self.values + 1) / (1 + part[:, None]) - 1
            logs = np.log1p(BETS[:, None, None] * gain) @ self.counts
            peak = logs.max(axis=0)
            out.flat[start : start + 256] = np.log(np.exp(logs - peak).mean(axis=0)) + peak
        return out

    def lower(self, alpha: float) -> float:
        """The largest mean that is excluded from below; -1 where none is."""
        bar = -math.log(alpha)
        low, high = -1.0, self.mean
        for _ in range(50):
            middle = (low + high) / 2
            if middle <= -1.0 or float(self.log_e(middle)[0]) >= bar:
                low = middle
            else:
                high = middle
        return low

    @cached_property
    def on_grid(self) -> Floats:
        """``log_e`` at all points of the grid but the first, ``[2000]``."""
        return self.log_e(_GRID[1:])


@dataclass(frozen=True, slots=True)
class AnytimeResult:
    """A mean difference whose interval and p-value hold at any stopping time.

    Args:
        mean: of the units, weighted by stratum where there are several.
        ci: two-sided interval.
        p_worse: of "the mean is not below 0".
        units: looked at.
    """

    mean: float
    ci: tuple[float, float]
    p_worse: float
    units: int


def evidence(
    differences: ArrayLike, clusters: Sequence[Any] | NDArray[Any] | None = None
) -> Evidence:
    """What a slice's differences show; a cluster is one unit, by its mean.

    Args:
        differences: ``[N]`` variant - parent, in [-1, 1]; may be empty.
        clusters: ``[N]`` labels; without them each difference is a unit.

    Raises:
        StatisticsError: differences outside [-1, 1] or NaN, labels that do not fit.
    """
    if np.size(differences) == 0:
        return Evidence(np.zeros(0), np.zeros(0))
    values = finite_vector(differences, "differences")
    if np.abs(values).max() > 1:
        raise StatisticsError("differences must lie in [-1, 1], as accuracies do")
    codes, count = cluster_codes(clusters, values.size)
    means = np.bincount(codes, weights=values, minlength=count) / np.bincount(codes)
    unique, own = np.unique(means, return_inverse=True)
    return Evidence(unique, np.bincount(own).astype(np.float64))


def _coarse(found: Evidence) -> Evidence:
    """Graded differences rounded down, which can only widen a lower bound."""
    if found.values.size <= 32:
        return found
    floor = np.floor(found.values * _LEVELS / 2) * 2 / _LEVELS
    unique, codes = np.unique(np.maximum(floor, -1.0), return_inverse=True)
    counts: Floats = np.bincount(codes, weights=found.counts).astype(np.float64)
    return Evidence(unique, counts)


def anytime(found: Evidence, confidence: float = 0.90) -> AnytimeResult:
    """The interval of one slice.

    Args:
        found: its units.
        confidence: of the two-sided interval; each end is at half of the rest.

    Raises:
        StatisticsError: no units, or a confidence outside (0, 1).

    >>> found = anytime(evidence([0.0] * 200 + [1.0, -1.0]))
    >>> found.mean, found.ci[0] < -0.02 < 0.02 < found.ci[1], found.p_worse > 0.5
    (0.0, True, True)
    """
    alpha = (1 - inside(confidence, 0, 1, "confidence")) / 2
    if not found.units:
        raise StatisticsError("nothing was looked at yet")
    low, high = _coarse(found).lower(alpha), -_coarse(found.mirrored).lower(alpha)
    against = float(_coarse(found.mirrored).log_e(0.0)[0])
    return AnytimeResult(found.mean, (low, high), min(1.0, math.exp(-against)), found.units)


def decided(
    found: Evidence, margin: float, confidence: float = 0.90
) -> Literal["pass", "fail", ""]:
    """Whether the interval of one slice lies on one side of -margin: what an adaptive run stops on.

    The very same as comparing the ends of ``anytime`` with -margin, without computing them.

    Args:
        found: its units.
        margin: in (0, 1).
        confidence: as ``anytime``.

    Raises:
        StatisticsError: a margin or a confidence outside (0, 1).
    """
    inside(margin, 0, 1, "margin")
    bar = -math.log((1 - inside(confidence, 0, 1, "confidence")) / 2)
    if float(_coarse(found).log_e(-margin)[0]) >= bar:
        return "pass"
    return "fail" if float(_coarse(found.mirrored).log_e(margin)[0]) >= bar else ""


def pooled_anytime(
    strata: Sequence[Evidence],
    weights: ArrayLike,
    confidence: float = 0.90,
    independent: bool = True,
) -> AnytimeResult:
    """The interval of a weighted mean over slices that stopped each at its own time.

    Independent slices: the product of their e-values is one, so all vectors of means that it does
    not exclude are possible, and the interval spans their weighted means (bounded by weak duality,
    which can only widen it). Slices that share clusters: each at its part of the error.

    Args:
        strata: the slices.
        weights: ``[S]`` positive; of the slices in the pooled mean.
        confidence: of the two-sided interval.
        independent: no unit of one slice depends on another's.

    Raises:
        StatisticsError: no slices, none with a unit, weights that do not fit or are not positive.
    """
    share = finite_vector(weights, "weights")
    if share.size != len(strata) or (share <= 0).any():
        raise StatisticsError("there must be one positive weight a slice")
    if not any(s.units for s in strata):
        raise StatisticsError("nothing was looked at yet")
    if len(strata) == 1:
        return anytime(strata[0], confidence)
    share = share / share.sum()
    alpha = (1 - inside(confidence, 0, 1, "confidence")) / 2
    lower = [_coarse(s) for s in strata]
    upper = [_coarse(s.mirrored) for s in strata]
    bound = _joint if independent else _split
    below, above = bound(lower, share), bound(upper, share)
    return AnytimeResult(
        float(sum(w * s.mean for w, s in zip(share, strata, strict=True))),
        (below(alpha), -above(alpha)),
        _p_value(above),
        sum(s.units for s in strata),
    )


Bound = Callable[[float], float]
"""From the one-sided error to a lower bound of the weighted mean."""


def _split(strata: Sequence[Evidence], share: Floats) -> Bound:
    """Bonferroni: each slice at its part of alpha."""

    def bound(alpha: float) -> float:
        ends = [s.lower(alpha / len(strata)) if s.units else -1.0 for s in strata]
        return float(share @ np.array(ends))

    return bound


def _joint(strata: Sequence[Evidence], share: Floats) -> Bound:
    """Least weighted mean whose means the joint evidence, sum of logs < log(1 / alpha), leaves.

    For each price of evidence the Lagrangian's minimum is a lower bound. Between two points of the
    grid the mean is taken at the lower and the evidence, which falls, at the upper one.
    """
    total = np.zeros(_PRICES.size)
    for weight, stratum in zip(share, strata, strict=True):
        total += (weight * _GRID[:-1] + _PRICES[:, None] * stratum.on_grid).min(axis=1)

    def bound(alpha: float) -> float:
        return float(max(-1.0, (total + _PRICES * math.log(alpha)).max()))

    return bound


def _p_value(bound: Bound) -> float:
    """The least level at which the mirrored bound is above 0."""
    low, high = -60.0, -1e-9
    if bound(math.exp(high)) <= 0:
        return 1.0
    if bound(math.exp(low)) > 0:
        return math.exp(low)
    for _ in range(25):
        middle = (low + high) / 2
        low, high = (low, middle) if bound(math.exp(middle)) > 0 else (middle, high)
    return math.exp(high)
