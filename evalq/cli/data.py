"""``evalq data``: what data the suites need, and where it is."""

from __future__ import annotations

from typing import Annotated

import typer

from evalq.cli.list import show_data

__all__ = ["app"]

app = typer.Typer(help="What data the suites need, and where it is.", no_args_is_help=True)


@app.callback()
def _root() -> None:
    """A group, so that ``evalq data list`` stays one when there is a second command."""


@app.command("list")
def list_(
    suite: Annotated[
        list[str] | None, typer.Argument(help="Suites, suite:TASK-PATTERN or files; all if none.")
    ] = None,
    data_dir: Annotated[str, typer.Option(help="Folder of local copies of datasets.")] = "",
    missing: Annotated[
        bool, typer.Option("--missing", help="Only what would come from the hub.")
    ] = False,
    json_: Annotated[bool, typer.Option("--json", help="Print JSON for machines.")] = False,
) -> None:
    """Which data the tasks need: what is here, what is missing, and what would be fetched.

    Example: evalq data list math multilingual --data-dir data
    """
    show_data(suite or (), data_dir, json_, missing)
