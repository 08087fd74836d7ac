"""``evalq report``: render a stored run again, without a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

__all__ = ["command"]


def command(
    run: Annotated[Path, typer.Argument(help="A run directory.", show_default=False)],
    figures: Annotated[
        str, typer.Option(help="Figures to draw: frontier,heatmap,cliff,fidelity, or 'none'.")
    ] = "frontier,heatmap,cliff,fidelity",
    price: Annotated[
        float | None,
        typer.Option(
            "--price-per-hour", min=0.0, help="Dollars an hour of the machine that was measured."
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print report/summary.json instead of its path.")
    ] = False,
) -> None:
    """Render a stored run: one HTML page, figures, tables, summary.json and summary.md.

    Example: evalq report runs/demo
    """
    from evalq.errors import PlanError, nearest
    from evalq.report.figures import FIGURES
    from evalq.report.render import render

    asked = [f.strip() for f in figures.split(",") if f.strip() and f.strip() != "none"]
    for name in asked:
        if name not in FIGURES:
            raise PlanError(f"unknown figure {name!r}", hint=nearest(name, FIGURES))
    path = render(run, tuple(f for f in FIGURES if f in asked), price)
    if as_json:
        summary = json.loads((path.parent / "summary.json").read_text(encoding="utf-8"))
        typer.echo(json.dumps(summary, indent=2))
    else:
        typer.echo(str(path))
