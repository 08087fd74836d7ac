"""What run.json says of a run, its parent and its variants."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from evalq.memory import shape_config
from evalq.plan import Plan, VariantPlan
from evalq.run.info import git_commit, packages
from evalq.run.timing import PARENT
from evalq.schema import content_hash
from evalq.store.layers import layer_record

if TYPE_CHECKING:
    from evalq.artifacts.base import Artifact
    from evalq.models.base import LoadedModel
    from evalq.models.endpoint import EndpointEngine
    from evalq.tasks.bridge import BuiltTask

__all__ = [
    "Made",
    "fresh_info",
    "parent_info",
    "parent_row",
    "served_parent_info",
    "served_row",
    "suite_info",
    "variant_row",
]


@dataclass(slots=True)
class Made:
    """A variant that is on disk, ready to be measured; no artifact: the parent's own weights."""

    plan: VariantPlan
    artifact: Artifact | None

    def identity(self, weights: str) -> str:
        """The hash of what is measured: of the weights, and of the cache where that is rounded."""
        bits = self.plan.kv_bits
        return weights if bits is None else content_hash([weights, "kv", bits])


def fresh_info(plan: Plan, command: str) -> dict[str, Any]:
    """run.json of a run that begins."""
    from evalq import __version__

    return {
        "evalq_version": __version__,
        "name": plan.name,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "status": "running",
        "plan": plan.model_dump(mode="json"),
        "plan_hash": plan.hash,
        "git_commit": git_commit(),
        "packages": packages(),
        "seed": plan.seed,
        "command": command,
        "warnings": [],
    }


def parent_info(parent: LoadedModel) -> dict[str, Any]:
    """The entry ``parent``."""
    source = parent.source
    return {
        "name": parent.name,
        "hash": parent.hash,
        "kind": source.kind,
        "notes": list(source.notes),
        "parameters": source.parameters,
        "bytes": source.bytes,
        "bits_per_weight": source.bits,
        "dtype": source.dtype,
        "gridded": source.gridded,
        "demonstration": source.demonstration,
        "config": shape_config(parent.module.config.to_dict()),
    }


def served_parent_info(engine: EndpointEngine) -> dict[str, Any]:
    """The entry ``parent`` of an endpoint: what it stores and in what it computes is unknown."""
    return {
        "name": engine.model,
        "hash": engine.identity,
        "kind": "endpoint",
        "endpoint": engine.place,
        "notes": [],
        "parameters": None,
        "bytes": None,
        "bits_per_weight": None,
        "dtype": "unknown",
        "gridded": False,
        "demonstration": False,
        "config": None,
    }


def suite_info(tasks: Sequence[BuiltTask]) -> list[dict[str, Any]]:
    """The entry ``suites``: tasks by suite, with their versions and counts."""
    suites: dict[str, dict[str, Any]] = {}
    for task in tasks:
        entry = suites.setdefault(task.suite, {"name": task.suite, "tasks": []})
        entry["version"] = task.suite_version
        entry["tasks"].append(
            {
                "task": task.name,
                "version": task.version,
                "slice": task.slice,
                "metric": task.metric,
                "filter": task.filter,
                "items": len(task.items),
                "num_fewshot": task.num_fewshot,
                "weight": task.weight,
                "notes": list(task.notes),
            }
        )
    return list(suites.values())


def parent_row(parent: LoadedModel) -> dict[str, Any]:
    """The parent's entry in ``variants``."""
    source = parent.source
    dtype = source.dtype
    return {
        "name": PARENT,
        "hash": parent.hash,
        "kind": "parent",
        "method": "",
        "scheme": dtype,
        "bits": _dense_bits(dtype),
        "group_size": None,
        "symmetric": None,
        "path": str(source.path),
        "bytes": source.bytes,
        "bits_per_weight": source.bits,
        "execution": parent.execution,
        "calibration": None,
        "warnings": list(source.notes),
        "quantize_seconds": 0.0,
    }


def variant_row(made: Made, model: LoadedModel) -> dict[str, Any]:
    """A local variant's entry in ``variants``."""
    artifact, plan = made.artifact, made.plan
    manifest = {} if artifact is None else artifact.manifest
    scheme = manifest.get("scheme") or {}
    text = str(scheme.get("text", "")) if artifact is not None else model.source.dtype
    # What is noted of the parent's own files stands with the parent.
    warnings = [*manifest.get("warnings", []), *(() if artifact is None else model.source.notes)]
    if plan.kv_bits is not None:
        text += f"{'-' if text else ''}kv{plan.kv_bits}"
        warnings.append(
            f"the KV cache is rounded to {plan.kv_bits} bits in the evaluation; its speed is not "
            "measured, and its memory is modelled"
        )
    return {
        "name": plan.label,
        "hash": made.identity(model.hash),
        "kind": "made" if plan.method else "artifact",
        "method": manifest.get("method", ""),
        "scheme": text,
        "bits": scheme.get("bits") if artifact is not None else _dense_bits(model.source.dtype),
        "kv_bits": plan.kv_bits,
        "group_size": scheme.get("group_size"),
        "symmetric": scheme.get("symmetric"),
        "path": str(model.source.path),
        "bytes": model.source.bytes,
        "bits_per_weight": model.source.bits,
        "execution": model.execution,
        "calibration": manifest.get("calibration"),
        "warnings": warnings,
        "quantize_seconds": manifest.get("seconds", 0.0),
        **layer_record(manifest),
    }


def served_row(label: str, engine: EndpointEngine) -> dict[str, Any]:
    """The entry in ``variants`` of an endpoint. Nothing is known of what it stores, so sizes, bits
    and the scheme are empty: they are never guessed from a name."""
    return {
        "name": label,
        "hash": engine.identity,
        "kind": "endpoint",
        "endpoint": engine.place,
        "method": "",
        "scheme": "",
        "bits": None,
        "group_size": None,
        "symmetric": None,
        "path": "",
        "bytes": None,
        "bits_per_weight": None,
        "execution": "endpoint",
        "calibration": None,
        "warnings": list(engine.events),
        "quantize_seconds": 0.0,
    }


def _dense_bits(dtype: str) -> int:
    return {"float32": 32}.get(dtype, 16)
