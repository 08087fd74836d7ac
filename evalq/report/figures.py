"""Figures for papers and slides: PNG (200 dpi), SVG and PDF, the same bytes for the same run."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from evalq.errors import PlanError, nearest
from evalq.report import drawings
from evalq.report.frames import ReportData
from evalq.report.looks import STYLES, Look
from evalq.store.files import atomic_write

__all__ = ["FIGURES", "STYLES", "Figure", "draw", "save_figures"]

Figure = Literal["frontier", "heatmap", "cliff", "fidelity"]
FIGURES: tuple[Figure, ...] = ("frontier", "heatmap", "cliff", "fidelity")

_DRAW: Mapping[Figure, Callable[[ReportData, Look], Any]] = {
    "frontier": drawings.frontier,
    "heatmap": drawings.heatmap,
    "cliff": drawings.cliff,
    "fidelity": drawings.fidelity,
}

_DATES: Mapping[str, dict[str, None]] = {
    "png": {"Software": None},
    "svg": {"Date": None},
    "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
}
"""What would differ between two renderings, by format."""


def _look(style: str) -> Look:
    if style not in STYLES:
        raise PlanError(f"unknown style {style!r}", hint=nearest(style, STYLES))
    return STYLES[style]


def draw(data: ReportData, name: Figure, style: str = "paper") -> Any:
    """One figure as a matplotlib ``Figure``; ``None`` where there is no data for it.

    Args:
        data: the report.
        name: ``frontier``, ``heatmap``, ``cliff`` or ``fidelity``.
        style: ``paper``, ``slide`` or ``dark``.

    Raises:
        PlanError: no figure or style of that name.
    """
    import matplotlib as mpl

    if name not in _DRAW:
        raise PlanError(f"unknown figure {name!r}", hint=nearest(name, _DRAW))
    look = _look(style)
    with mpl.rc_context(look.settings):
        return _DRAW[name](data, look)


def save_figures(
    data: ReportData,
    directory: Path,
    names: Sequence[Figure] = FIGURES,
    style: str = "paper",
) -> list[Path]:
    """Draw figures into ``directory`` as PNG, SVG and PDF; those without data are left out.

    Files are named by figure, and by style too where it is not ``paper``.

    Raises:
        PlanError: no figure or style of that name.
        StoreError: the disk is full or cannot be written.
    """
    import matplotlib as mpl

    out = []
    look = _look(style)
    suffix = "" if style == "paper" else f"-{style}"
    with mpl.rc_context(look.settings):
        for name in names:
            drawing = draw(data, name, style)
            if drawing is None:
                continue
            for kind, dates in _DATES.items():
                buffer = io.BytesIO()
                drawing.savefig(buffer, format=kind, dpi=200, metadata=dates)
                # The layout found for the first kind serves the others.
                drawing.set_layout_engine("none")
                path = directory / f"{name}{suffix}.{kind}"
                with atomic_write(path) as stream:
                    stream.write(buffer.getvalue())
                out.append(path)
    return out
