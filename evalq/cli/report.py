"""``evalq report``: stored runs rendered again, without a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from evalq.errors import PlanError, nearest

__all__ = ["command"]


def command(
    runs: Annotated[
        list[Path] | None,
        typer.Argument(metavar="RUN…", help="Run directories; several make one report."),
    ] = None,
    figures: Annotated[
        str, typer.Option(help="Figures to draw: frontier,heatmap,cliff,fidelity, or 'none'.")
    ] = "frontier,heatmap,cliff,fidelity",
    style: Annotated[str, typer.Option(help="Of the figures: paper, slide or dark.")] = "paper",
    history: Annotated[
        Path | None,
        typer.Option(help="Instead of runs: a directory of gated runs, for a page of the gate."),
    ] = None,
    memory: Annotated[
        str | None, typer.Option(help="With several runs: what there is, as 24GB or 24GiB.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Of several runs or a history: where to write (beside them if not set)."),
    ] = None,
    price: Annotated[
        float | None,
        typer.Option(
            "--price-per-hour", min=0.0, help="Dollars an hour of the machine that was measured."
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print summary.json (comparison.json), not the path.")
    ] = False,
) -> None:
    """Render a stored run: one HTML page, figures, tables, summary.json and summary.md.

    Several runs give one page: which model at which precision for this memory. A directory of
    gated runs (--history) gives the page of the gate over releases.

    Example: evalq report runs/demo --figures frontier,heatmap --style slide

    Example: evalq report runs/small runs/large --memory 24GB
    """
    given = runs or []
    if history is not None:
        _history(history, out, given, as_json)
    elif len(given) > 1:
        _several(given, out, memory, as_json)
    elif given:
        if out is not None or memory is not None:
            option = "--memory" if memory is not None else "--out"
            raise PlanError(f"{option} is for several runs", hint="Name another run beside it.")
        _one(given[0], figures, style, price, as_json)
    else:
        raise PlanError("no run was given", hint="evalq report RUN, or evalq report --history DIR")


def _history(directory: Path, out: Path | None, runs: list[Path], as_json: bool) -> None:
    from evalq.report.history import history_table, read_history
    from evalq.report.history_page import render_history

    if runs:
        raise PlanError("--history takes a directory and no runs", hint="Leave the runs out.")
    path = render_history(directory, out)
    if as_json:
        typer.echo(history_table(read_history(directory)).to_json(orient="records", indent=2))
    else:
        typer.echo(str(path))


def _several(runs: list[Path], out: Path | None, memory: str | None, as_json: bool) -> None:
    from evalq.report.across import parse_memory
    from evalq.report.across_page import render_across

    path = render_across(runs, out, None if memory is None else parse_memory(memory))
    if as_json:
        typer.echo((path.parent / "comparison.json").read_text(encoding="utf-8"), nl=False)
        return
    from evalq.report.text import visible

    typer.echo(visible(json.loads((path.parent / "comparison.json").read_text("utf-8"))["answer"]))
    typer.echo(str(path))


def _one(run: Path, figures: str, style: str, price: float | None, as_json: bool) -> None:
    from evalq.report.figures import FIGURES, STYLES
    from evalq.report.render import render

    asked = [f.strip() for f in figures.split(",") if f.strip() and f.strip() != "none"]
    for name in asked:
        if name not in FIGURES:
            raise PlanError(f"unknown figure {name!r}", hint=nearest(name, FIGURES))
    if style not in STYLES:
        raise PlanError(f"unknown style {style!r}", hint=nearest(style, STYLES))
    path = render(run, tuple(f for f in FIGURES if f in asked), price, style)
    if as_json:
        summary = json.loads((path.parent / "summary.json").read_text(encoding="utf-8"))
        typer.echo(json.dumps(summary, indent=2))
    else:
        typer.echo(str(path))
