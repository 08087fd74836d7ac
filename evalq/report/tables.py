"""The tables of a report as pandas frames: what is written as CSV and given to notebooks."""

from __future__ import annotations

from dataclasses import asdict

import pandas as pd

from evalq.compare import FidelityResult, SliceResult, fidelity_by_text, kl_by_slice
from evalq.frontier import VariantCost
from evalq.report.capacity import Capacity, capacity, capacity_table
from evalq.report.frames import ReportData
from evalq.report.layers import layer_table, mixed_layers

__all__ = ["tables"]


def _ends(prefix: str, ci: tuple[float, float] | None) -> dict[str, float | None]:
    return {
        f"{prefix}_low": None if ci is None else ci[0],
        f"{prefix}_high": None if ci is None else ci[1],
    }


def _slice_row(variant: str, result: SliceResult) -> dict[str, object]:
    return {
        "variant": variant,
        "slice": result.slice,
        "leaf": result.leaf,
        "items": result.items,
        "clusters": result.clusters,
        "accuracy": result.accuracy,
        "parent_accuracy": result.parent_accuracy,
        "delta": result.delta,
        **_ends("ci", result.ci),
        "lost": result.lost,
        "gained": result.gained,
        "p_worse": result.p_worse,
        "p_holm": result.p_holm,
        "p_two_sided_midp": result.p_two_sided_midp,
        "confidence": result.confidence,
        "method": result.method,
        "warnings": "; ".join(result.warnings),
    }


def _variant_row(data: ReportData, name: str) -> dict[str, object]:
    entry = data.run.variant_info(name)
    cost = data.costs[name]
    parent_bytes = data.costs[data.run.parent].bytes
    comparison = data.comparisons.get(name)
    overall = comparison.overall if comparison else None
    point = next((p for p in data.frontiers["bytes"].points if p.variant == name), None)
    why = {c.variant: c.reasons for c in data.recommendation.candidates}
    why |= data.recommendation.unsized
    reasons = why.get(name)
    fidelity = data.fidelity.get(name)
    return {
        "variant": name,
        "tier": data.tier(name).name,
        "method": entry.get("method") or "",
        "scheme": entry.get("scheme") or "",
        "bits": entry.get("bits"),
        "group_size": entry.get("group_size"),
        "bits_per_weight": cost.bits_per_weight,
        "bytes": cost.bytes,
        "saving": 1 - cost.bytes / parent_bytes if cost.bytes and parent_bytes else None,
        "accuracy": overall.accuracy if overall else None,
        "delta": overall.delta if overall else None,
        **_ends("ci", overall.ci if overall else None),
        "lost": overall.lost if overall else None,
        "gained": overall.gained if overall else None,
        "p_worse": overall.p_worse if overall else None,
        "kl_mean": fidelity.kl_mean if fidelity else None,
        "on_frontier": point.on_frontier if point else None,
        "frontier_probability": point.probability if point else None,
        "qualifies": None if reasons is None else not reasons,
        "reasons": "; ".join(reasons or ()),
    }


def _fidelity_row(result: FidelityResult) -> dict[str, object]:
    return {
        "variant": result.variant,
        "tokens": result.tokens,
        "documents": result.documents,
        "kl_mean": result.kl_mean,
        **_ends("kl_ci", result.kl_ci),
        "kl_median": result.kl_median,
        "kl_p95": result.kl_p95,
        "kl_p99": result.kl_p99,
        "kl_max": result.kl_max,
        "top1_agreement": result.top1_agreement,
        **_ends("top1_ci", result.top1_ci),
        "ppl_ratio": result.ppl_ratio,
        **_ends("ppl_ratio_ci", result.ppl_ratio_ci),
        "confidence": result.confidence,
    }


def _cost_row(data: ReportData, cost: VariantCost) -> dict[str, object]:
    points = data.frontiers["price"].points if "price" in data.frontiers else ()
    price = next((p.cost for p in points if p.variant == cost.variant), None)
    return {**asdict(cost), "dollars_per_million_tokens": price}


def tables(data: ReportData) -> dict[str, pd.DataFrame]:
    """The tables of a report by file name: variants, slices, perplexity, frontier, fidelity…"""
    slices, perplexity, points = [], [], []
    for name, comparison in data.comparisons.items():
        results = [comparison.overall] if comparison.overall else []
        slices += [_slice_row(name, r) for r in [*results, *comparison.slices.values()]]
        for p in comparison.perplexity.values():
            perplexity.append(
                {
                    "variant": name,
                    "slice": p.slice,
                    "items": p.items,
                    "clusters": p.clusters,
                    "units": p.units,
                    "ratio": p.ratio,
                    **_ends("ci", p.ci),
                    "warnings": "; ".join(p.warnings),
                }
            )
    for axis, found in data.frontiers.items():
        for point in found.points:
            points.append(
                {
                    "axis": axis,
                    "variant": point.variant,
                    "cost": point.cost,
                    "quality": point.quality,
                    "on_frontier": point.on_frontier,
                    "probability": point.probability,
                }
            )
    every = [*([data.control] if data.control else []), *data.fidelity.values()]
    out = {
        "variants": pd.DataFrame([_variant_row(data, v) for v in data.run.variants]),
        "slices": pd.DataFrame(slices),
        "perplexity": pd.DataFrame(perplexity),
        "frontier": pd.DataFrame(points),
        "fidelity": pd.DataFrame([_fidelity_row(f) for f in every]),
        "costs": pd.DataFrame([_cost_row(data, c) for c in data.costs.values()]),
        "layers": layer_table(mixed_layers(data.run)),
    }
    room = capacity(data)
    if isinstance(room, Capacity):
        out["memory"] = capacity_table(room)
    by_text = [
        {"text": text, "slice": slice_, **_fidelity_row(result)}
        for (text, slice_), results in fidelity_by_text(data.run).items()
        for result in results
    ]
    out["fidelity_by_text"] = pd.DataFrame(by_text)
    if len(data.run.fidelity):
        out["kl_by_slice"] = kl_by_slice(data.run).reset_index()
    return {name: frame for name, frame in out.items() if len(frame)}
