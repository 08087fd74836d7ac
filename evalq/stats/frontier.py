"""Which variants no other beats on both cost and quality, and how sure that is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from evalq.errors import StatisticsError
from evalq.stats._check import cluster_codes, positive_count

__all__ = ["frontier_probability", "pareto"]

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


def _finite(values: ArrayLike, what: str, dimensions: tuple[int, ...]) -> Floats:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim not in dimensions or array.size == 0 or not np.isfinite(array).all():
        raise StatisticsError(f"{what} must be a table of finite numbers, not empty")
    return array


def _dearer(costs: Floats) -> tuple[Bools, Bools]:
    """``[V, V]``: j costs no more than i in anything; j costs less than i in something."""
    table = costs if costs.ndim == 2 else costs[:, None]
    no_more: Bools = np.all(table[None, :, :] <= table[:, None, :], axis=2)
    less: Bools = np.any(table[None, :, :] < table[:, None, :], axis=2)
    return no_more, less


def _undominated(quality: Floats, no_more: Bools, less: Bools) -> Bools:
    """``[R, V]`` from qualities ``[R, V]``, variant by variant, so that memory stays R x V."""
    out = np.empty(quality.shape, dtype=bool)
    for i in range(quality.shape[1]):
        mine = quality[:, i : i + 1]
        beaten = no_more[i] & ((quality > mine) | (less[i] & (quality >= mine)))
        out[:, i] = ~beaten.any(axis=1)
    return out


def pareto(costs: ArrayLike, quality: ArrayLike) -> Bools:
    """The variants that no other variant beats.

    j beats i when it costs no more and is no worse, and one of the two strictly. Twins with equal
    numbers do not beat each other.

    Args:
        costs: ``[V]``, or ``[V, K]`` for several costs; lower is better (negate tokens/s).
        quality: ``[V]``; higher is better.

    Raises:
        StatisticsError: empty, NaN, or lengths that differ.

    >>> pareto([16, 8, 8, 4], [0.90, 0.90, 0.85, 0.80]).tolist()
    [False, True, False, True]
    """
    cost = _finite(costs, "costs", (1, 2))
    values = _finite(quality, "quality", (1,))
    if len(cost) != len(values):
        raise StatisticsError(f"{len(cost)} costs stand against {len(values)} qualities")
    found: Bools = _undominated(values[None, :], *_dearer(cost))[0]
    return found


def frontier_probability(
    scores: ArrayLike,
    costs: ArrayLike,
    rng: np.random.Generator,
    resamples: int = 2000,
    clusters: Sequence[Any] | NDArray[Any] | None = None,
) -> Floats:
    """Probability of each variant to be on the frontier, by resampling items.

    The same items (clusters, where given) are drawn for all variants at once, so that what they
    share cancels. Quality is the mean score of the resample.

    Args:
        scores: ``[N, V]``, items by variants, higher is better.
        costs: ``[V]`` or ``[V, K]``, lower is better, without error.
        rng: source of the resamples.
        resamples: of the bootstrap.
        clusters: ``[N]`` labels of items that go together.

    Returns:
        ``[V]`` shares of the resamples in which the variant is not dominated.

    Raises:
        StatisticsError: empty or ragged tables, NaN, no resamples, labels that do not fit.
    """
    table = _finite(scores, "scores", (2,))
    cost = _finite(costs, "costs", (1, 2))
    if table.shape[1] != len(cost):
        raise StatisticsError(f"{len(cost)} costs stand against {table.shape[1]} variants")
    count = positive_count(resamples, "resamples")
    codes, groups = cluster_codes(clusters, len(table))
    sizes = np.bincount(codes, minlength=groups).astype(np.float64)
    sums = table
    if clusters is not None:
        sums = np.stack(
            [np.bincount(codes, weights=column, minlength=groups) for column in table.T], axis=1
        )
    no_more, less = _dearer(cost)
    hits = np.zeros(len(cost))
    # Groups with equal scores are drawn as one kind: the same distribution, and right-or-wrong
    # items of a few variants are of few kinds.
    kinds, sizes, sums = _kinds(sizes, sums)
    # About 64 MB of draws at a time.
    step = max(1, 8_000_000 // len(kinds))
    for start in range(0, count, step):
        rows = min(step, count - start)
        drawn = rng.multinomial(groups, kinds / groups, rows).astype(np.float64)
        # Rounded: twins that differ by the order of summation must count as equal.
        quality = np.round(drawn @ sums / (drawn @ sizes)[:, None], 12)
        hits += _undominated(quality, no_more, less).sum(axis=0)
    return hits / count


def _kinds(sizes: Floats, sums: Floats) -> tuple[Floats, Floats, Floats]:
    """How many groups there are of each kind, and the kind's size and sums."""
    table = np.column_stack([sizes, sums])
    kinds, counts = np.unique(table, axis=0, return_counts=True)
    return counts.astype(np.float64), kinds[:, 0], kinds[:, 1:]
