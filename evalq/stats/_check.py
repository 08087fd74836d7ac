"""Checks of what goes into a test. Users' numbers raise StatisticsError, never an assertion."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from evalq.errors import StatisticsError

__all__ = [
    "cluster_codes",
    "finite_vector",
    "flip_counts",
    "inside",
    "positive_count",
]


def inside(value: float, low: float, high: float, what: str) -> float:
    """``value`` if it lies strictly between ``low`` and ``high``.

    Raises:
        StatisticsError: it does not, or it is no finite number.
    """
    number = float(value)
    if not math.isfinite(number) or not low < number < high:
        raise StatisticsError(
            f"{what} {value!r} is not between {low:g} and {high:g}",
            hint=f"Give a number above {low:g} and below {high:g}.",
        )
    return number


def positive_count(value: int, what: str) -> int:
    """``value`` as an int of at least 1.

    Raises:
        StatisticsError: it is no whole number, or below 1.
    """
    if isinstance(value, bool) or float(value) != math.floor(float(value)) or value < 1:
        raise StatisticsError(f"{what} {value!r} is not a whole number of at least 1")
    return int(value)


def flip_counts(
    lost: ArrayLike, gained: ArrayLike, items: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Counts of flips, broadcast against one another, as float64.

    Raises:
        StatisticsError: a count that is negative, no whole number or NaN; no items; more flips
            than items.
    """
    arrays = np.broadcast_arrays(*(np.asarray(x, dtype=np.float64) for x in (lost, gained, items)))
    for name, array in zip(("lost", "gained", "items"), arrays, strict=True):
        if not np.isfinite(array).all() or (array != np.floor(array)).any() or (array < 0).any():
            raise StatisticsError(f"{name} must be whole numbers of at least 0, not {_show(array)}")
    b, c, n = arrays
    if (n < 1).any():
        raise StatisticsError(
            "there are no items to compare", hint="A comparison needs at least one paired item."
        )
    if (b + c > n).any():
        raise StatisticsError(
            f"lost + gained exceed the items: {_show(b)} + {_show(c)} > {_show(n)}",
            hint="lost and gained count items that changed, so they sum to at most the items.",
        )
    return b, c, n


def _show(array: NDArray[np.float64]) -> str:
    return f"{array.item():g}" if array.size == 1 else f"an array of {array.size}"


def finite_vector(values: ArrayLike, what: str) -> NDArray[np.float64]:
    """``values`` as a float64 vector.

    Raises:
        StatisticsError: it is empty, not one-dimensional, or holds a NaN or an infinity.
    """
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        raise StatisticsError(f"{what} are not all numbers") from None
    if array.ndim != 1 or array.size == 0:
        raise StatisticsError(f"{what} must be a vector with at least one number")
    bad = int((~np.isfinite(array)).sum())
    if bad:
        raise StatisticsError(
            f"{bad} of {array.size} {what} are not finite",
            hint="A NaN or an infinity has no place in a mean: find out where it comes from.",
        )
    return array


def cluster_codes(
    clusters: Sequence[Any] | NDArray[Any] | None, size: int
) -> tuple[NDArray[np.intp], int]:
    """Codes ``[size]`` in ``0..G-1`` of the cluster of each value, and G.

    Raises:
        StatisticsError: there are not as many clusters as values, or one has no name.
    """
    if clusters is None:
        return np.arange(size), size
    labels = np.asarray(clusters)
    if labels.shape != (size,):
        raise StatisticsError(f"{labels.size} cluster labels were given for {size} values")
    if labels.dtype.kind == "O":
        if any(x is None or x != x for x in labels.tolist()):
            raise StatisticsError("a value has no cluster label")
        table: dict[Any, int] = {}
        codes = np.fromiter((table.setdefault(x, len(table)) for x in labels.tolist()), np.intp)
        return codes, len(table)
    if labels.dtype.kind == "f" and np.isnan(labels).any():
        raise StatisticsError("a value has no cluster label")
    unique, codes = np.unique(labels, return_inverse=True)
    return codes.astype(np.intp), len(unique)
