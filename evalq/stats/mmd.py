"""Are two sets of completions of the same prompts from one distribution? Texts alone decide.

The maximum mean discrepancy with a Hamming kernel of Gao, Liang and Guestrin, "Model Equality
Testing: Which Model Is This API Serving?" (arXiv 2410.20247): completions of one prompt are
compared position by position, those of different prompts not at all.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from evalq.errors import StatisticsError
from evalq.stats._check import positive_count

__all__ = ["EqualityTest", "hamming_kernel", "mmd_test"]

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class EqualityTest:
    """Args:
    statistic: unbiased squared discrepancy, summed over prompts; may be below 0.
    p: (1 + #) / (B + 1) over permutations within prompts; never 0.
    """

    statistic: float
    p: float


def hamming_kernel(completions: ArrayLike) -> Floats:
    """Share of equal positions of every pair: ``[N, L]`` whole numbers (padded) to ``[N, N]``."""
    rows = np.asarray(completions)
    if rows.ndim != 2:
        raise StatisticsError("completions must be a table of one row each, padded to one length")
    out = np.zeros((rows.shape[0], rows.shape[0]))
    for column in rows.T:
        out += column[:, None] == column[None, :]
    out /= max(1, rows.shape[1])
    return out


def _statistic(kernel: Floats, labels: Floats) -> Floats:
    """Unbiased MMD² for label vectors ``[B, N]`` of one prompt (1 first sample, 0 second)."""
    n = labels.sum(1)
    m = labels.shape[1] - n
    off = kernel - np.diag(np.diag(kernel))
    a = ((labels @ off) * labels).sum(1)
    other = 1 - labels
    b = ((other @ off) * other).sum(1)
    cross = ((labels @ kernel) * other).sum(1)
    out: Floats = a / (n * (n - 1)) + b / (m * (m - 1)) - 2 * cross / (n * m)
    return out


def mmd_test(
    first: ArrayLike,
    second: ArrayLike,
    first_prompts: ArrayLike,
    second_prompts: ArrayLike,
    rng: np.random.Generator,
    permutations: int = 999,
) -> EqualityTest:
    """Permutation test of equal distributions, labels exchanged within a prompt.

    Args:
        first: ``[N, L]`` whole numbers: characters or tokens, padded to one length.
        second: ``[M, L]``.
        first_prompts, second_prompts: ``[N]`` and ``[M]``: which prompt each completes. Prompts
            with fewer than two completions on a side say nothing and are left out.
        rng: of the permutations.
        permutations: B.

    Raises:
        StatisticsError: shapes that do not fit, or no prompt with two completions on each side.
    """
    positive_count(permutations, "permutations")
    x, y = np.asarray(first), np.asarray(second)
    p, q = np.asarray(first_prompts), np.asarray(second_prompts)
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1]:
        raise StatisticsError("completions must be two tables of rows of one length")
    if p.shape != x.shape[:1] or q.shape != y.shape[:1]:
        raise StatisticsError("every completion needs the prompt that it completes")
    totals = np.zeros(permutations + 1)
    used = 0
    for prompt in np.unique(p):
        mine, theirs = x[p == prompt], y[q == prompt]
        if len(mine) < 2 or len(theirs) < 2:
            continue
        used += 1
        size = len(mine) + len(theirs)
        labels = np.zeros((permutations + 1, size))
        labels[0, : len(mine)] = 1
        order = np.argsort(rng.random((permutations, size)), axis=1)
        np.put_along_axis(labels[1:], order[:, : len(mine)], 1.0, axis=1)
        totals += _statistic(hamming_kernel(np.concatenate([mine, theirs])), labels)
    if not used:
        raise StatisticsError("no prompt has two completions on each side")
    hits = int((totals[1:] >= totals[0] - 1e-12).sum())
    return EqualityTest(float(totals[0]), (1 + hits) / (permutations + 1))
