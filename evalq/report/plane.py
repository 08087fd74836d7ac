"""The frontier of a run: its variants on the plane of cost and quality."""

from __future__ import annotations

from markupsafe import Markup

from evalq.frontier import AXES, LESS_IS_BETTER, Axis, Point
from evalq.report.charts import shape
from evalq.report.frames import ReportData
from evalq.report.scatter import Costs, Spot, scatter
from evalq.report.text import bytes_text, dollars_text, interval_text, pp

__all__ = ["cost_text", "frontier_chart", "near_points"]

NEAR = 0.1
"""Accuracy around the parent's that the closer view shows."""


def cost_text(axis: Axis, cost: float) -> str:
    """A cost with its unit."""
    if axis == "bytes":
        return bytes_text(cost)
    return f"{dollars_text(cost)} / M tokens" if axis == "price" else f"{cost:,.0f} tokens/s"


def _ends(data: ReportData, point: Point) -> tuple[float, float] | None:
    """The accuracies that the interval of the change reaches."""
    overall = data.comparisons[point.variant].overall
    if overall is None or overall.ci is None or point.variant == data.run.parent:
        return None
    low, high = (min(1.0, max(0.0, overall.parent_accuracy + c)) for c in overall.ci)
    return low, high


def _tip(data: ReportData, point: Point, axis: Axis) -> str:
    overall = data.comparisons[point.variant].overall
    lines = [point.variant, cost_text(axis, point.cost), f"accuracy {100 * point.quality:.1f} %"]
    if overall and point.variant != data.run.parent:
        lines.append(f"{pp(overall.delta)} against the parent ({interval_text(overall.ci)})")
    place = "on" if point.on_frontier else "not on"
    lines.append(f"{place} the frontier, probability {point.probability:.2f}")
    return "\n".join(lines)


def _spot(data: ReportData, point: Point, axis: Axis) -> Spot:
    return Spot(
        label=point.variant,
        cost=point.cost,
        quality=point.quality,
        ends=_ends(data, point),
        on=point.on_frontier,
        chosen=point.variant == data.recommendation.variant,
        named=point.on_frontier or point.variant == data.run.parent,
        tier=data.tier(point.variant).key,
        shape=shape(data, point.variant),
        tip=_tip(data, point, axis),
        index=data.run.variants.index(point.variant),
    )


def near_points(data: ReportData, axis: Axis) -> tuple[Point, ...]:
    """The points within ``NEAR`` of the parent's quality, where that leaves some out."""
    points = data.frontiers[axis].points
    parent = next((p.quality for p in points if p.variant == data.run.parent), 0.0)
    near = tuple(p for p in points if abs(p.quality - parent) <= NEAR)
    return near if 1 < len(near) < len(points) else ()


def frontier_chart(
    data: ReportData, axis: Axis, size: tuple[float, float], near: bool = False
) -> Markup:
    """Accuracy against cost; dominated variants faded, the frontier as a line of steps.

    Args:
        data: the report.
        axis: of cost.
        size: width and height in pixels.
        near: only what is close to the parent in quality.
    """
    points = near_points(data, axis) if near else data.frontiers[axis].points
    costs = Costs(axis, AXES[axis], bytes=axis == "bytes", less=axis in LESS_IS_BETTER)
    spots = [_spot(data, p, axis) for p in points]
    return scatter(spots, costs, size, "near" if near else "all")
