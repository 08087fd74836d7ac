"""A stored run, opened: the tables as pandas frames, and what ``run.json`` says of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from evalq.errors import ComparisonError, StoreError, nearest
from evalq.plan import RecommendPlan
from evalq.schema import CostRecord, FidelityRecord, ItemRecord
from evalq.store.files import RunDirectory
from evalq.store.tables import read_table, record_schema

__all__ = ["CONTROL", "Run", "load_run"]

CONTROL = "@control"
"""Suffix of the negative control's label in ``fidelity.parquet``."""

_CATEGORIES = frozenset(
    [
        "variant",
        "variant_hash",
        "suite",
        "task",
        "task_version",
        "slice",
        "filter",
        "metric",
        "metrics",
        "item_id",
        "cluster",
        "doc_hash",
        "prompt_hash",
        "target_hash",
        "prompt",
        "target",
        "text",
        "document",
        "execution",
    ]
)
"""Text columns that repeat, by variant at least: kept once a value."""


@dataclass(frozen=True)
class Run:
    """A run directory in memory. Labels and other repeated texts are pandas categories.

    Args:
        path: the directory.
        info: ``run.json``.
        items: one row an item record; columns of ``schema.ItemRecord``.
        fidelity: one row a position; columns of ``schema.FidelityRecord``; may be empty.
        costs: one row a repeat; columns of ``schema.CostRecord``; may be empty.
    """

    path: Path
    info: Mapping[str, Any]
    items: pd.DataFrame
    fidelity: pd.DataFrame
    costs: pd.DataFrame

    @property
    def finished(self) -> bool:
        """Whether the run ended; if not, its tables may lack variants."""
        return bool(self.info["status"] == "done")

    @property
    def variants(self) -> tuple[str, ...]:
        """Labels in the run's order, the parent first."""
        return tuple(str(v["name"]) for v in self.info["variants"])

    @property
    def parent(self) -> str:
        """The label of the parent."""
        return self.variants[0]

    @property
    def control(self) -> str:
        """The label of the negative control (the parent against itself) in ``fidelity``."""
        return self.parent + CONTROL

    @property
    def recommend(self) -> RecommendPlan:
        """The margins that the run's own plan sets for a recommendation."""
        return RecommendPlan.model_validate(self.info.get("plan", {}).get("recommend", {}))

    @property
    def weights(self) -> Mapping[str, float]:
        """By task, what an item of it counts in slices and overall, where that is not 1."""
        tasks = [t for suite in self.info.get("suites") or () for t in suite.get("tasks") or ()]
        found = {str(t["task"]): float(t.get("weight", 1.0)) for t in tasks if "task" in t}
        return {task: weight for task, weight in found.items() if weight != 1.0}

    def variant_info(self, variant: str) -> Mapping[str, Any]:
        """The entry of ``variant`` in ``run.json``.

        Raises:
            ComparisonError: no variant of that name; the nearest is suggested.
        """
        for entry in self.info["variants"]:
            if entry["name"] == variant:
                found: Mapping[str, Any] = entry
                return found
        raise ComparisonError(
            f"{self.path} has no variant {variant!r}", hint=nearest(variant, self.variants)
        )

    def resolve(self, label: str) -> str:
        """``label``, or the parent's own label for ``"parent"``.

        Raises:
            ComparisonError: no variant of that name.
        """
        if label == "parent" and label not in self.variants:
            return self.parent
        self.variant_info(label)
        return label

    @cached_property
    def kv_bits(self) -> Mapping[str, int]:
        """Bits that each variant's KV cache was rounded to in the evaluation; 16 is as it is."""
        planned = {
            str(v.get("name")): v.get("kv_bits")
            for v in self.info.get("plan", {}).get("variants", ())
        }
        return {name: int(planned.get(name) or 16) for name in self.variants}

    @cached_property
    def measured(self) -> tuple[str, ...]:
        """Labels that have item records, in the run's order."""
        present = set(self.items["variant"].unique())
        return tuple(v for v in self.variants if v in present)

    @cached_property
    def rows(self) -> Mapping[str, npt.NDArray[np.int64]]:
        """Row numbers in ``items`` of each variant, sorted by ``keys``."""
        codes = self.items["variant"].cat.codes.to_numpy()
        out = {}
        for code, name in enumerate(self.items["variant"].cat.categories):
            found = np.flatnonzero(codes == code)
            out[str(name)] = found[np.argsort(self.keys[found], kind="stable")]
        return out

    @cached_property
    def keys(self) -> npt.NDArray[np.int64]:
        """int64 [items]: equal where task, item id and filter are."""
        return _combine(self.items, ("task", "item_id", "filter"))

    @cached_property
    def clusters(self) -> npt.NDArray[np.int64]:
        """int64 [items]: equal where the cluster is."""
        return _combine(self.items, ("cluster",))

    @cached_property
    def hashes(self) -> Mapping[str, npt.NDArray[np.int64]]:
        """For ``prompt_hash`` and ``target_hash`` int64 [items]: equal where the hash is."""
        return {name: _combine(self.items, (name,)) for name in ("prompt_hash", "target_hash")}


def _combine(frame: pd.DataFrame, columns: tuple[str, ...]) -> npt.NDArray[np.int64]:
    total = np.zeros(len(frame), dtype=np.int64)
    for name in columns:
        column = frame[name].cat
        total = total * max(len(column.categories), 1) + column.codes.to_numpy()
        total = pd.factorize(total)[0].astype(np.int64)
    return total


def _frame(path: Path, record: type, needed: bool) -> pd.DataFrame:
    """A table as a frame; empty where the file is missing and not needed."""
    schema = record_schema(record)
    texts = [name for name in schema.names if name in _CATEGORIES]
    present = path.exists() or needed
    table = read_table(path, record, texts) if present else schema.empty_table()
    frame: pd.DataFrame = table.to_pandas(split_blocks=True, self_destruct=True)
    for name in texts:
        frame[name] = frame[name].astype("category")
    return frame


def load_run(path: Path) -> Run:
    """Open a run directory for reading. No model is loaded, and nothing is written.

    A run that is not done yet opens with the tables it has.

    Raises:
        StoreError: no run directory, of a newer format version, or a broken table.
    """
    path = Path(path)
    directory = RunDirectory(path)
    info = directory.read_info()
    if info is None:
        raise StoreError(
            f"{path} is no run directory: it has no run.json",
            hint="Give the directory that `evalq run --out` wrote.",
        )
    missing = [k for k in ("status", "variants", "parent", "name") if k not in info]
    if missing or not info["variants"]:
        raise StoreError(f"{path / 'run.json'} lacks {', '.join(missing) or 'variants'}")
    done = info["status"] == "done"
    plan = info.get("plan", {})
    wanted = {
        "items": bool(plan.get("suites") or plan.get("workloads") or info.get("suites")),
        "fidelity": bool(plan.get("fidelity", {}).get("enabled", False)),
        "costs": bool(plan.get("cost", {}).get("enabled", False)),
    }
    return Run(
        path=path,
        info=info,
        items=_frame(directory.items, ItemRecord, done and wanted["items"]),
        fidelity=_frame(directory.fidelity, FidelityRecord, done and wanted["fidelity"]),
        costs=_frame(directory.costs, CostRecord, done and wanted["costs"]),
    )
