"""Variants of several runs, side by side on the items that all of them were asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from evalq.compare.runs import Run
from evalq.compare.slices import SliceResult, slice_result
from evalq.errors import ComparisonError

__all__ = ["Entrant", "Shared", "shared_items"]

_KEYS = ["task", "item_id", "filter", "metric", "prompt_hash", "target_hash"]
"""What makes two records of different runs records of the same item."""


@dataclass(frozen=True)
class Entrant:
    """One variant of one run.

    Args:
        run: index of its run.
        variant: label there.
        label: of both.
    """

    run: int
    variant: str
    label: str


@dataclass(frozen=True)
class Shared:
    """All variants of several runs on the items they share.

    Args:
        runs: in the order given.
        names: of the runs, each of its own.
        entrants: the columns of ``scores``.
        scores: float64 [items, entrants].
        slices: most specific slice of each item, as the first run has it.
        clusters: int64 [items].
        asked: scored items of each run.
        left_out: label of an entrant to why it is none.
    """

    runs: tuple[Run, ...]
    names: tuple[str, ...]
    entrants: tuple[Entrant, ...]
    scores: npt.NDArray[np.float64]
    slices: npt.NDArray[np.object_]
    clusters: npt.NDArray[np.int64]
    asked: tuple[int, ...]
    left_out: dict[str, str]

    @property
    def quality(self) -> npt.NDArray[np.float64]:
        """Accuracy of each entrant over the shared items, [entrants]."""
        means: npt.NDArray[np.float64] = self.scores.mean(axis=0)
        return means

    @property
    def resampled(self) -> npt.NDArray[np.int64] | None:
        """``clusters`` where items share one, else ``None``."""
        return self.clusters if len(np.unique(self.clusters)) < len(self.clusters) else None

    def effect(self, ours: int, theirs: int, confidence: float, within: str = "") -> SliceResult:
        """One entrant against another on the shared items, paired.

        Args:
            ours, theirs: columns of ``scores``.
            confidence: of the interval.
            within: only items of this slice and of what is in it; ``""`` for all.
        """
        rows = self.rows(within)
        frame = pd.DataFrame(
            {
                "variant_score": self.scores[rows, ours],
                "baseline_score": self.scores[rows, theirs],
                "cluster": self.clusters[rows],
            }
        )
        return slice_result(within or "overall", frame, False, confidence)

    def rows(self, within: str = "") -> npt.NDArray[np.bool_]:
        """Which items are of a slice; ``""`` for all, [items]."""
        if not within:
            return np.ones(len(self.slices), dtype=bool)
        return np.array([s == within or s.startswith(within + "/") for s in self.slices])


def _names(runs: Sequence[Run]) -> tuple[str, ...]:
    """A name for each run: its own, with its date, directory or number where that is not enough."""
    names = [str(r.info["name"]) for r in runs]
    for more in (
        [str(r.info.get("created", ""))[:10] for r in runs],
        [r.path.resolve().name for r in runs],
        [f"#{i + 1}" for i in range(len(runs))],
    ):
        twice = {n for n in names if names.count(n) > 1}
        if not twice:
            break
        names = [f"{n} {m}" if n in twice and m else n for n, m in zip(names, more, strict=True)]
    return tuple(names)


def _records(run: Run, name: str, variant: str) -> pd.DataFrame:
    rows = run.items.iloc[run.rows[variant]]
    rows = rows[rows["score"].notna()]
    frame = rows[[*_KEYS, "slice", "cluster"]].astype(str)
    frame["score"] = rows["score"].to_numpy(dtype=float)
    if frame.duplicated(_KEYS).any():
        raise ComparisonError(f"variant {variant!r} of run {name!r} has an item twice")
    return frame


def shared_items(runs: Sequence[Run]) -> Shared:
    """Line up the variants of several runs by task, item, filter, metric and the hashes of prompt
    and target. Items that a run was not asked are left out for all.

    Raises:
        ComparisonError: fewer than two runs, a run whose parent has no scored items, an item that
            is there twice, or no item in common.
    """
    if len(runs) < 2:
        raise ComparisonError("one run is not several", hint="Give two run directories or more.")
    names = _names(runs)
    common: pd.DataFrame | None = None
    asked = []
    for run, name in zip(runs, names, strict=True):
        mine = _records(run, name, run.parent) if run.parent in run.measured else pd.DataFrame()
        if mine.empty:
            raise ComparisonError(f"run {name!r} has no scored items of its parent")
        asked.append(len(mine))
        kept = mine[[*_KEYS, "slice", "cluster"]] if common is None else mine[_KEYS]
        common = kept if common is None else common.merge(kept, on=_KEYS, how="inner")
    assert common is not None
    if common.empty:
        raise ComparisonError(
            "the runs have no item in common",
            hint="Ask all of them the same suites or workload; prompts count by their hashes.",
        )
    entrants, columns, left_out = [], [], {}
    for index, (run, name) in enumerate(zip(runs, names, strict=True)):
        for variant in run.measured:
            label = f"{name} · {variant}"
            mine = _records(run, name, variant)
            scores = common[_KEYS].merge(mine, on=_KEYS, how="left")["score"]
            if scores.isna().any():
                left_out[label] = f"it lacks {int(scores.isna().sum())} of the shared items"
                continue
            entrants.append(Entrant(index, variant, label))
            columns.append(scores.to_numpy(dtype=float))
    return Shared(
        runs=tuple(runs),
        names=names,
        entrants=tuple(entrants),
        scores=np.column_stack(columns),
        slices=common["slice"].to_numpy(dtype=object),
        clusters=pd.factorize(common["cluster"])[0].astype(np.int64),
        asked=tuple(asked),
        left_out=left_out,
    )
