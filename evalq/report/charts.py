"""The charts inside the HTML, as SVG that follows the page's colours and needs no script."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from evalq.compare import Comparison
from evalq.frontier import AXES, Axis, Point
from evalq.report.frames import ReportData
from evalq.report.palette import mark_of
from evalq.report.svg import Scale, element, linear, log, mark, root, text
from evalq.report.text import bytes_text, interval_text, pp, short, visible

__all__ = ["cliff_panels", "frontier_chart", "kl_chart", "legend", "near_points"]

NEAR = 0.1
"""Accuracy around the parent's that the closer view of the frontier shows."""


def _entries(data: ReportData) -> list[Any]:
    return list(data.run.info["variants"])


def shape(data: ReportData, variant: str) -> str:
    """The mark of a variant."""
    return mark_of(_entries(data), data.run.variant_info(variant))


def cost_text(axis: Axis, cost: float) -> str:
    """A cost with its unit."""
    return bytes_text(cost) if axis == "bytes" else f"{cost:,.0f} tokens/s"


def _unit(value: float) -> tuple[str, float]:
    """The binary unit that ``value`` bytes are best told in, and its size."""
    power = min(int(math.log(max(value, 1), 1024)), 4)
    return ("B", "KiB", "MiB", "GiB", "TiB")[power], 1024.0**power


def _grid(x: Scale, y: Scale, box: tuple[float, float, float]) -> list[Markup]:
    left, right, bottom = box
    out = []
    for tick in y.ticks:
        at = y.to(tick)
        out.append(element("line", x1=left, x2=right, y1=at, y2=at, class_="grid"))
        out.append(text(left - 8, at + 4, f"{100 * tick:g} %", "tick", text_anchor="end"))
    for tick in x.ticks:
        at = x.to(tick)
        out.append(element("line", x1=at, x2=at, y1=bottom, y2=bottom + 5, class_="axis"))
    out.append(element("line", x1=left, x2=right, y1=bottom, y2=bottom, class_="axis"))
    return out


def _tip(data: ReportData, point: Point, axis: Axis) -> str:
    comparison = data.comparisons[point.variant]
    overall = comparison.overall
    lines = [point.variant, cost_text(axis, point.cost), f"accuracy {100 * point.quality:.1f} %"]
    if overall and point.variant != data.run.parent:
        lines.append(f"{pp(overall.delta)} against the parent ({interval_text(overall.ci)})")
    place = "on" if point.on_frontier else "not on"
    lines.append(f"{place} the frontier, probability {point.probability:.2f}")
    return "\n".join(lines)


def _bars(data: ReportData, point: Point, x: float, y: Scale) -> Markup:
    overall = data.comparisons[point.variant].overall
    if overall is None or overall.ci is None or point.variant == data.run.parent:
        return Markup("")
    low, high = (y.to(overall.parent_accuracy + c) for c in overall.ci)
    return element("line", x1=x, x2=x, y1=low, y2=high, class_="bar")


def _place_labels(
    spots: Sequence[tuple[float, float, str]], size: tuple[float, float]
) -> list[tuple[float, float, str, str]]:
    """(x, y, anchor, label): the first of a few places around each mark that hits nothing."""
    taken = [(x - 9, y - 9, x + 9, y + 9) for x, y, _ in spots]
    out = []
    for x, y, label in spots:
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
                out.append((at, down, anchor, label))
                break
    return out


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
    width, height = size
    points = near_points(data, axis) if near else data.frontiers[axis].points
    title = f"Accuracy against {AXES[axis]}"
    if not points:
        return Markup("")
    left, top, right, bottom = 58.0, 36.0, width - 16.0, height - 46.0
    costs = [p.cost for p in points]
    lows = [p.quality for p in points]
    for p in points:
        overall = data.comparisons[p.variant].overall
        if overall and overall.ci:
            lows += [max(0.0, overall.parent_accuracy + c) for c in overall.ci]
    span = max(lows) - min(lows) or 0.1
    domain = (max(0.0, min(lows) - 0.06 * span), min(1.0, max(lows) + 0.08 * span))
    y = linear(domain, (bottom, top))
    spread = (max(costs) - min(costs)) or max(costs)
    bounds = (max(0.0, min(costs) - 0.12 * spread), max(costs) + 0.12 * spread)
    unit, divisor = _unit(max(costs)) if axis == "bytes" else ("", 1.0)
    scaled = linear(
        (bounds[0] / divisor, bounds[1] / divisor), (left, right), 6 if width > 500 else 4
    )
    x = Scale(lambda v: scaled.to(v / divisor), tuple(t * divisor for t in scaled.ticks))
    body = _grid(x, y, (left, right, bottom))
    for tick, value in zip(x.ticks, scaled.ticks, strict=True):
        body.append(text(x.to(tick), bottom + 20, f"{value:,g}", "tick", text_anchor="middle"))
    name = f"{AXES[axis]} ({unit})" if unit else AXES[axis]
    body.append(text((left + right) / 2, height - 8, name, "label", text_anchor="middle"))
    body.append(text(14, 20, "accuracy, all items", "label"))
    on = sorted((p for p in points if p.on_frontier), key=lambda p: p.cost)
    body.append(_steps(on, axis, x, y))
    spots = []
    for p in sorted(points, key=lambda p: p.on_frontier):
        at, down = x.to(p.cost), y.to(p.quality)
        chosen = p.variant == data.recommendation.variant
        halo = element("circle", cx=at, cy=down, r=13, class_="halo") if chosen else Markup("")
        body.append(
            element(
                "g",
                element("title", visible(_tip(data, p, axis)))
                + halo
                + _bars(data, p, at, y)
                + mark(shape(data, p.variant), at, down, 6.5),
                class_=f"pt tier-{data.tier(p.variant).key}{'' if p.on_frontier else ' faded'}",
                tabindex=0,
                data_variant=data.run.variants.index(p.variant),
            )
        )
        if p.on_frontier:
            spots.append((at, down, short(p.variant, 24)))
    spots.sort(key=lambda s: s[2] != data.recommendation.variant)
    for at, down, anchor, label in _place_labels(spots, (width, bottom)):
        body.append(text(at, down, label, "name", text_anchor=anchor))
    return root((width, height), title, body, "chart")


def _steps(on: Sequence[Point], axis: Axis, x: Scale, y: Scale) -> Markup:
    """What is reachable: at each cost the best quality of what costs no more."""
    if len(on) < 2:
        return Markup("")
    path = ""
    for i, p in enumerate(on):
        at, down = x.to(p.cost), y.to(p.quality)
        if i == 0:
            path = f"M{at:.1f},{down:.1f}"
        elif axis == "bytes":
            path += f" H{at:.1f} V{down:.1f}"
        else:
            path += f" V{down:.1f} H{at:.1f}"
    return element("path", d=path, class_="steps")


def legend(data: ReportData) -> list[dict[str, Any]]:
    """Tiers and methods with their marks, for the key beside the charts."""
    tiers: dict[str, dict[str, Any]] = {}
    methods: dict[str, dict[str, Any]] = {}
    for entry in _entries(data):
        tier = data.tier(entry["name"])
        tiers.setdefault(tier.key, {"key": tier.key, "name": tier.name, "shape": "circle"})
        form = shape(data, entry["name"])
        if entry.get("kind") != "parent":
            name = str(entry.get("method") or entry.get("kind"))
            methods.setdefault(name, {"key": "none", "name": name, "shape": form})
    tiers["parent"]["shape"] = "ring"
    items = [*tiers.values(), *methods.values()]
    for item in items:
        body = [element("g", mark(item["shape"], 8, 8, 5), class_=f"pt tier-{item['key']}")]
        item["svg"] = root((16, 16), item["name"], body, "key")
    return items


def kl_chart(data: ReportData, width: float) -> Markup:
    """Mean KL divergence of every variant on a log scale, above the noise floor."""
    found = [f for f in data.fidelity.values() if f.kl_mean > 0]
    if not found:
        return Markup("")
    left = min(190.0, width * 0.36)
    top, right, row = 30.0, width - 16.0, 26.0
    height = top + row * len(found) + 44
    bottom = height - 44
    floor = data.control.kl_mean if data.control and data.control.kl_mean > 0 else None
    values = [f.kl_mean for f in found] + [c for f in found for c in f.kl_ci or () if c > 0]
    values += [floor] if floor else []
    low, high = min(values) / 2, max(values) * 2
    x = log((10 ** math.floor(math.log10(low)), high), (left, right))
    body = []
    step = 1 + len(x.ticks) // (8 if width > 500 else 5)
    for tick in x.ticks[::step]:
        at = x.to(tick)
        body.append(element("line", x1=at, x2=at, y1=top, y2=bottom, class_="grid"))
        body.append(text(at, bottom + 18, f"{tick:g}", "tick", text_anchor="middle"))
    if floor:
        at = x.to(floor)
        body.append(element("line", x1=at, x2=at, y1=top - 6, y2=bottom, class_="floor"))
        body.append(text(at + 5, top - 10, f"noise floor {floor:.1e}", "floor-name"))
    for i, f in enumerate(found):
        down = top + row * (i + 0.5)
        at = x.to(f.kl_mean)
        tip = f"{f.variant}\nKL {f.kl_mean:.3g} nats a token"
        parts = element("line", x1=left, x2=at, y1=down, y2=down, class_="stem")
        if f.kl_ci:
            tip += f", {100 * f.confidence:g} % interval {f.kl_ci[0]:.3g} to {f.kl_ci[1]:.3g}"
            ends = [x.to(max(c, x.ticks[0] if x.ticks else low)) for c in f.kl_ci]
            parts += element("line", x1=ends[0], x2=ends[1], y1=down, y2=down, class_="bar")
        body.append(
            element(
                "g",
                element("title", visible(tip)) + parts + mark(shape(data, f.variant), at, down, 6),
                class_=f"pt tier-{data.tier(f.variant).key}",
                tabindex=0,
            )
        )
        name = short(f.variant, 24 if width > 500 else 15)
        body.append(text(left - 8, down + 4, name, "name", text_anchor="end"))
    label = "KL divergence from the parent, nats a token" if width > 500 else "KL, nats a token"
    body.append(
        text((left + right) / 2, height - 10, f"{label} (log scale)", "label", text_anchor="middle")
    )
    return root((width, height), "KL divergence by variant", body, "chart")


def cliff_panels(data: ReportData) -> list[dict[str, Any]]:
    """One small chart a leaf slice: loss by bits, a line a method, all on one scale."""
    by_method: dict[str, list[tuple[int, Comparison]]] = {}
    for comparison in data.others:
        entry = data.run.variant_info(comparison.variant)
        if entry.get("bits"):
            name = str(entry.get("method") or entry.get("kind"))
            by_method.setdefault(name, []).append((int(entry["bits"]), comparison))
    bits = sorted({b for found in by_method.values() for b, _ in found}, reverse=True)
    if not bits:
        return []
    names = [s.slice for s in data.comparisons[data.run.parent].leaves]
    every = [c.slices[n].delta for n in names for c in data.others]
    domain = (min(-0.02, *every), max(0.02, *every))
    return [
        {"name": n, "svg": _cliff(data, n, by_method, bits, domain)}
        for n in sorted(names, key=lambda n: sum(c.slices[n].delta for c in data.others))
    ]


def _cliff(
    data: ReportData,
    name: str,
    by_method: dict[str, list[tuple[int, Comparison]]],
    bits: Sequence[int],
    domain: tuple[float, float],
) -> Markup:
    width, height = 210.0, 132.0
    left, top, right, bottom = 38.0, 10.0, width - 10.0, height - 22.0
    y = linear(domain, (bottom, top), 3)
    step = (right - left) / (len(bits) + 1)
    at = {b: left + step * (i + 1) for i, b in enumerate(bits)}
    body = []
    for tick in y.ticks:
        down = y.to(tick)
        kind = "axis" if tick == 0 else "grid"
        body.append(element("line", x1=left, x2=right, y1=down, y2=down, class_=kind))
        label = f"{100 * tick:+g}".replace("-", "−") if tick else "0"
        body.append(text(left - 6, down + 3.5, label, "tick", text_anchor="end"))
    for b in bits:
        body.append(text(at[b], height - 6, f"{b}", "tick", text_anchor="middle"))
    for number, found in enumerate(by_method.values()):
        shift = 5.0 * (number - (len(by_method) - 1) / 2)
        found = sorted(found, key=lambda f: -f[0])
        line = " ".join(f"{at[b] + shift:.1f},{y.to(c.slices[name].delta):.1f}" for b, c in found)
        body.append(element("polyline", points=line, class_="trend"))
        for b, comparison in found:
            result = comparison.slices[name]
            across, down = at[b] + shift, y.to(result.delta)
            bar = Markup("")
            if result.ci:
                ends = [min(max(c, domain[0]), domain[1]) for c in result.ci]
                bar = element(
                    "line", x1=across, x2=across, y1=y.to(ends[0]), y2=y.to(ends[1]), class_="bar"
                )
            tip = f"{comparison.variant} on {name}\n{pp(result.delta)} ({interval_text(result.ci)})"
            body.append(
                element(
                    "g",
                    element("title", visible(tip))
                    + bar
                    + mark(shape(data, comparison.variant), across, down, 3.6),
                    class_=f"pt tier-{data.tier(comparison.variant).key}",
                )
            )
    return root((width, height), f"Loss by bits on {name}", body, "panel")
