"""What the page shows, row by row: plain values and texts that are ready to print."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from evalq import __version__
from evalq.compare import SliceResult, fidelity_by_text, kl_by_slice
from evalq.frontier import AXES
from evalq.report.flips import FlipPack
from evalq.report.frames import ReportData
from evalq.report.plane import cost_text, frontier_chart, near_points
from evalq.report.text import (
    UNKNOWN,
    clip,
    interval_text,
    p_text,
    pp,
    visible,
)

__all__ = [
    "artifacts",
    "cards",
    "facts",
    "fidelity_rows",
    "frontiers",
    "head_flips",
    "heatmap",
    "kl_table",
    "perplexity_rows",
    "prompts_text",
    "text_rows",
    "variant_rows",
]

WIDE, NARROW = (1120.0, 460.0), (380.0, 340.0)
"""Sizes of a chart on a desk and on a phone, in pixels."""


def _shade(delta: float) -> float:
    """How strong a cell's colour is: the root of the loss, full at 40 points."""
    return min(1.0, math.sqrt(abs(delta) / 0.4))


def _of(result: SliceResult) -> str:
    return "" if result.planned is None else f" asked ({result.planned} planned)"


def _cell(variant: str, result: SliceResult) -> dict[str, Any]:
    title = (
        f"{variant} on {result.slice}: {pp(result.delta)} ({interval_text(result.ci)}), accuracy "
        f"{100 * result.accuracy:.1f} %, {result.lost} lost, {result.gained} gained of "
        f"{result.items}{_of(result)}, p worse {p_text(result.p_worse)}"
        + (f", Holm {p_text(result.p_holm)}" if result.p_holm is not None else "")
    )
    return {
        "text": pp(result.delta).removesuffix(" pp"),
        "accuracy": f"{100 * result.accuracy:.1f}",
        "shade": f"{_shade(result.delta):.2f}",
        "kind": "loss" if result.delta < 0 else "gain" if result.delta > 0 else "same",
        "star": result.significant,
        "title": visible(title),
    }


def heatmap(data: ReportData) -> dict[str, Any]:
    """Rows (overall, then slices with their depth) and columns (variants) of the heat map."""
    columns = [c for c in data.others if c.overall]
    parent = data.comparisons.get(data.run.parent)
    if parent is None or parent.overall is None or not columns:
        return {"columns": [], "rows": []}
    rows = []
    for name in ("overall", *data.slice_names):
        mine = [c.overall if name == "overall" else c.slices[name] for c in columns]
        base = parent.overall if name == "overall" else parent.slices[name]
        rows.append(
            {
                "name": visible(name),
                "short": visible(name.rsplit("/", 1)[-1]),
                "depth": name.count("/"),
                "leaf": base.leaf,
                "overall": name == "overall",
                "items": base.items,
                "few": base.items < data.run.recommend.min_items,
                "parent": f"{100 * base.accuracy:.1f}",
                "cells": [_cell(c.variant, r) for c, r in zip(columns, mine, strict=True) if r],
            }
        )
    heads = [{"name": visible(c.variant), "tier": data.tier(c.variant).key} for c in columns]
    return {"columns": heads, "rows": rows}


def variant_rows(data: ReportData) -> list[dict[str, Any]]:
    """The big table: one row a variant."""
    out = []
    reasons = {c.variant: c.reasons for c in data.recommendation.candidates}
    reasons |= data.recommendation.unsized
    for index, name in enumerate(data.run.variants):
        comparison = data.comparisons.get(name)
        overall = comparison.overall if comparison else None
        worst = comparison.worst(data.run.recommend.min_items) if comparison else None
        point = next((p for p in data.frontiers["bytes"].points if p.variant == name), None)
        is_parent = name == data.run.parent
        why = reasons.get(name)
        out.append(
            {
                "index": index,
                "name": visible(name),
                "tier": data.tier(name),
                "recommended": name == data.recommendation.variant,
                "bytes": data.size_text(name),
                "bits": data.bits_text(name),
                "accuracy": f"{100 * overall.accuracy:.1f} %" if overall else "–",
                "delta": pp(overall.delta) if overall and not is_parent else "–",
                "ci": interval_text(overall.ci) if overall and not is_parent else "",
                "flips": f"{overall.lost} / {overall.gained}" if overall and not is_parent else "–",
                "p": p_text(overall.p_worse) if overall and not is_parent else "–",
                "worst": visible(worst.slice) if worst and not is_parent else "–",
                "worst_delta": pp(worst.delta) if worst and not is_parent else "",
                "kl": data.kl_text(name),
                "frontier": f"{point.probability:.2f}" if point else "–",
                "on": bool(point and point.on_frontier),
                "qualifies": None if why is None else not why,
                "reasons": [visible(r) for r in why or ()],
            }
        )
    return out


def fidelity_rows(data: ReportData) -> list[dict[str, Any]]:
    """The table of fidelity, the negative control first."""
    every = [*([data.control] if data.control else []), *data.fidelity.values()]
    return [
        {
            "name": visible(f.variant),
            "control": data.control is not None and f.variant == data.control.variant,
            "kl": f"{f.kl_mean:.3g}",
            "kl_ci": f"{f.kl_ci[0]:.3g} to {f.kl_ci[1]:.3g}" if f.kl_ci else "no interval",
            "p99": f"{f.kl_p99:.3g}",
            "top1": f"{100 * f.top1_agreement:.2f} %",
            "ratio": f"{f.ppl_ratio:.4f}",
            "ratio_ci": f"{f.ppl_ratio_ci[0]:.4f} to {f.ppl_ratio_ci[1]:.4f}"
            if f.ppl_ratio_ci
            else "no interval",
            "tokens": f"{f.tokens:,}",
        }
        for f in every
    ]


def text_rows(data: ReportData) -> list[dict[str, Any]]:
    """A table for each text that distributions were compared on: names and numbers of variants."""
    return [
        {
            "text": visible(text),
            "slice": visible(slice_),
            "tokens": f"{results[0].tokens:,}" if results else "0",
            "rows": [
                {
                    "name": visible(r.variant),
                    "control": r.variant == data.run.control,
                    "top1": f"{100 * r.top1_agreement:.2f} %",
                    **{
                        key: f"{getattr(r, 'kl_' + key):.3g}"
                        for key in ("mean", "median", "p95", "p99", "max")
                    },
                }
                for r in results
            ],
        }
        for (text, slice_), results in fidelity_by_text(data.run).items()
    ]


def frontiers(data: ReportData) -> list[dict[str, Any]]:
    """The views of the frontier: by bytes, close to the parent, and by measured speeds."""
    out = []
    for axis, found in data.frontiers.items():
        if not found.points or (axis != "bytes" and len(found.points) < 2):
            continue
        rows = [
            {
                "name": visible(p.variant),
                "cost": cost_text(axis, p.cost),
                "quality": f"{100 * p.quality:.1f} %",
                "on": p.on_frontier,
                "probability": f"{p.probability:.2f}",
            }
            for p in sorted(found.points, key=lambda p: p.cost)
        ]
        out.append(
            {
                "key": axis,
                "name": AXES[axis],
                "wide": frontier_chart(data, axis, WIDE),
                "narrow": frontier_chart(data, axis, NARROW),
                "rows": rows,
                "left_out": [f"{visible(v)}: {visible(why)}" for v, why in found.left_out.items()],
            }
        )
    if near_points(data, "bytes"):
        closer = {
            "key": "near",
            "name": "bytes on disk, within 10 points of the parent",
            "wide": frontier_chart(data, "bytes", WIDE, near=True),
            "narrow": frontier_chart(data, "bytes", NARROW, near=True),
        }
        out.insert(1, {**out[0], **closer})
    return out


def kl_table(data: ReportData) -> dict[str, Any]:
    """KL by slice of the text and variant."""
    if data.run.fidelity.empty:
        return {"columns": [], "rows": []}
    frame = kl_by_slice(data.run)
    rows = [
        {"name": visible(str(name)), "cells": [f"{v:.2g}" for v in row]}
        for name, row in zip(frame.index, frame.to_numpy(), strict=True)
    ]
    return {"columns": [visible(str(c)) for c in frame.columns], "rows": rows}


def facts(data: ReportData) -> list[tuple[str, str]]:
    """What a repeat needs to know: versions, hashes, seeds, the machine, the command."""
    info = data.run.info
    parent = info["parent"]
    machine = info.get("machine") or {}
    packages = info.get("packages") or {}
    return [
        ("run", f"{info['name']}, made {info.get('created', '')}, {info['status']}"),
        ("parent", f"{parent.get('name')} · {parent.get('dtype', '')} · {parent.get('hash')}"),
        ("prompts", prompts_text(info.get("prompts"))),
        ("parent's notes", "; ".join(map(str, parent.get("notes") or [])) or "none"),
        ("plan hash", str(info.get("plan_hash", ""))),
        ("seed", str(info.get("seed", ""))),
        ("machine", ", ".join(f"{k} {v}" for k, v in machine.items() if v is not None)),
        ("evalq", f"{info.get('evalq_version', '')}, commit {info.get('git_commit') or 'unknown'}"),
        ("packages", ", ".join(f"{k} {v}" for k, v in sorted(packages.items()))),
        ("rendered by", f"evalq {__version__}"),
    ]


def prompts_text(record: Mapping[str, Any] | None) -> str:
    """How items became prompts, by run.json's ``prompts``."""
    if not record or (not record.get("chat_template") and not record.get("system")):
        return "plain text"
    template = record.get("chat_template")
    out = "plain text"
    if template:
        digest = f" ({str(template.get('sha256'))[:12]})" if template.get("sha256") else ""
        out = f"chat template: {template.get('source')}{digest}"
        out += ", examples as turns" if record.get("multiturn") else ", examples in one message"
    if record.get("system"):
        out += f"; system message: {clip(str(record['system']), 200)}"
    return out


def _scheme(entry: Mapping[str, Any]) -> str:
    place = entry.get("endpoint")
    if not place:
        return str(entry.get("scheme") or "")
    return f"{UNKNOWN}; {place.get('api')} of {place.get('url')}, model {place.get('model')}"


def artifacts(data: ReportData) -> list[dict[str, str]]:
    """Scheme, content hash and calibration of every variant."""
    out = []
    for entry in data.run.info["variants"]:
        calibration = entry.get("calibration")
        text = UNKNOWN if entry.get("endpoint") else "none"
        if calibration:
            text = (
                f"{calibration.get('source')}, {calibration.get('samples')} × "
                f"{calibration.get('length')} tokens, {str(calibration.get('hash'))[:12]}"
            )
        out.append(
            {
                "name": visible(str(entry["name"])),
                "scheme": visible(_scheme(entry)),
                "hash": visible(str(entry.get("hash") or "")),
                "calibration": visible(text),
            }
        )
    return out


def head_flips(pack: FlipPack) -> list[dict[str, str]]:
    """The flips that a page without scripts shows."""
    return [
        {
            "variant": visible(str(r.variant)),
            "slice": visible(str(r.slice)),
            "direction": str(r.direction),
            "prompt": visible(clip(str(r.prompt), 240, 560)),
            "target": visible(clip(str(r.target), 300)),
            "before": visible(clip(str(r.baseline_response), 420, 280)),
            "after": visible(clip(str(r.variant_response), 420, 280)),
        }
        for r in pack.head.itertuples(index=False)
    ]


def cards(data: ReportData) -> Sequence[dict[str, str]]:
    """The key figures under the verdict."""
    chosen = data.recommendation.variant
    comparison = data.comparisons.get(chosen)
    overall = comparison.overall if comparison else None
    worst = comparison.worst(data.run.recommend.min_items) if comparison else None
    is_parent = chosen == data.run.parent
    size = data.size_text(chosen)
    saving = data.recommendation.saving
    out = [
        {"label": "Recommended", "value": visible(chosen), "note": data.tier(chosen).name},
        {"label": "Size", "value": f"−{100 * saving:.0f} %" if saving > 0 else size, "note": size},
    ]
    if overall and not is_parent:
        note = f"{100 * overall.confidence:g} % interval {interval_text(overall.ci)}"
        out.append({"label": "Accuracy change", "value": pp(overall.delta), "note": note})
    elif overall:
        note = f"{overall.items} items"
        out.append({"label": "Accuracy", "value": f"{100 * overall.accuracy:.1f} %", "note": note})
    if worst and not is_parent:
        note = f"{visible(worst.slice)} · {interval_text(worst.ci)}"
        out.append({"label": "Worst slice", "value": pp(worst.delta), "note": note})
    return out


def perplexity_rows(data: ReportData) -> list[dict[str, str]]:
    """The table of perplexity tasks."""
    return [
        {
            "variant": visible(c.variant),
            "slice": visible(p.slice),
            "ratio": f"{p.ratio:.4f}",
            "ci": f"{p.ci[0]:.4f} to {p.ci[1]:.4f}" if p.ci else "no interval",
            "units": f"{p.units:,}",
        }
        for c in data.others
        for p in c.perplexity.values()
    ]
