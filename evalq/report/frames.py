"""All that a report shows, computed once from a run, and its tables as pandas frames."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass

import pandas as pd

from evalq.compare import (
    Comparison,
    FidelityResult,
    Run,
    SliceResult,
    compare,
    fidelity_result,
    kl_by_slice,
)
from evalq.frontier import (
    AXES,
    Axis,
    Frontier,
    Recommendation,
    VariantCost,
    frontier,
    recommend,
    variant_costs,
)
from evalq.report.palette import Tier, tier_of

__all__ = ["ReportData", "Unevenness", "collect", "tables"]


@dataclass(frozen=True)
class Unevenness:
    """How unevenly a variant loses.

    Args:
        variant: label.
        worst: the leaf that lost most.
        overall: all items.
        ratio: loss of the worst leaf over the average loss; ``None`` where there is no average
            loss to compare with.
    """

    variant: str
    worst: SliceResult
    overall: SliceResult
    ratio: float | None


@dataclass(frozen=True)
class ReportData:
    """What a report is made of.

    Args:
        run: the opened run.
        comparisons: by label, of all variants with item records, the parent (with itself) first.
        fidelity: by label; the control is not in it.
        control: fidelity of the negative control.
        frontiers: by axis.
        uneven: of the 4-bit variants, least overall loss first.
        warnings: run.json's, and those found here.
    """

    run: Run
    comparisons: Mapping[str, Comparison]
    fidelity: Mapping[str, FidelityResult]
    control: FidelityResult | None
    frontiers: Mapping[Axis, Frontier]
    recommendation: Recommendation
    costs: Mapping[str, VariantCost]
    uneven: tuple[Unevenness, ...]
    warnings: tuple[str, ...]

    def tier(self, variant: str) -> Tier:
        """The tier of a variant."""
        return tier_of(self.run.variant_info(variant))

    @property
    def others(self) -> tuple[Comparison, ...]:
        """Comparisons of all but the parent."""
        return tuple(c for c in self.comparisons.values() if c.variant != self.run.parent)

    @property
    def slice_names(self) -> tuple[str, ...]:
        """All slices, an ancestor before what is in it."""
        parent = self.comparisons.get(self.run.parent)
        return tuple(parent.slices) if parent else ()

    @property
    def dequantized(self) -> tuple[str, ...]:
        """Variants whose speed is not their format's."""
        return tuple(n for n, c in self.costs.items() if c.execution == "dequantized")


def _unevenness(comparison: Comparison, min_items: int) -> Unevenness | None:
    worst = comparison.worst(min_items) or comparison.worst()
    overall = comparison.overall
    if worst is None or overall is None or len(comparison.leaves) < 2:
        return None
    ratio = worst.delta / overall.delta if overall.delta < 0 else None
    return Unevenness(comparison.variant, worst, overall, ratio)


def _warnings(run: Run, comparisons: Mapping[str, Comparison]) -> tuple[str, ...]:
    out = [str(w) for w in run.info.get("warnings", ())]
    for entry in run.info["variants"]:
        out += [f"{entry['name']}: {w}" for w in entry.get("warnings") or ()]
    few: dict[str, list[str]] = {}
    plan = run.recommend
    parent = comparisons.get(run.parent)
    if parent:
        small = [f"{n} ({s.items})" for n, s in parent.slices.items() if s.items < plan.min_items]
        if small:
            out.append(
                f"slices of fewer than {plan.min_items} items are advisory only: {', '.join(small)}"
            )
    for comparison in comparisons.values():
        if comparison.variant == run.parent or comparison.overall is None:
            continue
        for result in (comparison.overall, *comparison.slices.values()):
            for text in result.warnings:
                kind = re.sub(r"\bonly \d+ ", "few ", text)
                few.setdefault(kind, []).append(f"{comparison.variant} on {result.slice}")
    for text, where in few.items():
        more = f" and {len(where) - 3} more" if len(where) > 3 else ""
        out.append(f"{text} ({', '.join(where[:3])}{more})")
    truncated = run.items.groupby("variant", observed=True)["truncated"].sum()
    for name in run.measured:
        if truncated[name]:
            out.append(f"{name}: {int(truncated[name])} items were truncated to fit the context")
    return tuple(out)


def collect(run: Run, resamples: int = 2000) -> ReportData:
    """Compute everything a report of ``run`` shows.

    A variant of an unfinished run that lacks item records is left out, and a warning says so.

    Raises:
        ComparisonError: variants that were not asked the same items.
    """
    measured = run.measured if run.parent in run.measured else ()
    absent = [v for v in run.variants if v not in measured]
    comparisons = {name: compare(run, name) for name in measured}
    fidelity = {}
    for name in run.variants[1:]:
        result = fidelity_result(run, name)
        if result is not None:
            fidelity[name] = result
    others = [c for c in comparisons.values() if c.variant != run.parent]
    four = [c for c in others if run.variant_info(c.variant).get("bits") == 4]
    uneven = [u for u in (_unevenness(c, run.recommend.min_items) for c in four) if u]
    uneven.sort(key=lambda u: -u.overall.delta)
    pairs = {name: c.pairs for name, c in comparisons.items()}
    warnings = list(_warnings(run, comparisons))
    if absent and len(run.items):
        warnings.append(f"no item records of: {', '.join(absent)}")
    if not run.finished:
        warnings.insert(0, "the run is not finished: the numbers are of what was done so far")
    return ReportData(
        run=run,
        comparisons=comparisons,
        fidelity=fidelity,
        control=fidelity_result(run, run.control),
        frontiers={axis: frontier(run, axis, resamples, pairs=pairs) for axis in AXES},
        recommendation=recommend(run, others),
        costs=variant_costs(run),
        uneven=tuple(uneven),
        warnings=tuple(warnings),
    )


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
    candidate = next((c for c in data.recommendation.candidates if c.variant == name), None)
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
        "qualifies": candidate.qualifies if candidate else None,
        "reasons": "; ".join(candidate.reasons) if candidate else "",
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
        "costs": pd.DataFrame([asdict(c) for c in data.costs.values()]),
    }
    if len(data.run.fidelity):
        out["kl_by_slice"] = kl_by_slice(data.run).reset_index()
    return {name: frame for name, frame in out.items() if len(frame)}
