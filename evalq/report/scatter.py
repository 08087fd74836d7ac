"""A chart of quality against cost, as SVG that needs no script and that one can zoom with one."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from evalq.report.svg import Scale, element, linear, mark, root, text
from evalq.report.text import short, visible

__all__ = ["Costs", "Spot", "scatter"]


@dataclass(frozen=True)
class Spot:
    """A variant on the plane.

    Args:
        label: its name.
        cost: in the axis' own unit.
        quality: accuracy, 0 to 1.
        ends: accuracies that its interval reaches.
        on: whether it is on the frontier.
        chosen: whether it is recommended.
        named: whether its name stands beside it where there is room.
        tier: CSS class suffix.
        shape: of the mark.
        tip: what hovering shows.
        index: of its row in the page, which a click leads to.
    """

    label: str
    cost: float
    quality: float
    ends: tuple[float, float] | None
    on: bool
    chosen: bool
    named: bool
    tier: str
    shape: str
    tip: str
    index: int


@dataclass(frozen=True)
class Costs:
    """The axis of cost.

    Args:
        key: makes the ids of the page's charts differ.
        name: as written below it.
        bytes: costs are bytes, told in binary units.
        less: a smaller cost is the better one.
    """

    key: str
    name: str
    bytes: bool
    less: bool


@dataclass(frozen=True)
class _Plane:
    """Where the values of one chart lie; ``box`` is left, top, right and bottom of the plot, and
    ``costs`` are told in ``unit``s of ``divisor``."""

    axis: Costs
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

    def at(self, spot: Spot) -> tuple[float, float]:
        """Where a spot lies, in pixels."""
        return self.across.to(spot.cost / self.divisor), self.down.to(spot.quality)

    @property
    def data(self) -> str:
        """What the script needs to zoom."""
        content: dict[str, object] = {"x": self.costs, "y": self.qualities, "box": self.box}
        content["less"] = self.axis.less
        return json.dumps(content)


def _unit(value: float) -> tuple[str, float]:
    """The binary unit that ``value`` bytes are best told in, and its size."""
    power = min(int(math.log(max(value, 1), 1024)), 4)
    return ("B", "KiB", "MiB", "GiB", "TiB")[power], 1024.0**power


def _plane(axis: Costs, spots: Sequence[Spot], size: tuple[float, float], key: str) -> _Plane:
    width, height = size
    costs = [s.cost for s in spots]
    reach = [s.quality for s in spots] + [e for s in spots for e in s.ends or ()]
    span = max(reach) - min(reach) or 0.1
    spread = (max(costs) - min(costs)) or max(costs)
    unit, divisor = _unit(max(costs)) if axis.bytes else ("", 1.0)
    low, high = max(0.0, min(costs) - 0.12 * spread), max(costs) + 0.12 * spread
    return _Plane(
        axis=axis,
        size=size,
        box=(58.0, 36.0, width - 16.0, height - 46.0),
        unit=unit,
        divisor=divisor,
        costs=(low / divisor, high / divisor),
        qualities=(max(0.0, min(reach) - 0.06 * span), min(1.0, max(reach) + 0.08 * span)),
        key=f"{axis.key}-{key}-{width:.0f}",
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


def _mark(spot: Spot, plane: _Plane) -> Markup:
    at, down = plane.at(spot)
    parts = element("title", visible(spot.tip))
    if spot.chosen:
        parts += element("circle", cx=at, cy=down, r=13, class_="halo")
    if spot.ends:
        low, high = (plane.down.to(e) for e in spot.ends)
        parts += element("line", x1=at, x2=at, y1=low, y2=high, class_="bar")
    faded = "" if spot.on else " faded"
    return element(
        "g",
        parts + mark(spot.shape, at, down, 6.5),
        class_=f"pt tier-{spot.tier}{faded}",
        tabindex=0,
        data_variant=spot.index,
        data_x=repr(spot.cost / plane.divisor),
        data_y=repr(spot.quality),
        data_low=repr(spot.ends[0]) if spot.ends else None,
        data_high=repr(spot.ends[1]) if spot.ends else None,
        data_on="1" if spot.on else None,
        data_chosen="1" if spot.chosen else None,
    )


def _place_labels(
    spots: Sequence[tuple[float, float, str, int]], box: tuple[float, float, float, float]
) -> list[Markup]:
    """Each label in the first of a few places around its mark where it hits nothing; one that
    finds none is left out (its tip has the name)."""
    taken = [(x - 9, y - 9, x + 9, y + 9) for x, y, _, _ in spots]
    out = []
    for x, y, label, index in spots:
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
            inside = left >= box[0] - 4 and left + wide <= box[2] + 14 and down < box[3]
            hits = any(
                area[0] < t[2] and t[0] < area[2] and area[1] < t[3] and t[1] < area[3]
                for t in taken
            )
            if inside and not hits:
                taken.append(area)
                out.append(text(at, down, label, "name", text_anchor=anchor, data_of=index))
                break
    return out


def _steps(on: Sequence[Spot], plane: _Plane) -> Markup:
    """What is reachable: at each cost the best quality of what costs no more."""
    if len(on) < 2:
        return Markup("")
    left, top, right, bottom = plane.box
    path = ""
    for i, spot in enumerate(sorted(on, key=lambda s: s.cost)):
        at, down = plane.at(spot)
        if i == 0:
            path = f"M{at:.1f},{down:.1f}"
        elif plane.axis.less:
            path += f" H{at:.1f} V{down:.1f}"
        else:
            path += f" V{down:.1f} H{at:.1f}"
    inside = element("rect", x=left, y=top - 20, width=right - left, height=bottom - top + 20)
    clip = element("clipPath", inside, id=f"clip-{plane.key}")
    return clip + element("path", d=path, class_="steps", clip_path=f"url(#clip-{plane.key})")


def scatter(
    spots: Sequence[Spot], axis: Costs, size: tuple[float, float], key: str = "all"
) -> Markup:
    """Accuracy against cost; dominated variants faded, the frontier as a line of steps.

    Args:
        spots: what to draw; none gives nothing.
        axis: of cost.
        size: width and height in pixels.
        key: makes the ids of two views of one axis differ.
    """
    if not spots:
        return Markup("")
    plane = _plane(axis, spots, size, key)
    left, _, right, _ = plane.box
    name = f"{axis.name} ({plane.unit})" if plane.unit else axis.name
    on = [s for s in spots if s.on]
    body = [
        _scales(plane),
        text((left + right) / 2, size[1] - 8, name, "label", text_anchor="middle"),
        text(14, 20, "accuracy, all items", "label"),
        _steps(on, plane),
        *(_mark(s, plane) for s in sorted(spots, key=lambda s: s.on)),
    ]
    first = sorted((s for s in spots if s.named), key=lambda s: not s.chosen)
    named = [(*plane.at(s), short(s.label, 24), s.index) for s in first]
    body += _place_labels(named, plane.box)
    return root(size, f"Accuracy against {axis.name}", body, "chart", plane.data)
