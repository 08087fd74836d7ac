"""The cost-quality frontier and the tier to recommend."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from evalq import stats
from evalq.compare.adaptive import Strata, stops_of
from evalq.compare.pairs import Pairs, pair
from evalq.compare.runs import Run
from evalq.compare.slices import Comparison, SliceResult
from evalq.errors import ComparisonError
from evalq.memory import dollars_per_million
from evalq.plan import RecommendPlan

__all__ = [
    "AXES",
    "LESS_IS_BETTER",
    "Axis",
    "Candidate",
    "Frontier",
    "MeasuredAxis",
    "Point",
    "Recommendation",
    "VariantCost",
    "frontier",
    "price_frontier",
    "recommend",
    "variant_costs",
]

MeasuredAxis = Literal["bytes", "decode", "prefill"]
Axis = Literal["bytes", "decode", "prefill", "price"]
AXES: Mapping[Axis, str] = {
    "bytes": "bytes on disk",
    "decode": "decode tokens/s",
    "prefill": "prefill tokens/s",
    "price": "$ per million generated tokens",
}
"""Cost axes and what they are called."""

LESS_IS_BETTER: frozenset[Axis] = frozenset({"bytes", "price"})
"""Axes on which a smaller cost is the better one; on the others a higher speed is."""

SAME_SIZE = 0.01
"""Variants whose bytes differ by less than this share count as equally large."""


@dataclass(frozen=True)
class Point:
    """A variant on the plane of cost and quality.

    Args:
        cost: in the axis' own unit: bytes, tokens a second, or dollars a million tokens.
        quality: accuracy over all scored items.
        on_frontier: no variant has both at least its quality and at most its cost, one strictly.
        probability: share of resamplings of the items in which it is on the frontier.
    """

    variant: str
    cost: float
    quality: float
    on_frontier: bool
    probability: float


@dataclass(frozen=True)
class Frontier:
    """All variants on one cost axis.

    Args:
        axis: which.
        points: in the run's order.
        left_out: variant to why it has no place on this axis.
        resamples, seed: of the probabilities.
    """

    axis: Axis
    points: tuple[Point, ...]
    left_out: Mapping[str, str]
    resamples: int
    seed: int


@dataclass(frozen=True)
class VariantCost:
    """What one variant takes; ``None`` is not measured.

    Args:
        bytes: on disk.
        bits_per_weight: all in.
        peak_memory_bytes: the highest over the repeats.
        prefill, decode: tokens/s, the median over the repeats.
        execution: as in ``schema.CostRecord``; ``""`` when unknown.
    """

    variant: str
    bytes: float | None
    bits_per_weight: float | None
    peak_memory_bytes: float | None
    prefill: float | None
    decode: float | None
    execution: str
    repeats: int


@dataclass(frozen=True)
class Candidate:
    """One variant before the margins of the plan.

    Args:
        qualifies: overall and every slice of enough items keep their margin by the interval's
            lower bound.
        bound: lower bound of the overall difference (accuracy); ``None`` without an interval.
        reasons: what does not, in words; empty if it qualifies.
        advisory: slices of too few items (they are not held against it).
    """

    variant: str
    bytes: int
    qualifies: bool
    bound: float | None
    reasons: tuple[str, ...]
    advisory: tuple[str, ...]


@dataclass(frozen=True)
class Recommendation:
    """The tier to ship.

    Args:
        variant: label; the parent's when nothing cheaper qualifies.
        why: one or two sentences.
        saving: share of the parent's bytes that it saves (0 for the parent).
        candidates: all variants with a size, cheapest first.
        unsized: endpoints, whose size is unknown, to why they do not keep the margins (empty if
            they do). They are judged and never recommended for being small.
    """

    variant: str
    why: str
    saving: float
    candidates: tuple[Candidate, ...]
    unsized: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def _finite(value: object) -> float | None:
    return float(value) if isinstance(value, (int, float)) and np.isfinite(value) else None


def variant_costs(run: Run) -> dict[str, VariantCost]:
    """What every variant takes, in the run's order.

    Sizes come from run.json where costs were not measured.
    """
    out = {}
    for name in run.variants:
        entry = run.variant_info(name)
        mine = run.costs[run.costs["variant"] == name]
        if mine.empty:
            out[name] = VariantCost(
                variant=name,
                bytes=_finite(entry.get("bytes")),
                bits_per_weight=_finite(entry.get("bits_per_weight")),
                peak_memory_bytes=None,
                prefill=None,
                decode=None,
                execution=str(entry.get("execution") or ""),
                repeats=0,
            )
            continue
        first = mine.iloc[0]
        out[name] = VariantCost(
            variant=name,
            bytes=_finite(float(first["bytes_on_disk"])),
            bits_per_weight=_finite(float(first["bits_per_weight"])),
            peak_memory_bytes=_finite(float(mine["peak_memory_bytes"].max())),
            prefill=_finite(float(mine["prefill_tokens_per_second"].median())),
            decode=_finite(float(mine["decode_tokens_per_second"].median())),
            execution=str(first["execution"]),
            repeats=len(mine),
        )
    return out


def _axis_costs(run: Run, axis: MeasuredAxis) -> tuple[dict[str, float], dict[str, str]]:
    """Costs on the axis' own scale, and why the others have none."""
    costs: dict[str, float] = {}
    left_out: dict[str, str] = {}
    for name, cost in variant_costs(run).items():
        value = {"bytes": cost.bytes, "decode": cost.decode, "prefill": cost.prefill}[axis]
        if name not in run.measured:
            left_out[name] = "it has no item records"
        elif cost.execution == "endpoint":
            left_out[name] = f"it is an endpoint: its {AXES[axis]} are unknown"
        elif value is None or value <= 0:
            left_out[name] = f"its {AXES[axis]} were not measured"
        elif axis != "bytes" and cost.execution == "dequantized":
            left_out[name] = "it ran dequantized, so its speed is not its format's"
        else:
            costs[name] = value
    return costs, left_out


def frontier(
    run: Run,
    axis: MeasuredAxis = "bytes",
    resamples: int = 2000,
    seed: int = 0,
    pairs: Mapping[str, Pairs] | None = None,
) -> Frontier:
    """Place every variant on a cost axis and say how surely it is on the frontier.

    Items (clusters, where items share one) are drawn with replacement, the same for all variants.
    Variants of an adaptive run were asked different items: each one's quality is the parent's plus
    its difference, whose uncertainty is drawn for each by itself. A variant that runs dequantized
    has no place on a speed axis. Costs are taken as known.

    Args:
        run: the run.
        axis: of cost.
        resamples, seed: of the probabilities.
        pairs: by variant, with the parent, where they are known already.

    Raises:
        ComparisonError: variants that were not asked the same items.
    """
    costs, left_out = _axis_costs(run, axis)
    columns: dict[str, npt.NDArray[np.float64]] = {}
    clusters: npt.NDArray[np.int64] = np.array([], dtype=np.int64)
    for name in costs:
        scored = (pairs[name] if pairs and name in pairs else pair(run, name)).scored
        weight = scored["weight"].to_numpy(dtype=float)
        # Scaled so that plain means are weighted ones; all variants share the scale of a resample.
        columns[name] = scored["variant_score"].to_numpy(dtype=float) * weight / weight.mean()
        clusters = scored["cluster"].to_numpy()
    if not columns or not len(clusters):
        return Frontier(axis, (), left_out, resamples, seed)
    if run.info.get("adaptive"):
        return _adaptive_frontier(run, axis, costs, left_out, (resamples, seed))
    scores = np.column_stack(list(columns.values()))
    cost = np.array(list(costs.values()))
    penalty = cost if axis in LESS_IS_BETTER else 1 / cost
    on = stats.pareto(penalty, scores.mean(axis=0))
    shared = clusters if len(np.unique(clusters)) < len(clusters) else None
    rng = np.random.default_rng(seed)
    probability = stats.frontier_probability(scores, penalty, rng, resamples, shared)
    points = tuple(
        Point(name, costs[name], float(scores[:, i].mean()), bool(on[i]), float(probability[i]))
        for i, name in enumerate(columns)
    )
    return Frontier(axis, points, left_out, resamples, seed)


def _adaptive_frontier(
    run: Run,
    axis: MeasuredAxis,
    costs: Mapping[str, float],
    left_out: Mapping[str, str],
    draws: tuple[int, int],
) -> Frontier:
    """Differences to the parent in the place of scores; ``draws`` are their number and the seed."""
    resamples, seed = draws
    rng = np.random.default_rng(seed)
    quality, drawn = [], []
    for name in costs:
        stops = stops_of(run, name)
        scored = pair(run, name).scored
        base = float(scored["baseline_score"].mean())
        if stops is None:  # the parent, or a variant that was asked everything
            change = float((scored["variant_score"] - scored["baseline_score"]).mean())
            quality.append(base + change)
            drawn.append(np.full(resamples, change))
            continue
        strata = Strata(scored, stops)
        names = strata.within(None)
        quality.append(_parent_accuracy(run) + strata.result(names, 0.90).mean)
        drawn.append(strata.draws(rng, resamples))
    cost = np.array(list(costs.values()))
    penalty = cost if axis in LESS_IS_BETTER else 1 / cost
    on = stats.pareto(penalty, np.array(quality))
    share = np.mean([stats.pareto(penalty, row) for row in np.column_stack(drawn)], axis=0)
    points = tuple(
        Point(name, costs[name], quality[i], bool(on[i]), float(share[i]))
        for i, name in enumerate(costs)
    )
    return Frontier(axis, points, left_out, resamples, seed)


def _parent_accuracy(run: Run) -> float:
    return float(pair(run, run.parent).scored["variant_score"].mean())


def price_frontier(decode: Frontier, price_per_hour: float) -> Frontier:
    """The frontier on the price of generated tokens, from the one on measured decode speed.

    A price a token is the price an hour over the speed, so the order of the variants, and with it
    the probabilities, are those of the speeds.

    Args:
        decode: on the decode axis.
        price_per_hour: dollars an hour of the machine that was measured.

    Raises:
        PlanError: a price that is not above zero.
    """
    points = tuple(
        replace(p, cost=dollars_per_million(price_per_hour, p.cost)) for p in decode.points
    )
    return replace(decode, axis="price", points=points)


def _pp(value: float) -> str:
    return f"{100 * value:+.1f} pp".replace("-", "−")


def _loss(result: SliceResult, what: str, margin_pp: float) -> str:
    if result.ci is None:
        return f"{what} has no interval"
    state = "loses" if result.ci[1] < -margin_pp / 100 else "may lose"
    return (
        f"{what} {state} more than {margin_pp:g} pp "
        f"({_pp(result.delta)}, {100 * result.confidence:g} % interval {_pp(result.ci[0])} to "
        f"{_pp(result.ci[1])})"
    )


def _keeps(result: SliceResult, margin_pp: float) -> bool:
    return result.verdict(margin_pp / 100).verdict == "pass"


def _candidate(comparison: Comparison, size: int, plan: RecommendPlan) -> Candidate:
    reasons: list[str] = []
    advisory: list[str] = []
    overall = comparison.overall
    if overall is None:
        reasons.append("no scored items")
    elif not _keeps(overall, plan.margin_pp):
        reasons.append(_loss(overall, "overall it", plan.margin_pp))
    for name, result in comparison.slices.items():
        if result.size < plan.min_items:
            advisory.append(name)
        elif not _keeps(result, plan.slice_margin_pp):
            reasons.append(_loss(result, name, plan.slice_margin_pp))
    bound = None if overall is None or overall.ci is None else overall.ci[0]
    return Candidate(comparison.variant, size, not reasons, bound, tuple(reasons), tuple(advisory))


def _best_of_size(candidates: Sequence[Candidate], size: int) -> Candidate:
    """Of those about as large as ``size``, the one with the highest lower bound."""
    alike = [c for c in candidates if abs(c.bytes - size) <= SAME_SIZE * size]
    return max(alike, key=lambda c: (-1.0 if c.bound is None else c.bound, -c.bytes, c.variant))


def recommend(
    run: Run, comparisons: Sequence[Comparison], plan: RecommendPlan | None = None
) -> Recommendation:
    """The cheapest variant in bytes whose loss keeps the plan's margins.

    Of variants within one percent of its size, the one with the best lower bound is taken.
    Non-inferiority, by the lower bound of the interval, overall and on every slice of at least
    ``min_items`` items (all must pass, so no correction is due). The parent always qualifies.

    Args:
        run: the run.
        comparisons: of the variants that may be recommended, with the parent as baseline.
        plan: margins; the run's own if ``None``.

    Raises:
        ComparisonError: a comparison with another baseline.
    """
    plan = plan or run.recommend
    costs = variant_costs(run)
    parent_bytes = costs[run.parent].bytes
    candidates = []
    unsized: dict[str, tuple[str, ...]] = {}
    for comparison in comparisons:
        if comparison.baseline != run.parent:
            raise ComparisonError(
                f"a recommendation is against the parent, not {comparison.baseline!r}"
            )
        size = costs[comparison.variant].bytes
        if comparison.variant == run.parent:
            continue
        if size is not None:
            candidates.append(_candidate(comparison, int(size), plan))
        elif costs[comparison.variant].execution == "endpoint":
            unsized[comparison.variant] = _candidate(comparison, 0, plan).reasons
    if parent_bytes is not None:
        candidates.append(Candidate(run.parent, int(parent_bytes), True, 0.0, (), ()))
    candidates.sort(key=lambda c: (c.bytes, c.variant))
    qualified = [c for c in candidates if c.qualifies]
    chosen = _best_of_size(qualified, qualified[0].bytes) if qualified else None
    name = chosen.variant if chosen else run.parent
    saving = 1 - chosen.bytes / parent_bytes if chosen and parent_bytes else 0.0
    why = _why(run, name, candidates, {c.variant: c for c in comparisons}, plan)
    why += _caches_text(run, name, candidates, plan) + _unsized_text(unsized, plan)
    return Recommendation(name, why, saving, tuple(candidates), unsized)


def _caches_text(
    run: Run, chosen: str, candidates: Sequence[Candidate], plan: RecommendPlan
) -> str:
    """What was shown of rounded KV caches over the chosen weights: they take as many bytes on disk,
    so size alone would never name them."""
    if run.kv_bits[chosen] != 16:
        return ""
    weights = [run.variant_info(chosen).get(key) for key in ("path", "bytes")]
    alike = [
        c
        for c in candidates
        if run.kv_bits[c.variant] != 16
        and [run.variant_info(c.variant).get(key) for key in ("path", "bytes")] == weights
    ]
    alike.sort(key=lambda c: (-run.kv_bits[c.variant], c.variant))
    margins = f"{plan.margin_pp:g} pp overall and {plan.slice_margin_pp:g} pp a slice"
    kept = ", ".join(c.variant for c in alike if c.qualifies)
    others = "; ".join(f"{c.variant}: {c.reasons[0]}" for c in alike if not c.qualifies)
    start = " With a smaller KV cache, the same weights are"
    if not kept:
        return f"{start} not shown to stay within {margins} as {others}." if others else ""
    return f"{start} shown to stay within {margins} as {kept}{'; not as ' * bool(others)}{others}."


def _unsized_text(unsized: Mapping[str, tuple[str, ...]], plan: RecommendPlan) -> str:
    """A sentence for each endpoint."""
    margins = f"{plan.margin_pp:g} pp overall and {plan.slice_margin_pp:g} pp a slice"
    out = ""
    for name, reasons in unsized.items():
        verdict = "not shown" if reasons else "shown"
        out += f" {name}, an endpoint of unknown size, is {verdict} to stay within {margins}"
        out += f": {reasons[0]}." if reasons else "."
    return out


def _why(
    run: Run,
    chosen: str,
    candidates: Sequence[Candidate],
    comparisons: Mapping[str, Comparison],
    plan: RecommendPlan,
) -> str:
    margins = f"{plan.margin_pp:g} pp overall and {plan.slice_margin_pp:g} pp a slice"
    ours = next((c.bytes for c in candidates if c.variant == chosen), 0)
    cheaper = [c for c in candidates if not c.qualifies and c.bytes < (1 - SAME_SIZE) * ours]
    if chosen == run.parent:
        if not any(c.variant == chosen for c in candidates):
            if candidates:
                return f"No variant of known size is shown to stay within {margins}."
            return "Nothing can be recommended by size: the parent's is unknown."
        if len(candidates) == 1:
            return "No variant beside the parent has a known size."
        if not cheaper:
            return "No variant with scored items is smaller than the parent."
        nearest = _best_of_size(cheaper, cheaper[-1].bytes)
        return (
            f"No smaller variant is shown to stay within {margins}. The largest of them, "
            f"{nearest.variant}: {'; '.join(nearest.reasons[:2])}."
        )
    mine = next(c for c in candidates if c.variant == chosen)
    overall = comparisons[chosen].overall
    interval = "" if overall is None or overall.ci is None else f", at worst {_pp(overall.ci[0])}"
    delta = "" if overall is None else f" ({_pp(overall.delta)}{interval})"
    text = f"It is the smallest variant shown to stay within {margins}{delta}."
    if cheaper:
        below = _best_of_size(cheaper, cheaper[-1].bytes)
        text += f" The next smaller, {below.variant}: {below.reasons[0]}."
    if mine.advisory:
        few = ", ".join(mine.advisory[:3])
        if len(mine.advisory) > 3:
            few = f"{len(mine.advisory)} slices, such as {few}"
        text += f" Too few items to judge (under {plan.min_items}): {few}."
    return text
