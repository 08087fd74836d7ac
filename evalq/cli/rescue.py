"""``evalq rescue``: bits where a failing slice needs them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from evalq.compare import SliceResult
    from evalq.rescue import Rescue

__all__ = ["command"]


def _points(result: SliceResult, margin: float) -> str:
    interval = ""
    if result.ci is not None:
        interval = f" [{100 * result.ci[0]:+.1f}, {100 * result.ci[1]:+.1f}]"
    verdict = result.verdict(margin).verdict
    return f"{100 * result.delta:+.1f} pp{interval} of {result.items}: {verdict}"


def _view(result: Rescue) -> list[str]:
    points = 100 * result.margin
    before = _points(result.before, result.margin)
    lines = [f"{result.variant} on {result.slice}, margin {points:g} pp: {before}"]
    if not result.failed:
        return [*lines, "It passes its margin: there is nothing to rescue."]
    for number, trial in enumerate(result.trials):
        name = "as it was" if number == 0 else f"trial {number}"
        widths = ", ".join(f"{count} at {bits}" for bits, count in trial.widths.items())
        lines += [
            f"{name}: {trial.bits:.3f} bits a weight ({widths}), {trial.bytes:,} bytes",
            f"  the run's items  {_points(trial.seen, result.margin)}",
            f"  fresh items      {_points(trial.fresh, result.margin)}",
        ]
    if result.chosen is None:
        return [*lines, "No budget brought the slice back."]
    more = result.chosen.bytes - result.before_bytes
    cost = f"{more:+,} bytes ({100 * more / result.before_bytes:+.1f} %)"
    bits = f"{result.chosen.bits:.3f} bits a weight"
    lines.append(
        f"{result.slice} is back within its margin at {bits}, {cost}: {result.chosen.path}"
    )
    return lines


def command(
    run: Annotated[Path, typer.Argument(help="A finished run.", show_default=False)],
    variant: Annotated[str, typer.Option(help="The variant that fails, by its label.")],
    slice_name: Annotated[str, typer.Option("--slice", help="The slice that it fails on.")],
    target_bits: Annotated[
        float, typer.Option(help="Largest budget: bits a weight, scales and zeros included.")
    ] = 3.5,
    margin: Annotated[
        float | None, typer.Option(help="Largest tolerable loss in pp; the plan's by default.")
    ] = None,
    confirm: Annotated[
        list[str] | None,
        typer.Option(help="Suite whose items of the slice confirm; repeat it."),
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Budgets up to the largest.")] = 3,
    method: Annotated[str, typer.Option(help="Of the trials; the variant's by default.")] = "",
    option: Annotated[
        list[str] | None, typer.Option(help="NAME=VALUE, an option of the method; repeat it.")
    ] = None,
    untargeted: Annotated[
        bool,
        typer.Option("--untargeted", help="Do not look at the slice: for a comparison."),
    ] = False,
    out: Annotated[Path | None, typer.Option(help="Directory of the trials.")] = None,
    json_output: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
) -> None:
    """Spend bits where a failing slice needs them, and show on fresh items that it is back.

    Exits with 0 when the slice is back within its margin (or never left it), and with 1 when not.

    Example: evalq rescue runs/demo --variant gptq-w3-g128 --slice math/chains \
        --confirm builtin-heldout
    """
    from evalq.cli._progress import terminal_progress
    from evalq.cli.quantize import parse_option
    from evalq.rescue import RescueRequest, rescue

    options: dict[str, Any] = dict(parse_option(text) for text in option or [])
    request = RescueRequest(
        run=run,
        variant=variant,
        slice=slice_name,
        margin=None if margin is None else margin / 100,
        target_bits=target_bits,
        steps=steps,
        confirm=tuple(confirm or ()),
        method=method,
        options=options,
        targeted=not untargeted,
        out=out,
    )
    with terminal_progress(quiet) as progress:
        result = rescue(request, progress)
    if json_output:
        typer.echo(json.dumps(result.record(), indent=2))
    else:
        typer.echo("\n".join(_view(result)))
    if result.failed and not result.rescued:
        raise typer.Exit(1)
