"""What the cost section shows: measured costs, modelled memory, and layers of mixed bits."""

from __future__ import annotations

from typing import Any

from evalq.report.capacity import DEVICES, capacity
from evalq.report.frames import ReportData
from evalq.report.layers import Layer, bits_chart, mixed_layers, sensitivity_chart
from evalq.report.text import UNKNOWN, bytes_text, dollars_text, speed_text, visible

__all__ = ["LISTED_LAYERS", "capacity_rows", "cost_rows", "mixed_rows", "price_note"]

LISTED_LAYERS = 400
"""Layers of a variant in the page's table; ``tables/layers.csv`` has all."""


def cost_rows(data: ReportData) -> list[dict[str, Any]]:
    """The table of costs."""
    points = data.frontiers["price"].points if "price" in data.frontiers else ()
    prices = {p.variant: p.cost for p in points}
    out = []
    for name in data.run.variants:
        cost = data.costs[name]
        unknown = name in data.served
        out.append(
            {
                "name": visible(name),
                "tier": data.tier(name).key,
                "bytes": data.size_text(name),
                "memory": UNKNOWN if unknown else bytes_text(cost.peak_memory_bytes),
                "execution": visible(str(cost.execution)) or "–",
                "own": cost.execution != "dequantized",
                "prefill": UNKNOWN if unknown else speed_text(cost.prefill),
                "decode": UNKNOWN if unknown else speed_text(cost.decode),
                "price": dollars_text(prices[name]) if name in prices else "–",
            }
        )
    return out


def price_note(data: ReportData) -> str:
    """What a price is made of; empty where none was given."""
    if data.price_per_hour is None:
        return ""
    rows = data.run.costs
    batch = "" if rows.empty else f" at batch {int(rows.iloc[0]['batch'])}"
    return (
        f"Prices are for generated tokens: {dollars_text(data.price_per_hour)} an hour, as given, "
        f"over the decode speed measured here{batch}. A server that batches more requests pays "
        "less a token."
    )


def _tokens(count: int) -> str:
    return f"{count // 1024} K" if count % 1024 == 0 else f"{count:,}"


def capacity_rows(data: ReportData) -> dict[str, Any]:
    """Memory at context lengths, users a device, and measured peaks beside their model."""
    found = capacity(data)
    if isinstance(found, str):
        return {"why": visible(found), "rows": []}
    rows = []
    for name, totals in found.memory.items():
        peak = found.peaks.get(name)
        rows.append(
            {
                "name": visible(name),
                "tier": data.tier(name).key,
                "weights": bytes_text(found.weights[name]),
                "kv_bits": f"{found.kv_bits[name]:g}",
                "memory": [bytes_text(t) for t in totals],
                "users": [f"{u:,}" if u else "none" for u in found.users[name]],
                "measured": bytes_text(peak.measured) if peak else "–",
                "modelled": bytes_text(peak.modelled) if peak else "–",
                "ratio": f"{peak.measured / peak.modelled:.2f}" if peak else "–",
                "tokens": f"{peak.tokens:,}" if peak else "–",
            }
        )
    return {
        "why": "",
        "contexts": [_tokens(c) for c in found.contexts],
        "at": _tokens(found.at),
        "devices": list(DEVICES),
        "rows": rows,
        "notes": [visible(n) for n in found.notes],
    }


def _layer_row(layer: Layer, every: list[float]) -> dict[str, Any]:
    def number(value: float | None) -> str:
        return "–" if value is None else f"{value:.3g}"

    return {
        "name": visible(layer.name),
        "bits": f"{layer.bits:g}",
        "weight_error": number(layer.weight_error),
        "output_error": number(layer.output_error),
        "sensitivity": [number(layer.sensitivity.get(b)) for b in every],
    }


def mixed_rows(data: ReportData, wide: float, narrow: float) -> list[dict[str, Any]]:
    """Charts and table of every variant that mixes bits."""
    out = []
    for name, layers in mixed_layers(data.run).items():
        every = sorted({b for layer in layers for b in layer.sensitivity})
        out.append(
            {
                "name": visible(name),
                "bits_wide": bits_chart(name, layers, wide),
                "bits_narrow": bits_chart(name, layers, narrow),
                "loss_wide": sensitivity_chart(name, layers, wide),
                "loss_narrow": sensitivity_chart(name, layers, narrow),
                "columns": [f"{b:g}" for b in every],
                "rows": [_layer_row(layer, every) for layer in layers[:LISTED_LAYERS]],
                "left_out": max(0, len(layers) - LISTED_LAYERS),
            }
        )
    return out
