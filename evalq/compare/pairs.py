"""The records of two variants, item by item. What was not asked alike is refused, never dropped."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from evalq.compare.adaptive import stops_of
from evalq.compare.runs import Run
from evalq.errors import ComparisonError

__all__ = ["Pairs", "pair"]

_NAMES = ["suite", "task", "item_id", "slice", "filter", "metric"]
_MINE = ["metric", "score", "nll", "units"]
_BASE = [*_NAMES, "score", "nll", "units"]

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Pairs:
    """Two variants' records of the same items, in one order.

    Args:
        variant, baseline: labels.
        frame: one row an item: ``suite``, ``task``, ``item_id``, ``slice``, ``filter``, ``metric``,
            ``cluster`` (int64 code), ``baseline_score``, ``variant_score`` (float64; NaN for
            perplexity tasks), ``baseline_nll``, ``variant_nll``, ``units`` (float64; NaN for other
            tasks), ``weight`` (float64, of the item's task), ``baseline_row``, ``variant_row`` (row
            numbers in ``Run.items``).
    """

    variant: str
    baseline: str
    frame: pd.DataFrame

    @property
    def scored(self) -> pd.DataFrame:
        """The items that have a score."""
        return self.frame[self.frame["baseline_score"].notna()]

    @property
    def likelihoods(self) -> pd.DataFrame:
        """The items of perplexity tasks."""
        return self.frame[self.frame["baseline_nll"].notna()]


def pair(run: Run, variant: str, baseline: str = "parent") -> Pairs:
    """Pair the records of two variants by (task, item, filter).

    In an adaptive run a variant was asked some of the items; the pairs are then of those that both
    were asked.

    Raises:
        ComparisonError: no such variant; an item on one side only, or twice; prompts, targets,
            metrics or units that differ; an item with neither a score nor a likelihood. The task
            and the item are named.
    """
    variant, baseline = run.resolve(variant), run.resolve(baseline)
    empty = np.array([], dtype=np.int64)
    ours, theirs = run.rows.get(variant, empty), run.rows.get(baseline, empty)
    for label, rows in ((variant, ours), (baseline, theirs)):
        _check_unique(run, label, rows)
    stops = stops_of(run, variant, baseline)
    if stops is None:
        _check_same_items(run, (variant, ours), (baseline, theirs))
    else:
        for label, rows in ((variant, ours), (baseline, theirs)):
            _check_stops(run, label, rows)
        common = np.intersect1d(run.keys[ours], run.keys[theirs])
        ours = ours[np.isin(run.keys[ours], common)]
        theirs = theirs[np.isin(run.keys[theirs], common)]
    for column, word in (("prompt_hash", "prompts"), ("target_hash", "targets")):
        codes = run.hashes[column]
        _refuse(run, variant, baseline, ours, codes[ours] != codes[theirs], f"the {word} differ")
    mine, base = run.items[_MINE].iloc[ours], run.items[_BASE].iloc[theirs]
    other_metric = mine["metric"].cat.codes.to_numpy() != base["metric"].cat.codes.to_numpy()
    _refuse(run, variant, baseline, ours, other_metric, "the metrics differ")
    frame = base[_NAMES].reset_index(drop=True)
    frame["cluster"] = run.clusters[theirs]
    for name in ("score", "nll"):
        frame[f"baseline_{name}"] = base[name].to_numpy(dtype=float)
        frame[f"variant_{name}"] = mine[name].to_numpy(dtype=float)
    frame["units"] = base["units"].to_numpy(dtype=float)
    frame["weight"] = _weights(run, frame["task"])
    frame["baseline_row"], frame["variant_row"] = theirs, ours
    _check_values(run, frame, mine["units"].to_numpy(dtype=float), (variant, baseline))
    return Pairs(variant, baseline, frame)


def _weights(run: Run, tasks: pd.Series[str]) -> npt.NDArray[np.float64]:
    weights = run.weights
    if not weights:
        return np.ones(len(tasks))
    return np.array([weights.get(str(task), 1.0) for task in tasks])


def _check_values(
    run: Run, frame: pd.DataFrame, units: npt.NDArray[np.float64], labels: tuple[str, str]
) -> None:
    ours = frame["variant_row"].to_numpy()
    for name in ("score", "nll"):
        one_sided = frame[f"baseline_{name}"].isna() != frame[f"variant_{name}"].isna()
        _refuse(run, *labels, ours, one_sided.to_numpy(), f"only one side has a {name}")
    scored, likely = frame["baseline_score"].notna(), frame["baseline_nll"].notna()
    _refuse(run, *labels, ours, ~(scored | likely).to_numpy(), "there is no score")
    base = frame["units"].to_numpy()
    other = likely.to_numpy() & ~((base == units) & (base > 0))
    _refuse(run, *labels, ours, other, "the units of the likelihoods differ or are none")
    for name in ("baseline_nll", "variant_nll"):
        infinite = likely & ~np.isfinite(frame[name])
        _refuse(run, *labels, ours, infinite.to_numpy(), "a likelihood is not finite")


def _name(run: Run, row: int) -> str:
    record = run.items.iloc[row]
    return f"task {record['task']!r}, item {record['item_id']!r}"


def _refuse(
    run: Run, variant: str, baseline: str, rows: Rows, bad: npt.NDArray[np.bool_], why: str
) -> None:
    found = np.flatnonzero(bad)
    if len(found):
        raise ComparisonError(
            f"{variant!r} and {baseline!r} cannot be compared: {_name(run, int(rows[found[0]]))}: "
            f"{why} ({len(found)} of {len(rows)} items)",
            hint="Both have to be asked the same items in the same words: run them in one plan.",
        )


def _check_unique(run: Run, label: str, rows: Rows) -> None:
    twice = np.flatnonzero(np.diff(run.keys[rows]) == 0)
    if len(twice):
        raise ComparisonError(
            f"{label!r} has {_name(run, int(rows[twice[0]]))} more than once",
            hint="A task may be listed by one suite of a plan only.",
        )


def _check_same_items(run: Run, variant: tuple[str, Rows], baseline: tuple[str, Rows]) -> None:
    (ours_label, ours), (theirs_label, theirs) = variant, baseline
    for label, other, rows, reference in (
        (ours_label, theirs_label, ours, theirs),
        (theirs_label, ours_label, theirs, ours),
    ):
        missing = reference[~np.isin(run.keys[reference], run.keys[rows])]
        if len(missing):
            raise ComparisonError(
                f"{label!r} has no record of {_name(run, int(missing[0]))}, which {other!r} has "
                f"({len(missing)} of {len(reference)} items are missing)",
                hint="The run is not finished: run the same command again."
                if not run.finished
                else "Only variants that were asked the same items can be compared.",
            )


def _check_stops(run: Run, label: str, rows: Rows) -> None:
    """Refuse records of an adaptive variant that are not those that run.json counts."""
    stops = stops_of(run, label)
    if stops is None:
        return
    mine = run.items.iloc[rows]
    counts = mine[mine["score"].notna()]["slice"].astype(str).value_counts()
    for name, stop in stops.items():
        found = int(counts.get(name, 0))
        if found != stop["used"]:
            raise ComparisonError(
                f"{label!r} has {found} records of slice {name!r}, and run.json counts "
                f"{stop['used']} that were asked",
                hint="The table or run.json was changed: run the plan again.",
            )
