"""Small helpers for the charts inside the HTML: elements, axes, marks. Colours come from CSS."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from evalq.report.text import visible

__all__ = ["Scale", "element", "linear", "log", "mark", "nice_ticks", "root", "text"]


def element(name: str, content: str | Markup = "", **attributes: object) -> Markup:
    """One SVG element; attribute values and plain ``content`` are escaped.

    A trailing underscore is dropped from attribute names and others become hyphens.
    """
    given = Markup("").join(
        Markup(' {}="{}"').format(
            Markup(key.rstrip("_").replace("_", "-")),
            f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else value,
        )
        for key, value in attributes.items()
        if value is not None
    )
    return Markup("<{0}{1}>{2}</{0}>").format(Markup(name), given, escape(content))


def text(x: float, y: float, content: str, class_: str = "", **attributes: object) -> Markup:
    """A text element."""
    return element("text", visible(content), x=x, y=y, class_=class_ or None, **attributes)


def root(
    size: tuple[float, float], title: str, body: Sequence[Markup], class_: str, plane: str = ""
) -> Markup:
    """The svg element, with its title for screen readers; ``plane`` is for the zooming script.

    A chart is a group, as its points can be reached by keyboard; other drawings are images.
    """
    width, height = size
    return element(
        "svg",
        element("title", visible(title)) + Markup("").join(body),
        viewBox=f"0 0 {width:g} {height:g}",
        width=f"{width:g}",
        height=f"{height:g}",
        class_=class_,
        role="group" if class_ == "chart" else "img",
        aria_label=visible(title),
        data_plane=plane or None,
    )


@dataclass(frozen=True)
class Scale:
    """From values to pixels, with the values of the ticks."""

    to: Callable[[float], float]
    ticks: tuple[float, ...]


def nice_ticks(low: float, high: float, count: int = 5) -> tuple[float, ...]:
    """At most about ``count`` round values within [low, high]."""
    span = high - low
    if not span > 0:
        return (low,)
    raw = span / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(s * power for s in (1, 2, 2.5, 5, 10) if s * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return tuple(round(i * step, 12) for i in range(first, last + 1))


def linear(domain: tuple[float, float], pixels: tuple[float, float], ticks: int = 5) -> Scale:
    """A linear scale."""
    (a, b), (p, q) = domain, pixels
    span = (b - a) or 1.0
    return Scale(lambda v: p + (v - a) / span * (q - p), nice_ticks(a, b, ticks))


def log(domain: tuple[float, float], pixels: tuple[float, float]) -> Scale:
    """A base-10 logarithmic scale with a tick a decade (and 2 and 5 where there are few)."""
    a, b = math.log10(domain[0]), math.log10(domain[1])
    p, q = pixels
    steps = (1.0, 2.0, 5.0) if b - a < 2 else (1.0,)
    ticks = tuple(
        s * 10.0**e
        for e in range(math.floor(a), math.ceil(b) + 1)
        for s in steps
        if a - 1e-9 <= math.log10(s * 10.0**e) <= b + 1e-9
    )
    return Scale(lambda v: p + (math.log10(v) - a) / ((b - a) or 1.0) * (q - p), ticks)


def mark(shape: str, x: float, y: float, r: float) -> Markup:
    """A mark of about the same area for each shape."""
    if shape == "circle":
        return element("circle", cx=x, cy=y, r=r)
    if shape == "ring":
        outer = element("circle", cx=x, cy=y, r=r + 1.5, class_="ring")
        return outer + element("circle", cx=x, cy=y, r=r * 0.45)
    if shape == "square":
        s = r * 0.9
        return element("rect", x=x - s, y=y - s, width=2 * s, height=2 * s, rx=1)
    k = r * 1.25
    points = {
        "triangle": [(0, -k), (k, k * 0.75), (-k, k * 0.75)],
        "down": [(0, k), (k, -k * 0.75), (-k, -k * 0.75)],
        "diamond": [(0, -k), (k, 0), (0, k), (-k, 0)],
    }.get(shape)
    if points is None:
        spikes = 4 if shape == "cross" else 5
        points = [
            (
                (k if i % 2 == 0 else k * 0.45) * math.sin(math.pi * i / spikes),
                -(k if i % 2 == 0 else k * 0.45) * math.cos(math.pi * i / spikes),
            )
            for i in range(2 * spikes)
        ]
    path = " ".join(f"{x + dx:.1f},{y + dy:.1f}" for dx, dy in points)
    return element("polygon", points=path)
