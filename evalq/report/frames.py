"""All that a report shows, computed once from a run."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from evalq.compare import (
    Comparison,
    FidelityResult,
    Run,
    SliceResult,
    compare,
    fidelity_result,
)
from evalq.frontier import (
    Axis,
    Frontier,
    MeasuredAxis,
    Recommendation,
    VariantCost,
    frontier,
    price_frontier,
    recommend,
    variant_costs,
)
from evalq.report.palette import Tier, tier_of
from evalq.report.text import UNKNOWN, bytes_text

__all__ = ["ReportData", "Unevenness", "collect"]


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
        price_per_hour: dollars an hour of the machine that was measured, where one was given.
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
    price_per_hour: float | None = None

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
    def served(self) -> tuple[str, ...]:
        """Variants that an endpoint answers for: what they store and cost is unknown."""
        return tuple(n for n, c in self.costs.items() if c.execution == "endpoint")

    def size_text(self, variant: str) -> str:
        """Bytes on disk, with a unit."""
        return UNKNOWN if variant in self.served else bytes_text(self.costs[variant].bytes)

    def bits_text(self, variant: str) -> str:
        """Bits a weight, all in."""
        bits = self.costs[variant].bits_per_weight
        if variant in self.served:
            return UNKNOWN
        return "–" if bits is None else f"{bits:.2f}"

    def kl_text(self, variant: str) -> str:
        """Mean KL in nats; an endpoint shows no distributions to compare."""
        found = self.fidelity.get(variant)
        if found is not None:
            return f"{found.kl_mean:.2g}"
        return "n/a" if variant in self.served and variant != self.run.parent else "–"

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
        count = int(truncated[name])
        if count:
            out.append(
                f"{name}: {count} item{'s were' if count > 1 else ' was'} truncated: the prompt to "
                "fit the context, or the answer at its limit of tokens"
            )
    return tuple(out)


def _price(run: Run, given: float | None) -> float | None:
    stored = run.info.get("plan", {}).get("cost", {}).get("price_per_hour")
    return given if given is not None else None if stored is None else float(stored)


def collect(run: Run, resamples: int = 2000, price_per_hour: float | None = None) -> ReportData:
    """Compute everything a report of ``run`` shows.

    A variant of an unfinished run that lacks item records is left out, and a warning says so.

    Args:
        run: the run.
        resamples: for the probability of being on the frontier.
        price_per_hour: dollars an hour of the machine that was measured; the plan's own if
            ``None``.

    Raises:
        ComparisonError: variants that were not asked the same items.
        PlanError: a price that is not above zero.
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
    measured_axes: tuple[MeasuredAxis, ...] = ("bytes", "decode", "prefill")
    frontiers: dict[Axis, Frontier] = {
        axis: frontier(run, axis, resamples, pairs=pairs) for axis in measured_axes
    }
    price = _price(run, price_per_hour)
    if price is not None:
        frontiers["price"] = price_frontier(frontiers["decode"], price)
    return ReportData(
        run=run,
        comparisons=comparisons,
        fidelity=fidelity,
        control=fidelity_result(run, run.control),
        frontiers=frontiers,
        recommendation=recommend(run, others),
        costs=variant_costs(run),
        uneven=tuple(uneven),
        warnings=tuple(warnings),
        price_per_hour=price,
    )
