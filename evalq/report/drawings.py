"""What the figures for papers and slides show, drawn with matplotlib."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from evalq.frontier import AXES
from evalq.report.charts import by_weight_bits, shape
from evalq.report.frames import ReportData
from evalq.report.looks import Look
from evalq.report.palette import MATPLOTLIB_MARKS
from evalq.report.text import short

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

__all__ = ["cliff", "fidelity", "frontier", "heatmap"]


def _name(text: str, length: int = 26) -> str:
    return short(text, length)


def _draw_mark(
    ax: Any, data: ReportData, look: Look, variant: str, at: tuple[float, float], **more: Any
) -> None:
    form = shape(data, variant)
    colour = look.colour(data.tier(variant))
    face = look.ground if form == "ring" else colour
    x, y = at
    ax.plot(
        [x],
        [y],
        marker=MATPLOTLIB_MARKS[form],
        color=colour,
        markerfacecolor=face,
        linestyle="none",
        **more,
    )


def frontier(data: ReportData, look: Look) -> Drawing | None:
    """Accuracy against bytes, the frontier as steps. ``None`` without data."""
    from matplotlib.figure import Figure as Drawing

    found = data.frontiers["bytes"]
    if not found.points:
        return None
    drawing = Drawing(figsize=look.size(6.4, 4.0), layout="constrained")
    ax = drawing.subplots()
    on = sorted((p for p in found.points if p.on_frontier), key=lambda p: p.cost)
    mib = 2.0**20
    ax.step(
        [p.cost / mib for p in on],
        [100 * p.quality for p in on],
        where="post",
        color=look.soft,
        linestyle=":",
        linewidth=1,
        zorder=1,
    )
    for p in found.points:
        alpha = 1.0 if p.on_frontier else 0.35
        overall = data.comparisons[p.variant].overall
        if overall and overall.ci and p.variant != data.run.parent:
            ends = [100 * (overall.parent_accuracy + c) for c in overall.ci]
            ax.plot(
                [p.cost / mib] * 2,
                ends,
                color=look.colour(data.tier(p.variant)),
                alpha=alpha,
                lw=1.5,
            )
        at = (p.cost / mib, 100 * p.quality)
        _draw_mark(ax, data, look, p.variant, at, alpha=alpha, markersize=look.mark)
        if p.on_frontier or p.variant == data.run.parent:
            bold = "bold" if p.variant == data.recommendation.variant else "normal"
            ax.annotate(
                _name(p.variant),
                at,
                xytext=(8, 6),
                textcoords="offset points",
                fontsize=look.small,
                fontweight=bold,
            )
    level = f"{100 * data.run.recommend.confidence:g} %"
    ax.set_xlabel(f"{AXES['bytes']} (MiB)")
    ax.set_ylabel(f"accuracy, all items (%)\nbars: paired {level} intervals")
    ax.grid(axis="y")
    ax.margins(0.1)
    return drawing


def heatmap(data: ReportData, look: Look) -> Drawing | None:
    """Change by slice and variant, stars where Holm holds. ``None`` without data."""
    from matplotlib.colors import LinearSegmentedColormap, SymLogNorm
    from matplotlib.figure import Figure as Drawing

    columns = [c for c in data.others if c.overall]
    names = ["overall", *data.slice_names]
    if not columns or len(names) < 2:
        return None
    values = np.array(
        [
            [100 * (c.overall if n == "overall" else c.slices[n]).delta for c in columns]  # type: ignore[union-attr]
            for n in names
        ]
    )
    drawing = Drawing(
        figsize=look.size(max(4.8, 2.8 + 0.52 * len(columns)), 2.4 + 0.27 * len(names)),
        layout="constrained",
    )
    ax = drawing.subplots()
    colours = LinearSegmentedColormap.from_list("evalq", look.scale)
    norm = SymLogNorm(linthresh=2.0, vmin=-100, vmax=100, base=10)
    image = ax.imshow(values, cmap=colours, norm=norm, aspect="auto")
    for i, name in enumerate(names):
        for j, comparison in enumerate(columns):
            result = comparison.overall if name == "overall" else comparison.slices[name]
            star = "*" if result and result.significant else ""
            strong = values[i, j] < -45
            ax.text(
                j,
                i,
                f"{values[i, j]:+.1f}{star}".replace("-", "−"),
                ha="center",
                va="center",
                fontsize=look.tiny,
                color=look.on_loss if strong else look.ink,
            )
    ax.set_xticks(range(len(columns)), [_name(c.variant) for c in columns], rotation=60, ha="right")
    shown = [n if "/" not in n else "   " * n.count("/") + n.rsplit("/", 1)[-1] for n in names]
    ax.set_yticks(range(len(names)), [_name(n) for n in shown])
    ax.tick_params(length=0)
    bar = drawing.colorbar(image, ax=ax, ticks=[-100, -10, 0, 10, 100], shrink=0.7)
    bar.ax.set_yticks(bar.get_ticks(), ["−100", "−10", "0", "+10", "+100"])
    bar.set_label("change in accuracy points; * a loss after Holm")
    return drawing


def cliff(data: ReportData, look: Look) -> Drawing | None:
    """Change by bits, a panel a slice. ``None`` without data."""
    from matplotlib.figure import Figure as Drawing

    by_method = by_weight_bits(data)
    parent = data.comparisons.get(data.run.parent)
    if not by_method or parent is None or not parent.leaves:
        return None
    names = [s.slice for s in parent.leaves][:24]
    columns = min(4, len(names))
    rows = -(-len(names) // columns)
    bits = sorted({b for f in by_method.values() for b, _ in f}, reverse=True)
    drawing = Drawing(
        figsize=look.size(1.9 * columns + 0.4, 1.5 * rows + 0.4), layout="constrained"
    )
    axes = drawing.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for ax in axes.flat[len(names) :]:
        ax.set_visible(False)
    for ax, name in zip(axes.flat, names, strict=False):
        ax.axhline(0, color=look.soft, lw=0.7)
        for found in by_method.values():
            found = sorted(found, key=lambda f: -f[0])
            at = [bits.index(b) for b, _ in found]
            deltas = [100 * c.slices[name].delta for _, c in found]
            ax.plot(at, deltas, color=look.line, lw=0.9, zorder=1)
            ax.scatter(
                at,
                deltas,
                s=16,
                marker=MATPLOTLIB_MARKS[shape(data, found[0][1].variant)],
                c=[look.colour(data.tier(c.variant)) for _, c in found],
                zorder=2,
            )
        ax.set_title(_name(name), fontsize=look.small, loc="left")
        ax.set_xticks(range(len(bits)), [f"{b:g}" for b in bits])
        ax.grid(axis="y")
    drawing.supxlabel("bits of the weights", fontsize=look.text, color=look.ink)
    drawing.supylabel("change, accuracy points", fontsize=look.text, color=look.ink)
    return drawing


def fidelity(data: ReportData, look: Look) -> Drawing | None:
    """KL divergence by variant above the noise floor. ``None`` without data."""
    from matplotlib.figure import Figure as Drawing

    found = [f for f in data.fidelity.values() if f.kl_mean > 0]
    if not found:
        return None
    drawing = Drawing(figsize=look.size(6.4, 1.0 + 0.27 * len(found)), layout="constrained")
    ax = drawing.subplots()
    for i, f in enumerate(found):
        down = len(found) - 1 - i
        if f.kl_ci:
            ends = [max(c, f.kl_mean / 100) for c in f.kl_ci]
            ax.plot(ends, [down] * 2, color=look.colour(data.tier(f.variant)), lw=1.5)
        _draw_mark(ax, data, look, f.variant, (f.kl_mean, down), markersize=look.mark - 1)
    if data.control is not None and data.control.kl_mean > 0:
        ax.axvline(data.control.kl_mean, color=look.ink, linestyle="--", lw=1)
        ax.annotate(
            "noise floor",
            (data.control.kl_mean, 1.0),
            xycoords=("data", "axes fraction"),
            xytext=(4, -2),
            textcoords="offset points",
            fontsize=look.small,
        )
    ax.set_xscale("log")
    # Log axes write their ticks as mathematics, which is off: names may hold dollar signs.
    ax.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    ax.xaxis.set_minor_formatter(lambda value, _: "")
    ax.set_yticks(range(len(found)), [_name(f.variant) for f in reversed(found)])
    ax.set_xlabel("KL divergence from the parent, nats a token")
    ax.grid(axis="x")
    return drawing
