"""``evalq compare``: two variants of a run, item by item."""

from __future__ import annotations

import json
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

__all__ = ["command"]


class Direction(StrEnum):
    """Which flips to list."""

    LOST = "lost"
    GAINED = "gained"


def command(
    run: Annotated[Path, typer.Argument(help="A run directory.", show_default=False)],
    a: Annotated[str, typer.Argument(help="The baseline, 'parent' for the parent.")],
    b: Annotated[str, typer.Argument(help="The variant that is compared with it.")],
    slice_: Annotated[
        str, typer.Option("--slice", help="Only flips of this slice and what is in it.")
    ] = "",
    direction: Annotated[
        Direction | None, typer.Option(help="Only flips of this direction.")
    ] = None,
    limit: Annotated[int, typer.Option(min=0, help="List at most so many flips.")] = 10,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print slices and flips as JSON.")
    ] = False,
    csv: Annotated[
        Path | None, typer.Option(help="Write the flips, all that match, as CSV.")
    ] = None,
) -> None:
    """Compare two variants item by item: every slice, and the items that flipped.

    Example: evalq compare runs/demo parent gptq-w4-g128 --slice multilingual --direction lost
    """
    from evalq.compare import compare, load_run
    from evalq.errors import ComparisonError, nearest
    from evalq.report.flips import flips_of, with_texts
    from evalq.report.terminal import comparison_view, flip_view

    opened = load_run(run)
    found = compare(opened, b, a)
    if slice_ and slice_ not in found.slices:
        raise ComparisonError(f"there is no slice {slice_!r}", hint=nearest(slice_, found.slices))
    flips = flips_of({found.variant: found}, "")
    if slice_:
        names = flips["slice"].astype(str)
        flips = flips[(names == slice_) | names.str.startswith(slice_ + "/")]
    if direction:
        flips = flips[flips["direction"] == direction.value]
    total = len(flips)
    if csv is not None:
        from evalq.report.render import write_csv

        write_csv(csv, with_texts(opened, flips))
    listed = with_texts(opened, flips.head(limit))
    if as_json:
        typer.echo(json.dumps(_answer(found, listed, total), indent=2, allow_nan=False))
        return
    from rich.console import Console

    console = Console(file=sys.stdout, highlight=False)
    console.print(comparison_view(found))
    console.print()
    if limit:
        console.print(flip_view(listed, found.baseline, found.variant))
    console.print(f"{len(listed)} of {total} flips shown", style="dim")


def _answer(found: Any, listed: Any, total: int) -> dict[str, Any]:
    slices = {
        name: {**result.summary(), "p_holm": result.p_holm, "leaf": result.leaf}
        for name, result in found.slices.items()
    }
    perplexity = {
        name: {"ratio": p.ratio, "ci": p.ci, "items": p.items, "units": p.units}
        for name, p in found.perplexity.items()
    }
    return {
        "variant": found.variant,
        "baseline": found.baseline,
        "confidence": found.confidence,
        "overall": None if found.overall is None else found.overall.summary(),
        "slices": slices,
        "perplexity": perplexity,
        "flips": listed.astype({"slice": str, "task": str}).to_dict(orient="records"),
        "flips_total": total,
    }
