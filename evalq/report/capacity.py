"""Memory at context lengths and users a device: modelled, beside the peak that was measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from evalq.compare import Run
from evalq.cost.model import kv_bits_stored
from evalq.errors import PlanError
from evalq.memory import CacheShape, cache_shape, kv_cache_bytes, users_that_fit
from evalq.report.frames import ReportData

__all__ = [
    "DEVICES",
    "Capacity",
    "Peak",
    "cache_bytes",
    "capacity",
    "capacity_table",
    "parent_config",
]

DEVICES: Mapping[str, float] = {
    name: float(name.split()[0]) * 1e9 for name in ("16 GB", "24 GB", "80 GB", "141 GB")
}
"""Memory of common devices in bytes, counted in decimal gigabytes so that none is overstated."""

_CONTEXTS = (1024, 4096, 8192, 32768, 131072)
_ITEM = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class Peak:
    """A measured peak beside the model of the same pass.

    Args:
        measured: highest memory of a pass, in bytes.
        modelled: weights as they were held in that pass, and its KV cache; no activations.
        tokens: ``batch * (prefill tokens + 1)``.
    """

    measured: float
    modelled: float
    tokens: int


@dataclass(frozen=True)
class Capacity:
    """What each variant needs to serve.

    Args:
        contexts: tokens, ascending.
        at: the context that ``users`` are counted at.
        weights: bytes by variant, as stored.
        kv_bits: bits that a cache is kept in, by variant.
        memory: by variant, bytes of weights and one cache at each context.
        users: by variant, sequences that fit a device of ``DEVICES``.
        peaks: by variant, where memory was measured.
        notes: what is assumed, a sentence each.
    """

    contexts: tuple[int, ...]
    at: int
    weights: Mapping[str, float]
    kv_bits: Mapping[str, int]
    memory: Mapping[str, tuple[float, ...]]
    users: Mapping[str, tuple[int, ...]]
    peaks: Mapping[str, Peak]
    notes: tuple[str, ...]


def parent_config(run: Run) -> Mapping[str, Any] | None:
    """What run.json says of the parent's shape; ``None`` where it says nothing."""
    stored = run.info["parent"].get("config")
    return stored if isinstance(stored, Mapping) and stored else None


def _peak(data: ReportData, name: str, shape: CacheShape, weights: float) -> Peak | None:
    rows = data.run.costs[data.run.costs["variant"] == name]
    measured = data.costs[name].peak_memory_bytes
    if rows.empty or measured is None:
        return None
    row = rows.iloc[0]
    item = _ITEM.get(str(row["dtype"]))
    parameters = data.run.info["parent"].get("parameters")
    dense = str(row["execution"]) in ("dense", "dequantized")
    if item is None or (dense and not parameters):
        return None
    batch, tokens = int(row["batch"]), int(row["prefill_tokens"]) + 1
    held = float(parameters) * item if dense else weights
    cache = batch * kv_cache_bytes(shape, tokens, 8 * item)
    return Peak(measured, held + cache, batch * tokens)


def cache_bytes(shape: CacheShape, context: int, bits: int) -> int:
    """Bytes of one sequence's cache kept in so many bits, scales and exact tokens included."""
    return kv_cache_bytes(shape, context, kv_bits_stored(bits, context))


def capacity(data: ReportData) -> Capacity | str:
    """The memory of every variant with a size, or why it cannot be modelled."""
    config = parent_config(data.run)
    if config is None:
        return "the run does not hold the parent's configuration"
    try:
        shape = cache_shape(config)
    except PlanError as error:
        return error.message
    longest = shape.longest or _CONTEXTS[-1]
    contexts = tuple(c for c in _CONTEXTS if c < longest)
    contexts += (longest,) if longest <= _CONTEXTS[-1] else ()
    at = min(8192, longest)
    weights = {n: c.bytes for n, c in data.costs.items() if c.bytes}
    bits = data.run.kv_bits
    memory, users, peaks = {}, {}, {}
    for name, size in weights.items():
        memory[name] = tuple(size + cache_bytes(shape, c, bits[name]) for c in contexts)
        each = cache_bytes(shape, at, bits[name])
        users[name] = tuple(users_that_fit(m, size, each) for m in DEVICES.values())
        peak = _peak(data, name, shape, size)
        if peak is not None:
            peaks[name] = peak
    notes = [
        "Modelled: weights as stored and one KV cache at the bits given; activations and the "
        "engine's own memory come on top. Users leave a tenth of a device free.",
        *(n[0].upper() + n[1:] + "." for n in shape.notes),
    ]
    if any(b != 16 for b in bits.values()):
        notes.append(
            "A quantized KV cache keeps scales and its last tokens whole; both are counted."
        )
    return Capacity(contexts, at, weights, bits, memory, users, peaks, tuple(notes))


def capacity_table(found: Capacity) -> pd.DataFrame:
    """One row a variant and context: bytes of weights, of the cache, and both; all modelled."""
    return pd.DataFrame(
        [
            {
                "variant": name,
                "context_tokens": context,
                "weight_bytes": found.weights[name],
                "kv_bits": found.kv_bits[name],
                "kv_bytes": total - found.weights[name],
                "total_bytes": total,
                "source": "modelled",
            }
            for name, totals in found.memory.items()
            for context, total in zip(found.contexts, totals, strict=True)
        ]
    )
