"""Looking early: evidence that may be read after every item, and stopped on at any time.

An e-value has mean at most 1 under the hypothesis at every stopping time, so the chance that it
ever reaches 1 / alpha is at most alpha (Ville). Flips are tested as in Grünwald, de Heide and
Koolen's "Safe testing"; margins by betting (Waudby-Smith and Ramdas 2024).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import betainc, betaln

from evalq.errors import StatisticsError
from evalq.stats._check import cluster_codes, finite_vector, flip_counts, inside

__all__ = ["Monitoring", "flip_e_value", "flip_log_e", "monitor", "noninferiority_log_e"]

Floats = NDArray[np.float64]

BETS = np.geomspace(0.01, 0.95, 20)
"""Shares of the largest bet that cannot ruin; evenly spread on a log scale, as small bets suit many
flips and large ones few."""


@dataclass(frozen=True, slots=True)
class Monitoring:
    """What an adaptive run shows so far, at an error of at most alpha however often one looks.

    Args:
        loss_e: largest e-value so far against "lost flips are not the more likely ones".
        loss_p: 1 / ``loss_e``, at most 1: an anytime-valid p.
        loss_at: units after which ``loss_e`` first reached 1 / alpha, or ``None``.
        pass_e: largest e-value so far against "the loss is the margin or more"; NaN without one.
        pass_at: units after which it first reached 1 / alpha, or ``None``.
        units: clusters looked at, in order.
        lost, gained: of them.
    """

    loss_e: float
    loss_p: float
    loss_at: int | None
    pass_e: float
    pass_at: int | None
    units: int
    lost: int
    gained: int


def flip_log_e(lost: ArrayLike, gained: ArrayLike) -> Floats:
    """Natural logarithm of ``flip_e_value``; -inf where it is below any float. Vectorized."""
    flips = np.asarray(lost, dtype=np.float64) + np.asarray(gained, dtype=np.float64)
    b, c, _ = flip_counts(lost, gained, np.maximum(np.where(np.isfinite(flips), flips, 1), 1))
    with np.errstate(divide="ignore"):
        # The integral from 1/2 to 1 of q^b (1-q)^c is B(b+1, c+1) times I_{1/2}(c+1, b+1).
        tail = np.log(betainc(c + 1, b + 1, 0.5))
    return (b + c + 1) * math.log(2) + betaln(b + 1, c + 1) + tail


def flip_e_value(lost: ArrayLike, gained: ArrayLike) -> Floats:
    """E-value against "a flip is lost with probability at most 1/2". Vectorized.

    E = 2^(m+1) integral_{1/2}^{1} q^b (1-q)^c dq with m = b + c: the likelihood under a uniform
    prior on (1/2, 1) over that at 1/2. 1 before the first flip. Reject when E >= 1 / alpha.

    Args:
        lost, gained: b and c.

    Raises:
        StatisticsError: a count that is negative, fractional or NaN.

    >>> float(flip_e_value(0, 0)), float(flip_e_value(1, 0))
    (1.0, 1.5)
    >>> round(float(flip_e_value(7, 0)), 3)
    31.875
    """
    with np.errstate(over="ignore"):
        return np.exp(flip_log_e(lost, gained))


def noninferiority_log_e(differences: ArrayLike, margin: float) -> Floats:
    """Running log e-value against "the mean difference is -margin or less".

    A mixture over 20 bets: the capital of bet l after n items is prod (1 + l (d_i + margin)), a
    supermartingale under the hypothesis for 0 <= l < 1 / (1 - margin), as d_i >= -1.

    Args:
        differences: ``[N]`` in [-1, 1], in the order they were looked at.
        margin: in (0, 1).

    Returns:
        ``[N]`` log e-values, one after each item.

    Raises:
        StatisticsError: differences outside [-1, 1], NaN, or a margin outside (0, 1).
    """
    values = finite_vector(differences, "differences")
    inside(margin, 0, 1, "margin")
    if np.abs(values).max() > 1:
        raise StatisticsError("differences must lie in [-1, 1], as accuracies do")
    bets = BETS / (1 - margin)
    wealth = np.zeros(len(bets))
    out = np.empty(values.size)
    for start in range(0, values.size, 8192):
        chunk = values[start : start + 8192, None]
        running = wealth + np.cumsum(np.log1p(bets * (chunk + margin)), axis=0)
        peak = running.max(axis=1, keepdims=True)
        out[start : start + 8192] = np.log(np.exp(running - peak).mean(axis=1)) + peak[:, 0]
        wealth = running[-1]
    return out


def monitor(
    differences: ArrayLike,
    clusters: Sequence[Any] | NDArray[Any] | None = None,
    margin: float | None = None,
    alpha: float = 0.05,
) -> Monitoring:
    """Watch an adaptive run: is there a loss, and is the margin kept, after each unit?

    Args:
        differences: ``[N]`` variant - parent, in [-1, 1], in the order they were looked at.
        clusters: ``[N]`` labels. A cluster is then one unit, counted where it first occurs, by
            its mean difference: lost if that is below 0, gained if above. The hypotheses are
            then about clusters; look only when a cluster is whole.
        margin: for the second question; left out, only losses are watched.
        alpha: error of each question over all looks together.

    Raises:
        StatisticsError: as ``noninferiority_log_e``; alpha outside (0, 1).
    """
    values = finite_vector(differences, "differences")
    inside(alpha, 0, 1, "alpha")
    codes, count = cluster_codes(clusters, values.size)
    first = np.full(count, values.size, dtype=np.intp)
    np.minimum.at(first, codes, np.arange(values.size))
    sums = np.bincount(codes, weights=values, minlength=count)
    means = (sums / np.bincount(codes, minlength=count))[np.argsort(first)]
    lost, gained = np.cumsum(means < 0), np.cumsum(means > 0)
    loss = flip_log_e(lost, gained)
    bar = -math.log(alpha)
    pass_e, pass_at = math.nan, None
    if margin is not None:
        kept = noninferiority_log_e(means, margin)
        pass_e, pass_at = _exp(float(kept.max())), _first(kept >= bar)
    loss_e = max(1.0, _exp(float(loss.max())))
    return Monitoring(
        loss_e=loss_e,
        loss_p=1 / loss_e,
        loss_at=_first(loss >= bar),
        pass_e=pass_e,
        pass_at=pass_at,
        units=count,
        lost=int(lost[-1]),
        gained=int(gained[-1]),
    )


def _exp(value: float) -> float:
    return math.exp(value) if value < 709 else math.inf


def _first(reached: NDArray[np.bool_]) -> int | None:
    return int(np.argmax(reached)) + 1 if reached.any() else None
