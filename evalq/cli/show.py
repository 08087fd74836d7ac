"""``evalq show``: a run in the terminal."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

__all__ = ["command"]


def command(
    run: Annotated[Path, typer.Argument(help="A run directory.", show_default=False)],
    as_json: Annotated[
        bool, typer.Option("--json", help="Print what summary.json would hold.")
    ] = False,
) -> None:
    """Show the verdict, the variants and the frontier of a run.

    Example: evalq show runs/demo
    """
    from evalq.compare import load_run
    from evalq.report.frames import collect
    from evalq.report.summary import summary

    data = collect(load_run(run))
    if as_json:
        typer.echo(json.dumps(summary(data), indent=2, allow_nan=False))
        return
    from rich.console import Console

    from evalq.report.terminal import run_view

    console = Console(file=sys.stdout, highlight=False)
    console.print(run_view(data, console.width))
