"""Run directories made from a seed, without a model: for tests of all that reads a run.

The flips are drawn, not measured: a variant of few bits loses more, and rare slices lose most.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from evalq.plan import parse_plan
from evalq.schema import (
    FORMAT_VERSION,
    CostRecord,
    FidelityRecord,
    ItemRecord,
    content_hash,
)

PARENT = "parent"
SLICES = {
    "math/products": (0.82, 1.0),
    "math/chains": (0.93, 0.5),
    "multilingual/en": (0.96, 0.2),
    "multilingual/de": (0.95, 0.6),
    "multilingual/sw": (0.85, 2.5),
    "multilingual/te": (0.80, 3.5),
    "multilingual/am": (0.70, 4.0),
    "reasoning/order": (0.88, 0.7),
    "reasoning/swaps": (0.75, 1.0),
}
"""Slice to (accuracy of the parent, how much of the variant's loss it takes)."""

VARIANTS = tuple(f"{m}-w{b}-g128" for b in (8, 4, 3, 2) for m in ("rtn", "gptq", "awq"))
LOSS = {8: 0.002, 6: 0.005, 4: 0.025, 3: 0.15, 2: 0.9}
KL = {8: 0.0014, 6: 0.0055, 4: 0.031, 3: 0.25, 2: 3.0}
FACTOR = {"rtn": 1.0, "gptq": 0.6, "awq": 0.7}

ARROW = {
    "str": pa.string(),
    "int": pa.int64(),
    "float": pa.float64(),
    "bool": pa.bool_(),
    "float | None": pa.float64(),
    "int | None": pa.int64(),
}


def arrow_schema(record: type) -> pa.Schema:
    """One column for each field of a record class, in its order."""
    return pa.schema([(f.name, ARROW[str(f.type)]) for f in fields(record)])


def write_table(path: Path, record: type, columns: Mapping[str, Any]) -> None:
    pq.write_table(pa.table(dict(columns), schema=arrow_schema(record)), path)


def _parts(variant: str) -> tuple[str, int]:
    method, bits, *_ = variant.split("-")
    return method, int(bits.removeprefix("w"))


def default_loss(variant: str, slice_: str) -> float:
    """The chance that an item the parent got right is lost."""
    method, bits = _parts(variant)
    return float(min(1.0, LOSS[bits] * FACTOR[method] * SLICES.get(slice_, (0.9, 1.0))[1]))


def item_columns(
    variants: Sequence[str], slices: Sequence[str], items: int, seed: int, loss: Mapping[str, Any]
) -> dict[str, list[Any]]:
    """All item records, parent first; ``loss[variant]`` is a number, or a number for each slice."""
    columns: dict[str, list[Any]] = {f.name: [] for f in fields(ItemRecord)}
    for number, slice_ in enumerate(slices):
        rng = np.random.default_rng([seed, number])
        accuracy = SLICES.get(slice_, (0.9, 1.0))[0]
        right = rng.random(items) < accuracy
        for variant in (PARENT, *variants):
            if variant == PARENT:
                now = right
            else:
                given = loss.get(variant, default_loss(variant, slice_))
                chance = given.get(slice_, 0.0) if isinstance(given, Mapping) else given
                lost = rng.random(items) < chance
                gained = rng.random(items) < chance / 4
                now = np.where(right, ~lost, gained)
            _append(columns, variant, slice_, now)
    return columns


def _append(columns: dict[str, list[Any]], variant: str, slice_: str, right: np.ndarray) -> None:
    task = "t_" + slice_.replace("/", "_")
    n = len(right)
    ids = [str(i) for i in range(n)]
    targets = [str(7 * i + 3) for i in range(n)]
    prompts = [f"{slice_}: what is 7 x {i} + 3?\nAnswer:" for i in range(n)]
    columns["variant"] += [variant] * n
    columns["variant_hash"] += [content_hash(variant)] * n
    columns["suite"] += ["synthetic"] * n
    columns["task"] += [task] * n
    columns["task_version"] += ["1"] * n
    columns["slice"] += [slice_] * n
    columns["item_id"] += ids
    columns["cluster"] += [f"{task}/{i}" for i in ids]
    columns["doc_hash"] += [content_hash([task, i]) for i in ids]
    columns["prompt_hash"] += [content_hash(p) for p in prompts]
    columns["target_hash"] += [content_hash(t) for t in targets]
    columns["filter"] += ["none"] * n
    columns["metric"] += ["exact_match"] * n
    columns["score"] += [float(r) for r in right]
    columns["nll"] += [None] * n
    columns["units"] += [None] * n
    columns["metrics"] += [json.dumps({"exact_match": float(r)}) for r in right]
    columns["prompt"] += prompts
    columns["target"] += targets
    columns["response"] += [
        t if r else str(int(t) + 1) for t, r in zip(targets, right, strict=True)
    ]
    columns["tokens_in"] += [12] * n
    columns["tokens_out"] += [4] * n
    columns["truncated"] += [False] * n


def fidelity_columns(
    variants: Sequence[str], seed: int, documents: int = 24, length: int = 32
) -> dict[str, list[Any]]:
    """KL of every variant and of the negative control on two slices of text."""
    columns: dict[str, list[Any]] = {f.name: [] for f in fields(FidelityRecord)}
    for number, variant in enumerate((f"{PARENT}@control", *variants)):
        rng = np.random.default_rng([seed, 1000 + number])
        if number == 0:
            mean = 2e-6
        else:
            method, bits = _parts(variant)
            mean = KL[bits] * FACTOR[method]
        size = documents * length
        spread = np.repeat(rng.gamma(8.0, 1 / 8.0, documents), length)
        kl = rng.gamma(0.5, 2.0, size) * mean * spread
        nll = rng.gamma(1.0, 2.0, size)
        columns["variant"] += [variant] * size
        columns["text"] += ["held-out"] * size
        columns["slice"] += list(
            np.repeat(["prose" if d % 2 else "multilingual/sw" for d in range(documents)], length)
        )
        columns["document"] += list(np.repeat([f"d{d}" for d in range(documents)], length))
        columns["position"] += list(range(length)) * documents
        columns["kl"] += kl.tolist()
        columns["top1"] += (rng.random(size) > np.minimum(0.9, 1.5 * np.sqrt(kl))).tolist()
        columns["nll_parent"] += nll.tolist()
        columns["nll_variant"] += (nll + mean / 2 + rng.normal(0, np.sqrt(mean), size)).tolist()
    return columns


def cost_columns(variants: Sequence[str], seed: int, repeats: int = 3) -> dict[str, list[Any]]:
    """Costs of every variant; all but the parent run dequantized."""
    rng = np.random.default_rng([seed, 2000])
    columns: dict[str, list[Any]] = {f.name: [] for f in fields(CostRecord)}
    for repeat in range(repeats):
        for variant in (PARENT, *variants):
            bits = 16.0 if variant == PARENT else _parts(variant)[1] + 0.125
            row = {
                "variant": variant,
                "repeat": repeat,
                "execution": "dense" if variant == PARENT else "dequantized",
                "device": "cpu",
                "dtype": "float32",
                "bytes_on_disk": variant_bytes(variant),
                "bits_per_weight": bits * 0.9 + 1.6,
                "linear_bits_per_weight": bits,
                "peak_memory_bytes": 30_000_000,
                "prefill_tokens_per_second": 5000.0 * rng.lognormal(0, 0.03),
                "decode_tokens_per_second": 200.0 * rng.lognormal(0, 0.03),
                "batch": 1,
                "prefill_tokens": 128,
                "decode_tokens": 32,
            }
            for name, value in row.items():
                columns[name].append(value)
    return columns


def variant_bytes(variant: str) -> int:
    if variant == PARENT:
        return 4_600_000
    method, bits = _parts(variant)
    return int(4_600_000 * (0.9 * (bits + 0.125) / 16 + 0.1)) + ("gptq", "awq", "rtn").index(method)


def run_info(
    variants: Sequence[str], slices: Sequence[str], items: int, seed: int
) -> dict[str, Any]:
    """``run.json``, as ``docs/design/contracts.md`` has it."""
    plan = parse_plan(
        {
            "name": "synthetic",
            "variants": [
                {"name": v, "method": _parts(v)[0], "bits": _parts(v)[1]} for v in variants
            ],
            "suites": ["synthetic"],
            "seed": seed,
        }
    )
    info: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "evalq_version": "0.0.0",
        "name": "synthetic",
        "created": "2026-01-02T03:04:05+00:00",
        "status": "done",
        "plan": plan.model_dump(mode="json"),
        "plan_hash": plan.hash,
        "git_commit": "0" * 40,
        "packages": {"torch": "2.13.0", "transformers": "5.23.0"},
        "machine": {"cpu": "two cores", "cores": 2, "memory_bytes": 2**33, "device": "cpu"},
        "seed": seed,
        "command": "evalq run synthetic.yaml",
        "parent": {
            "name": "builtin",
            "hash": content_hash(PARENT),
            "notes": [],
            "parameters": 2_200_000,
            "bytes": variant_bytes(PARENT),
            "bits_per_weight": 16.0,
            "dtype": "bfloat16",
            "gridded": False,
            "demonstration": True,
        },
        "variants": [_variant_info(PARENT), *(_variant_info(v) for v in variants)],
        "suites": [
            {
                "name": "synthetic",
                "version": 1,
                "tasks": [
                    {
                        "task": "t_" + s.replace("/", "_"),
                        "version": "1",
                        "slice": s,
                        "metric": "exact_match",
                        "filter": "none",
                        "items": items,
                    }
                    for s in slices
                ],
            }
        ],
        "warnings": [],
    }
    info["machine"]["gpu"] = None
    return info


def _variant_info(variant: str) -> dict[str, Any]:
    is_parent = variant == PARENT
    method, bits = ("", None) if is_parent else _parts(variant)
    return {
        "name": variant,
        "hash": content_hash(variant),
        "kind": "parent" if is_parent else "made",
        "method": method,
        "scheme": "bfloat16" if is_parent else f"w{bits}-g128",
        "bits": bits,
        "group_size": None if is_parent else 128,
        "symmetric": None if is_parent else True,
        "path": "",
        "bytes": variant_bytes(variant),
        "bits_per_weight": 16.0 if bits is None else (bits + 0.125) * 0.9 + 1.6,
        "execution": "dense" if is_parent else "dequantized",
        "calibration": None
        if method in ("", "rtn")
        else {"source": "builtin", "hash": "c" * 64, "samples": 128, "length": 512},
        "warnings": [],
        "quantize_seconds": None if is_parent else 1.5,
    }


def write_run(
    path: Path,
    seed: int = 0,
    variants: Sequence[str] = VARIANTS,
    items: int = 60,
    slices: Sequence[str] = tuple(SLICES),
    loss: Mapping[str, Any] | None = None,
) -> Path:
    """Write a whole run directory (without a journal) and return it.

    Args:
        path: the directory; made if need be.
        seed: of all draws.
        variants: labels of the form ``METHOD-wBITS-…``; the parent (``"parent"``) is added first.
        items: items a slice; each slice is one task.
        slices: most specific slices; any names.
        loss: for a variant the chance that an item the parent got right is lost, as one number or
            as ``{slice: number}`` (0 where a slice is not named); else ``default_loss``. A quarter
            of that chance is gained back.
    """
    path.mkdir(parents=True, exist_ok=True)
    info = run_info(variants, slices, items, seed)
    (path / "run.json").write_text(json.dumps(info, indent=1), encoding="utf-8")
    columns = item_columns(variants, slices, items, seed, loss or {})
    write_table(path / "items.parquet", ItemRecord, columns)
    write_table(path / "fidelity.parquet", FidelityRecord, fidelity_columns(variants, seed))
    write_table(path / "costs.parquet", CostRecord, cost_columns(variants, seed))
    return path


def change_items(path: Path, change: Callable[[pd.DataFrame], pd.DataFrame]) -> Path:
    """Rewrite the item records of a run directory by ``change(frame)``."""
    target = path / "items.parquet"
    frame = change(pq.read_table(target).to_pandas())
    schema = arrow_schema(ItemRecord)
    pq.write_table(pa.Table.from_pandas(frame, schema=schema, preserve_index=False), target)
    return path


def change_info(path: Path, **values: Any) -> Path:
    """Set top-level keys of ``run.json``."""
    target = path / "run.json"
    info = json.loads(target.read_text(encoding="utf-8"))
    target.write_text(json.dumps({**info, **values}), encoding="utf-8")
    return path
