"""The last stage of a run: what its variants take, timed in turn and stored."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evalq.cost import Candidate, measure_costs
from evalq.errors import KernelError
from evalq.plan import EnginePlan, Plan
from evalq.progress import Progress
from evalq.schema import CostRecord
from evalq.store import RunDirectory, write_table

if TYPE_CHECKING:
    from evalq.models.base import LoadedModel, ModelSource

__all__ = ["PARENT", "time_variants"]

PARENT = "parent"


def time_variants(
    plan: Plan,
    directory: RunDirectory,
    info: dict[str, Any],
    made: Sequence[tuple[str, Path]],
    parent_source: ModelSource,
    progress: Progress,
) -> None:
    """Time all variants in turn, and store costs.parquet unless it is there.

    Each runs on the low-bit kernels of this device, in the precision that the parent is shipped in.

    Args:
        plan: of the run.
        directory: where costs.parquet goes.
        info: run.json; told of dtype and loops, and of what had to be timed dequantized.
        made: labels and artifact directories.
        parent_source: where the parent came from.
        progress: told of each timed model.
    """
    import psutil

    from evalq.artifacts.api import storage
    from evalq.models.load import load_parent, timed_dtype

    if directory.costs.exists():
        return
    # Weights are held in the precision that is computed in: at most 4 bytes a parameter.
    memory = 4 * parent_source.parameters
    dtype = timed_dtype(plan.engine, parent_source.dtype)
    shipped = plan.engine.model_copy(update={"dtype": dtype})
    parent = Candidate(
        PARENT,
        lambda: load_parent(plan.parent, shipped),
        memory,
        parent_source.bytes,
        parent_source.bits,
        parent_source.bits,
    )
    others = []
    for label, path in made:
        sizes = storage(path)
        others.append(
            Candidate(
                label,
                lambda label=label, path=path: _load(label, path, shipped, info),  # type: ignore[misc]
                memory,
                sizes.bytes_on_disk,
                sizes.bits_per_weight,
                sizes.linear_bits_per_weight,
            )
        )
    budget = int(psutil.virtual_memory().available * 0.6)
    costs = measure_costs(parent, others, plan.cost, budget, progress)
    info["costs"] = {"dtype": dtype, "loops": costs.loops}
    directory.write_info(info)
    write_table(directory.costs, CostRecord, costs.records)


def _load(label: str, path: Path, engine: EnginePlan, info: dict[str, Any]) -> LoadedModel:
    """An artifact on the kernels of this device; where one is missing, dequantized, and said."""
    from evalq.models.load import load_artifact

    try:
        return load_artifact(path, engine, packed=True)
    except KernelError as error:
        note = f"{label}: timed dequantized, its speed is not the format's: {error.message}"
        if note not in info["warnings"]:
            info["warnings"].append(note)
        return load_artifact(path, engine)
