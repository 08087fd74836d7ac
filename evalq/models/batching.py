"""Cuts requests into batches, by the requests alone.

Requests whose prompts begin alike (the examples of a few-shot prompt) come into one batch, so that
the common part is read once; the rest is sorted by length, so that little is padded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Budget", "Shape", "common_prefix", "of_like_length", "pack"]

_MIN_SHARED = 32
"""A shared prefix of fewer tokens is not worth a pass of its own."""

_PADDED = 0.8
"""A row of less than this share of the longest is padded only where a pass is small."""

_MIN_CLUSTER = 4
"""Fewer prompts than this with a common prefix go with the rest."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What a prompt and all that is asked of it take.

    Args:
        head: tokens of the prompt.
        rows: sequences that follow the prompt (choices, or one generation).
        tail: tokens that the longest of them reads or writes.
        scored: logits taken of each of them at once.
    """

    head: tuple[int, ...]
    rows: int
    tail: int
    scored: int


@dataclass(frozen=True, slots=True)
class Budget:
    """Limits of a batch.

    Args:
        tokens: padded tokens read at once.
        kept: padded tokens whose keys and values are held at once.
        logits: rows of logits at once.
        rows: sequences at once.
        enough: tokens from which on prompts that are much shorter begin another batch.
    """

    tokens: int
    kept: int
    logits: int
    rows: int
    enough: int = 1 << 62

    def fits(self, batch: _Batch) -> bool:
        """Whether these prompts go into one batch."""
        logits = batch.rows * batch.scored
        return (
            batch.shared + len(batch.items) * (batch.longest - batch.shared) + logits <= self.tokens
            and batch.rows * (batch.longest + batch.tail) <= self.kept
            and logits <= self.logits
            and batch.rows <= self.rows
        )

    def pads(self, batch: _Batch, length: int) -> bool:
        """Whether a prompt of that length had better begin another batch than be padded."""
        longest = batch.longest - batch.shared
        full = batch.shared + len(batch.items) * longest >= self.enough
        return full and length - batch.shared < _PADDED * longest


@dataclass(frozen=True, slots=True)
class _Batch:
    items: tuple[int, ...] = ()
    longest: int = 0
    shared: int = 0
    tail: int = 0
    rows: int = 0
    scored: int = 0

    def plus(self, index: int, shape: Shape, shared: int) -> _Batch:
        return _Batch(
            (*self.items, index),
            max(self.longest, len(shape.head)),
            shared if not self.items else min(self.shared, shared),
            max(self.tail, shape.tail),
            self.rows + shape.rows,
            max(self.scored, shape.scored),
        )


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """Number of first elements that two sequences have in common."""
    limit = min(len(a), len(b))
    if a[:limit] == b[:limit]:
        return limit
    low, high = 0, limit
    while high - low > 1:
        middle = (low + high) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle
    return low


def of_like_length(lengths: Sequence[int], enough: int) -> list[list[int]]:
    """Indices in groups of like lengths, the longest first.

    Args:
        lengths: of rows that are padded to the longest of their group.
        enough: tokens of a group, padding included, from which on a row of less than four fifths of
            its longest begins another.
    """
    groups: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if groups:
            longest = lengths[groups[-1][0]]
            if len(groups[-1]) * longest < enough or lengths[i] >= _PADDED * longest:
                groups[-1].append(i)
                continue
        groups.append([i])
    return groups


def _clusters(shapes: Sequence[Shape]) -> tuple[list[list[int]], list[int]]:
    """Indices of prompts that begin alike, cluster by cluster, and of all others."""
    order = sorted(range(len(shapes)), key=lambda i: (shapes[i].head, i))
    runs: list[list[int]] = []
    common = 0
    for i in order:
        if runs:
            # Sorted by tokens, so the least of neighbouring overlaps is the overlap of all.
            overlap = common_prefix(shapes[runs[-1][-1]].head, shapes[i].head)
            joint = overlap if len(runs[-1]) == 1 else min(common, overlap)
            if joint >= max(_MIN_SHARED, common // 2, len(shapes[i].head) // 4):
                runs[-1].append(i)
                common = joint
                continue
        runs.append([i])
        common = 0
    clusters = [run for run in runs if len(run) >= _MIN_CLUSTER]
    return clusters, [i for run in runs if len(run) < _MIN_CLUSTER for i in run]


def pack(shapes: Sequence[Shape], budget: Budget) -> list[list[int]]:
    """Batches of indices into ``shapes``; a shape that fits no budget has a batch of its own.

    Args:
        shapes: one for each prompt.
        budget: limits of a batch.

    Returns:
        Batches: those of each cluster that shares a prefix, then all others; the longest prompts
        first.
    """
    clusters, alone = _clusters(shapes)
    batches: list[list[int]] = []
    for group in (*clusters, alone):
        batch, first = _Batch(), ()  # type: _Batch, tuple[int, ...]
        for i in sorted(group, key=lambda i: (-len(shapes[i].head), shapes[i].head, i)):
            head = shapes[i].head
            shared = 0 if group is alone else common_prefix(first or head, head)
            grown = batch.plus(i, shapes[i], shared)
            if batch.items and (budget.pads(batch, len(head)) or not budget.fits(grown)):
                batches.append(list(batch.items))
                grown = _Batch().plus(i, shapes[i], 0 if group is alone else len(head))
                first = ()
            batch, first = grown, first or head
        if batch.items:
            batches.append(list(batch.items))
    return batches
