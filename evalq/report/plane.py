"""The chart of quality against cost, as SVG that needs no script and that one can zoom with one."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from evalq.frontier import AXES, LESS_IS_BETTER, Axis, Point
from evalq.report.charts import shape
from evalq.report.frames import ReportData
from evalq.report.svg import Scale, element, linear, mark, root, text
from evalq.report.text import bytes_text, dollars_text, interval_text, pp, short, visible

__all__ = ["cost_text", "frontier_chart", "near_points"]

NEAR = 0.1
"""Accuracy around the parent's that the closer view shows."""


def cost_text(axis: Axis, cost: float) -> str:
    """A cost with its unit."""
    if axis == "bytes":
        return bytes_text(cost)
    return f"{dollars_text(cost)} / M tokens" if axis == "price" else f"{cost:,.0f} tokens/s"


@dataclass(frozen=True)
class _Plane:
    """Where the values of one chart lie.

    Args:
        axis: of cost.
        size: width and height in pixels.
        box: left, top, right and bottom of the plot.
        unit, divisor: costs are told in ``unit``s of ``divisor``.
        costs, qualities: the ranges shown, costs in units.
        key: makes the ids of the page's charts differ.
    """

    axis: Axis
    size: tuple[float, float]
    box: tuple[float, float, float, float]
    unit: str
    divisor: float
    costs: tuple[float, float]
    qualities: tuple[float, float]
    key: str

    @property
    def across(self) -> Scale:
        left, _, right, _ = self.box
        return linear(self.costs, (left, right), 6 if self.size[0] > 500 else 4)

    @property
    def down(self) -> Scale:
        _, top, _, bottom = self.box
        return linear(self.qualities, (bottom, top))

    def spot(self, point: Point) -> tuple[float, float]:
        """Where a point lies, in pixels."""
        return self.across.to(point.cost / self.divisor), self.down.to(point.quality)

    @property
    def data(self) -> str:
        """What the script needs to zoom."""
        content: dict[str, object] = {"x": self.costs, "y": self.qualities, "box": self.box}
        content["less"] = self.axis in LESS_IS_BETTER
        return json.dumps(content)


def _unit(value: float) -> tuple[str, float]:
    """The binary unit that ``value`` bytes are best told in, and its size."""
    power = min(int(math.log(max(value, 1), 1024)), 4)
    return ("B", "KiB", "MiB", "GiB", "TiB")[power], 1024.0**power


def _ends(data: ReportData, point: Point) -> tuple[float, float] | None:
    """The accuracies that the interval of the change reaches."""
    overall = data.comparisons[point.variant].overall
    if overall is None or overall.ci is None or point.variant == data.run.parent:
        return None
    low, high = (min(1.0, max(0.0, overall.parent_accuracy + c)) for c in overall.ci)
    return low, high


def _plane(
    data: ReportData, axis: Axis, points: Sequence[Point], size: tuple[float, float], near: bool
) -> _Plane:
    width, height = size
    costs = [p.cost for p in points]
    reach = [p.quality for p in points] + [e for p in points for e in _ends(data, p) or ()]
    span = max(reach) - min(reach) or 0.1
    spread = (max(costs) - min(costs)) or max(costs)
    unit, divisor = _unit(max(costs)) if axis == "bytes" else ("", 1.0)
    low, high = max(0.0, min(costs) - 0.12 * spread), max(costs) + 0.12 * spread
    return _Plane(
        axis=axis,
        size=size,
        box=(58.0, 36.0, width - 16.0, height - 46.0),
        unit=unit,
        divisor=divisor,
        costs=(low / divisor, high / divisor),
        qualities=(max(0.0, min(reach) - 0.06 * span), min(1.0, max(reach) + 0.08 * span)),
        key=f"{axis}-{'near' if near else 'all'}-{width:.0f}",
    )


def _scales(plane: _Plane) -> Markup:
    left, _, right, bottom = plane.box
    out = []
    for tick in plane.down.ticks:
        at = plane.down.to(tick)
        out.append(element("line", x1=left, x2=right, y1=at, y2=at, class_="grid"))
        out.append(text(left - 8, at + 4, f"{100 * tick:g} %", "tick", text_anchor="end"))
    for tick in plane.across.ticks:
        at = plane.across.to(tick)
        out.append(element("line", x1=at, x2=at, y1=bottom, y2=bottom + 5, class_="axis"))
        out.append(text(at, bottom + 20, f"{tick:,g}", "tick", text_anchor="middle"))
    out.append(element("line", x1=left, x2=right, y1=bottom, y2=bottom, class_="axis"))
    return element("g", Markup("").join(out), class_="scales")


def _tip(data: ReportData, point: Point, axis: Axis) -> str:
    overall = data.comparisons[point.variant].overall
    lines = [point.variant, cost_text(axis, point.cost), f"accuracy {100 * point.quality:.1f} %"]
    if overall and point.variant != data.run.parent:
        lines.append(f"{pp(overall.delta)} against the parent ({interval_text(overall.ci)})")
    place = "on" if point.on_frontier else "not on"
    lines.append(f"{place} the frontier, probability {point.probability:.2f}")
    return "\n".join(lines)


def _point(data: ReportData, point: Point, plane: _Plane) -> Markup:
    at, down = plane.spot(point)
    chosen = point.variant == data.recommendation.variant
    parts = element("title", visible(_tip(data, point, plane.axis)))
    if chosen:
        parts += element("circle", cx=at, cy=down, r=13, class_="halo")
    ends = _ends(data, point)
    if ends:
        low, high = (plane.down.to(e) for e in ends)
        parts += element("line", x1=at, x2=at, y1=low, y2=high, class_="bar")
    faded = "" if point.on_frontier else " faded"
    return element(
        "g",
        parts + mark(shape(data, point.variant), at, down, 6.5),
        class_=f"pt tier-{data.tier(point.variant).key}{faded}",
        tabindex=0,
        data_variant=data.run.variants.index(point.variant),
        data_x=repr(point.cost / plane.divisor),
        data_y=repr(point.quality),
        data_low=repr(ends[0]) if ends else None,
        data_high=repr(ends[1]) if ends else None,
        data_on="1" if point.on_frontier else None,
        data_chosen="1" if chosen else None,
    )


def _place_labels(
    spots: Sequence[tuple[float, float, str, int]], size: tuple[float, float]
) -> list[Markup]:
    """Each label in the first of a few places around its mark where it hits nothing."""
    taken = [(x - 9, y - 9, x + 9, y + 9) for x, y, _, _ in spots]
    out = []
    for x, y, label, variant in spots:
        wide = 6.7 * len(label)
        options = [
            (x, y - 17, "middle"),
            (x + 11, y - 11, "start"),
            (x - 11, y - 11, "end"),
            (x + 11, y + 20, "start"),
            (x + 13, y + 4, "start"),
            (x - 13, y + 4, "end"),
            (x, y + 23, "middle"),
        ]
        for at, down, anchor in options:
            left = at - {"start": 0, "end": wide, "middle": wide / 2}[anchor]
            area = (left, down - 11, left + wide, down + 3)
            inside = left >= 2 and left + wide <= size[0] - 2 and down < size[1]
            hits = any(
                area[0] < t[2] and t[0] < area[2] and area[1] < t[3] and t[1] < area[3]
                for t in taken
            )
            if inside and not hits:
                taken.append(area)
                out.append(text(at, down, label, "name", text_anchor=anchor, data_of=variant))
                break
    return out


def _steps(on: Sequence[Point], plane: _Plane) -> Markup:
    """What is reachable: at each cost the best quality of what costs no more."""
    if len(on) < 2:
        return Markup("")
    left, top, right, bottom = plane.box
    path = ""
    for i, point in enumerate(sorted(on, key=lambda p: p.cost)):
        at, down = plane.spot(point)
        if i == 0:
            path = f"M{at:.1f},{down:.1f}"
        elif plane.axis in LESS_IS_BETTER:
            path += f" H{at:.1f} V{down:.1f}"
        else:
            path += f" V{down:.1f} H{at:.1f}"
    inside = element("rect", x=left, y=top - 20, width=right - left, height=bottom - top + 20)
    clip = element("clipPath", inside, id=f"clip-{plane.key}")
    return clip + element("path", d=path, class_="steps", clip_path=f"url(#clip-{plane.key})")


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
    if not points:
        return Markup("")
    plane = _plane(data, axis, points, size, near)
    left, _, right, bottom = plane.box
    name = f"{AXES[axis]} ({plane.unit})" if plane.unit else AXES[axis]
    on = [p for p in points if p.on_frontier]
    body = [
        _scales(plane),
        text((left + right) / 2, size[1] - 8, name, "label", text_anchor="middle"),
        text(14, 20, "accuracy, all items", "label"),
        _steps(on, plane),
        *(_point(data, p, plane) for p in sorted(points, key=lambda p: p.on_frontier)),
    ]
    named = [p for p in points if p.on_frontier or p.variant == data.run.parent]
    first = sorted(named, key=lambda p: p.variant != data.recommendation.variant)
    order = data.run.variants.index
    spots = [(*plane.spot(p), short(p.variant, 24), order(p.variant)) for p in first]
    body += _place_labels(spots, (size[0], bottom))
    return root(size, f"Accuracy against {AXES[axis]}", body, "chart", plane.data)
