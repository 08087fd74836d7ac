"""A test without any distribution: flip the signs of whole clusters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from evalq.stats._check import cluster_codes, finite_vector, positive_count

__all__ = ["sign_flip_test"]


def sign_flip_test(
    differences: ArrayLike,
    rng: np.random.Generator,
    clusters: Sequence[Any] | NDArray[Any] | None = None,
    permutations: int = 9999,
) -> float:
    """One-sided p of "the variant is not worse", by flipping the signs of cluster sums.

    p = (1 + #) / (B + 1), # the permutations whose sum is at most the observed one: never 0
    (Phipson and Smyth 2010). Valid when differences are symmetric around 0 under the hypothesis.

    Args:
        differences: ``[N]`` variant - parent.
        rng: source of the signs.
        clusters: ``[N]`` labels; a cluster's differences keep together.
        permutations: B.

    Raises:
        StatisticsError: no values, NaN, labels that do not fit, no permutations.

    >>> sign_flip_test([-1.0] * 20, np.random.default_rng(0), permutations=99)
    0.01
    """
    values = finite_vector(differences, "differences")
    positive_count(permutations, "permutations")
    codes, count = cluster_codes(clusters, values.size)
    sums = np.bincount(codes, weights=values, minlength=count)
    # Sorted: the p of a seed then depends neither on the order of the items nor on their names.
    sums = np.sort(sums[sums != 0])
    if sums.size == 0:
        return 1.0
    observed = float(sums.sum())
    slack = 1e-12 * float(np.abs(sums).sum())
    hits, left = 0, permutations
    while left:
        step = min(left, max(1, 4_000_000 // sums.size))
        signs = rng.integers(0, 2, (step, sums.size), dtype=np.int8) * 2 - 1
        hits += int((signs @ sums <= observed + slack).sum())
        left -= step
    return (1 + hits) / (permutations + 1)
