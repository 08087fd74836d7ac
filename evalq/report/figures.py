"""Figures for papers and slides: PNG (200 dpi) and SVG, the same bytes for the same run."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from evalq.errors import PlanError, nearest
from evalq.frontier import AXES
from evalq.report.charts import shape
from evalq.report.frames import ReportData
from evalq.report.palette import MATPLOTLIB_MARKS
from evalq.report.text import short
from evalq.store.files import atomic_write

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

__all__ = ["FIGURES", "Figure", "draw", "save_figures"]

Figure = Literal["frontier", "heatmap", "cliff", "fidelity"]
FIGURES: tuple[Figure, ...] = ("frontier", "heatmap", "cliff", "fidelity")

STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#56626e",
    "axes.labelcolor": "#1b2733",
    "xtick.color": "#56626e",
    "ytick.color": "#56626e",
    "axes.grid": False,
    "grid.color": "#e6e9eb",
    "svg.hashsalt": "evalq",
    "svg.fonttype": "path",
    "text.usetex": False,
    "text.parse_math": False,
}


def _name(text: str, length: int = 26) -> str:
    return short(text, length)


def _draw_mark(ax: Any, data: ReportData, variant: str, x: float, y: float, **more: Any) -> None:
    form = shape(data, variant)
    colour = data.tier(variant).light
    face = "white" if form == "ring" else colour
    ax.plot(
        [x],
        [y],
        marker=MATPLOTLIB_MARKS[form],
        color=colour,
        markerfacecolor=face,
        linestyle="none",
        **more,
    )


def _frontier(data: ReportData) -> Drawing | None:
    from matplotlib.figure import Figure as Drawing

    found = data.frontiers["bytes"]
    if not found.points:
        return None
    drawing = Drawing(figsize=(6.4, 4.0), layout="constrained")
    ax = drawing.subplots()
    on = sorted((p for p in found.points if p.on_frontier), key=lambda p: p.cost)
    mib = 2.0**20
    ax.step(
        [p.cost / mib for p in on],
        [100 * p.quality for p in on],
        where="post",
        color="#56626e",
        linestyle=":",
        linewidth=1,
        zorder=1,
    )
    for p in found.points:
        alpha = 1.0 if p.on_frontier else 0.35
        overall = data.comparisons[p.variant].overall
        if overall and overall.ci and p.variant != data.run.parent:
            ends = [100 * (overall.parent_accuracy + c) for c in overall.ci]
            ax.plot([p.cost / mib] * 2, ends, color=data.tier(p.variant).light, alpha=alpha, lw=1.5)
        _draw_mark(ax, data, p.variant, p.cost / mib, 100 * p.quality, alpha=alpha, markersize=7)
        if p.on_frontier:
            bold = "bold" if p.variant == data.recommendation.variant else "normal"
            ax.annotate(
                _name(p.variant),
                (p.cost / mib, 100 * p.quality),
                xytext=(7, -10),
                textcoords="offset points",
                fontsize=8,
                fontweight=bold,
            )
    level = f"{100 * data.run.recommend.confidence:g} %"
    ax.set_xlabel(f"{AXES['bytes']} (MiB)")
    ax.set_ylabel(f"accuracy, all items (%); bars: paired {level} intervals")
    ax.grid(axis="y")
    ax.margins(0.1)
    return drawing


def _heatmap(data: ReportData) -> Drawing | None:
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
        figsize=(max(4.8, 2.8 + 0.52 * len(columns)), 2.4 + 0.27 * len(names)), layout="constrained"
    )
    ax = drawing.subplots()
    colours = LinearSegmentedColormap.from_list("evalq", ["#b33c00", "#ffffff", "#00736c"])
    norm = SymLogNorm(linthresh=2.0, vmin=-100, vmax=100, base=10)
    image = ax.imshow(values, cmap=colours, norm=norm, aspect="auto")
    for i, name in enumerate(names):
        for j, comparison in enumerate(columns):
            result = comparison.overall if name == "overall" else comparison.slices[name]
            star = "*" if result and result.significant else ""
            dark = values[i, j] < -45
            ax.text(
                j,
                i,
                f"{values[i, j]:+.1f}{star}".replace("-", "−"),
                ha="center",
                va="center",
                fontsize=6.5,
                color="white" if dark else "#1b2733",
            )
    ax.set_xticks(range(len(columns)), [_name(c.variant) for c in columns], rotation=60, ha="right")
    shown = [n if "/" not in n else "   " * n.count("/") + n.rsplit("/", 1)[-1] for n in names]
    ax.set_yticks(range(len(names)), [_name(n) for n in shown])
    ax.tick_params(length=0)
    bar = drawing.colorbar(image, ax=ax, ticks=[-100, -10, 0, 10, 100], shrink=0.7)
    bar.set_label("change in accuracy points; * a loss after Holm")
    return drawing


def _cliff(data: ReportData) -> Drawing | None:
    from matplotlib.figure import Figure as Drawing

    by_method: dict[str, list[tuple[float, Any]]] = {}
    for comparison in data.others:
        entry = data.run.variant_info(comparison.variant)
        if entry.get("bits"):
            method = str(entry.get("method") or entry.get("kind"))
            by_method.setdefault(method, []).append((float(entry["bits"]), comparison))
    parent = data.comparisons.get(data.run.parent)
    if not by_method or parent is None or not parent.leaves:
        return None
    names = [s.slice for s in parent.leaves][:24]
    columns = min(4, len(names))
    rows = -(-len(names) // columns)
    bits = sorted({b for f in by_method.values() for b, _ in f}, reverse=True)
    drawing = Drawing(figsize=(1.9 * columns + 0.4, 1.5 * rows + 0.4), layout="constrained")
    axes = drawing.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for ax in axes.flat[len(names) :]:
        ax.set_visible(False)
    for ax, name in zip(axes.flat, names, strict=False):
        ax.axhline(0, color="#56626e", lw=0.7)
        for found in by_method.values():
            found = sorted(found, key=lambda f: -f[0])
            at = [bits.index(b) for b, _ in found]
            deltas = [100 * c.slices[name].delta for _, c in found]
            ax.plot(at, deltas, color="#9aa5af", lw=0.9, zorder=1)
            ax.scatter(
                at,
                deltas,
                s=16,
                marker=MATPLOTLIB_MARKS[shape(data, found[0][1].variant)],
                c=[data.tier(c.variant).light for _, c in found],
                zorder=2,
            )
        ax.set_title(_name(name), fontsize=8, loc="left")
        ax.set_xticks(range(len(bits)), [f"{b:g}" for b in bits])
        ax.grid(axis="y")
    drawing.supxlabel("bits", fontsize=9)
    drawing.supylabel("change, accuracy points", fontsize=9)
    return drawing


def _fidelity(data: ReportData) -> Drawing | None:
    from matplotlib.figure import Figure as Drawing

    found = [f for f in data.fidelity.values() if f.kl_mean > 0]
    if not found:
        return None
    drawing = Drawing(figsize=(6.4, 1.0 + 0.27 * len(found)), layout="constrained")
    ax = drawing.subplots()
    for i, f in enumerate(found):
        down = len(found) - 1 - i
        if f.kl_ci:
            ends = [max(c, f.kl_mean / 100) for c in f.kl_ci]
            ax.plot(ends, [down] * 2, color=data.tier(f.variant).light, lw=1.5)
        _draw_mark(ax, data, f.variant, f.kl_mean, down, markersize=6)
    if data.control is not None and data.control.kl_mean > 0:
        ax.axvline(data.control.kl_mean, color="#1b2733", linestyle="--", lw=1)
        ax.annotate(
            "noise floor",
            (data.control.kl_mean, 1.0),
            xycoords=("data", "axes fraction"),
            xytext=(4, -2),
            textcoords="offset points",
            fontsize=8,
        )
    ax.set_xscale("log")
    ax.set_yticks(range(len(found)), [_name(f.variant) for f in reversed(found)])
    ax.set_xlabel("KL divergence from the parent, nats a token")
    ax.grid(axis="x")
    return drawing


_DRAW: Mapping[Figure, Callable[[ReportData], Any]] = {
    "frontier": _frontier,
    "heatmap": _heatmap,
    "cliff": _cliff,
    "fidelity": _fidelity,
}


def draw(data: ReportData, name: Figure) -> Any:
    """One figure as a matplotlib ``Figure``; ``None`` where there is no data for it.

    Raises:
        PlanError: no figure of that name.
    """
    import matplotlib as mpl

    if name not in _DRAW:
        raise PlanError(f"unknown figure {name!r}", hint=nearest(name, _DRAW))
    with mpl.rc_context(STYLE):
        return _DRAW[name](data)


def save_figures(
    data: ReportData, directory: Path, names: Sequence[Figure] = FIGURES
) -> list[Path]:
    """Draw figures into ``directory`` as PNG and SVG; those without data are left out.

    Raises:
        StoreError: the disk is full or cannot be written.
    """
    import matplotlib as mpl

    out = []
    with mpl.rc_context(STYLE):
        for name in names:
            drawing = _DRAW[name](data)
            if drawing is None:
                continue
            for kind in ("png", "svg"):
                buffer = io.BytesIO()
                when = {"Date": None} if kind == "svg" else {"Software": None}
                drawing.savefig(buffer, format=kind, dpi=200, metadata=when)
                # The layout found for the first kind serves the second.
                drawing.set_layout_engine("none")
                path = directory / f"{name}.{kind}"
                with atomic_write(path) as stream:
                    stream.write(buffer.getvalue())
                out.append(path)
    return out
