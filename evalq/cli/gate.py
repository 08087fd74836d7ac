"""``evalq gate``: a run and a policy in, an exit code out."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from evalq.gate import GateResult

__all__ = ["command"]


def command(
    run: Annotated[Path, typer.Argument(help="A finished run directory.", show_default=False)],
    policy: Annotated[Path, typer.Option(help="The policy, a YAML file.", show_default=False)],
    variant: Annotated[
        str | None, typer.Option(help="Judge this variant only; all of them by default.")
    ] = None,
    baseline: Annotated[
        Path | None, typer.Option(help="Another run whose variant is the baseline.")
    ] = None,
    baseline_variant: Annotated[
        str | None,
        typer.Option(
            help="Its label there; the variant's own by default, 'parent' for the parent."
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Directory of the reports; RUN/gate by default.")
    ] = None,
    github: Annotated[
        bool | None,
        typer.Option(
            "--github/--no-github",
            help="Print GitHub annotations; by default where GITHUB_ACTIONS is set.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print gate.json.")] = False,
) -> None:
    """Judge a run under a policy. Exit 0 pass, 1 fail, 3 inconclusive or not certified.

    Writes gate.json, junit.xml, comment.md and gl-code-quality.json.

    Example: evalq gate runs/demo --policy policy.yaml --variant gptq-w4-g128
    """
    from evalq.compare import load_run
    from evalq.gate import (
        gate,
        gate_json,
        github_annotations,
        load_policy,
        write_outputs,
        write_step_summary,
    )

    loaded = load_policy(policy)
    other = None if baseline is None else load_run(baseline)
    result = gate(load_run(run), loaded, variant, other, baseline_variant)
    if as_json:
        typer.echo(gate_json(result), nl=False)
    else:
        _table(result)
    paths = write_outputs(result, run / "gate" if out is None else out)
    if not as_json:
        typer.echo(f"written: {', '.join(str(p) for p in paths)}")
    summary = os.environ.get("GITHUB_STEP_SUMMARY")
    if summary:
        write_step_summary(result, Path(summary))
    if os.environ.get("GITHUB_ACTIONS") == "true" if github is None else github:
        for line in github_annotations(result):
            typer.echo(line, err=as_json)
    sys.stdout.flush()
    raise typer.Exit(result.exit_code)


COLOURS = {"pass": "green", "fail": "red", "inconclusive": "yellow", "not certified": "magenta"}


def _table(result: GateResult) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from evalq.gate.text import limit_words, one_line, value_words

    wide = None if sys.stdout.isatty() else 160
    console = Console(file=sys.stdout, highlight=False, width=wide)
    for variant in result.variants:
        title = f"{one_line(variant.variant)} against {one_line(variant.baseline)}"
        table = Table(title=Text(f"{title}: {variant.verdict}"), title_justify="left")
        for name in ("verdict", "slice", "metric", "found", "asked", "role", "rule"):
            table.add_column(name, overflow="fold")
        for check in variant.checks:
            verdict = Text(check.verdict, style=COLOURS[check.verdict])
            if check.detected_loss and check.verdict == "pass":
                verdict.append(" (a loss)", style="yellow")
            table.add_row(
                verdict,
                Text(one_line(check.slice)),
                check.metric,
                Text(value_words(check)),
                Text(limit_words(check)),
                check.role,
                Text(f"{one_line(check.rule)}, line {check.line}"),
            )
        console.print(table)
        for check in variant.checks:
            notes = list(check.notes) if check.verdict != "pass" else []
            if check.items_needed is not None:
                notes.append(f"about {check.items_needed:,} items would settle it")
            for note in notes:
                where = f"{one_line(check.slice)}, {check.metric}"
                console.print(Text(f"  {where}: {one_line(note)}"), style="dim")
        if variant.control is not None:
            floor = f"noise floor (the parent against itself): KL {variant.control['kl_mean']:.3g}"
            agreed = f"top-1 {variant.control['top1']:.4f}"
            console.print(Text(f"  {floor}, {agreed}"), style="dim")
        console.print()
    for note in result.notes:
        console.print(Text(one_line(note)))
    style = COLOURS[result.verdict]
    console.print(Text(f"gate: {result.verdict} (exit {result.exit_code})", style=f"bold {style}"))
