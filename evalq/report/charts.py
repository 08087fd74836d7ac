"""The charts inside the HTML, as SVG that follows the page's colours and needs no script."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from evalq.compare import Comparison
from evalq.report.frames import ReportData
from evalq.report.palette import mark_of
from evalq.report.svg import element, linear, log, mark, root, text
from evalq.report.text import interval_text, pp, short, visible

__all__ = ["by_weight_bits", "cliff_panels", "kl_chart", "legend", "shape"]


def _entries(data: ReportData) -> list[Any]:
    return list(data.run.info["variants"])


def shape(data: ReportData, variant: str) -> str:
    """The mark of a variant."""
    return mark_of(_entries(data), data.run.variant_info(variant))


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


def by_weight_bits(data: ReportData) -> dict[str, list[tuple[float, Comparison]]]:
    """By method, the bits of the weights and the comparison of each variant. What a rounded KV
    cache loses is no loss of its weights' bits: those variants are left out."""
    found: dict[str, list[tuple[float, Comparison]]] = {}
    for comparison in data.others:
        entry = data.run.variant_info(comparison.variant)
        if entry.get("bits") and data.run.kv_bits[comparison.variant] == 16:
            name = str(entry.get("method") or entry.get("kind"))
            found.setdefault(name, []).append((float(entry["bits"]), comparison))
    return found


def cliff_panels(data: ReportData) -> list[dict[str, Any]]:
    """One small chart a leaf slice: loss by bits, a line a method, all on one scale."""
    by_method = by_weight_bits(data)
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
    by_method: dict[str, list[tuple[float, Comparison]]],
    bits: Sequence[float],
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
        body.append(text(at[b], height - 6, f"{b:g}", "tick", text_anchor="middle"))
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
