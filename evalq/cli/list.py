"""``evalq list``: what the registries hold."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer

__all__ = ["app", "show_data", "suite_rows", "task_rows"]

app = typer.Typer(
    help="List suites, tasks, methods, formats, engines and kernels.", no_args_is_help=True
)

Json = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]


def suite_rows() -> list[dict[str, Any]]:
    """One row a shipped suite.

    Raises:
        PlanError: a suite file that does not hold a suite.
    """
    from evalq.tasks.slices import slice_tree
    from evalq.tasks.suites import list_suites

    return [
        {
            "suite": suite.name,
            "version": suite.version,
            "tasks": len(suite.tasks),
            "slices": slice_tree(task.slice for task in suite.tasks),
            "description": suite.description,
        }
        for suite in list_suites()
    ]


def task_rows(suites: Sequence[str] = (), in_slice: str = "") -> list[dict[str, Any]]:
    """One row a task of the suites: all that are shipped, or those given.

    Args:
        suites: names, files or selections.
        in_slice: only tasks whose items count in that slice.

    Raises:
        PlanError: an unknown suite, or a slice that no task is in (the nearest is suggested).
    """
    from evalq.errors import PlanError, nearest
    from evalq.tasks import slices
    from evalq.tasks.suites import list_suites, load_suite

    chosen = [load_suite(name) for name in suites] if suites else list_suites()
    rows = [
        {
            "suite": suite.name,
            "task": task.task,
            "slice": task.slice,
            "version": task.version or None,
            "metric": task.metric or None,
            "filter": task.filter or None,
            "num_fewshot": task.num_fewshot,
            "limit": task.limit,
            "weight": task.weight,
        }
        for suite in chosen
        for task in suite.tasks
    ]
    if not in_slice:
        return rows
    kept = [row for row in rows if slices.in_slice(str(row["slice"]), in_slice)]
    if not kept:
        known = slices.slice_tree(str(row["slice"]) for row in rows)
        raise PlanError(f"no task is in slice {in_slice!r}", hint=nearest(in_slice, known))
    return kept


def _table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> None:
    """Left-aligned columns, the last as wide as it is."""
    cells = [["" if row[c] is None else str(row[c]) for c in columns] for row in rows]
    widths = [max([len(c), *(len(r[i]) for r in cells)]) for i, c in enumerate(columns)]
    for line in [list(columns), *cells]:
        padded = [text.ljust(width) for text, width in zip(line, widths, strict=True)]
        typer.echo("  ".join(padded).rstrip())


@app.command("suites")
def suites(json_: Json = False) -> None:
    """The suites that evalq ships.

    Example: evalq list suites
    """
    rows = suite_rows()
    if json_:
        typer.echo(json.dumps(rows, ensure_ascii=False))
        return
    _table(rows, ("suite", "version", "tasks", "description"))
    typer.echo("\nRun one with --suite NAME, some of its tasks with --suite 'NAME:GLOB'.")


@app.command("tasks")
def tasks(
    in_slice: Annotated[
        str, typer.Option("--slice", help="Only tasks in this slice, e.g. multilingual/sw.")
    ] = "",
    suite: Annotated[
        list[str] | None, typer.Option(help="Only tasks of this suite; can be given again.")
    ] = None,
    json_: Json = False,
) -> None:
    """The tasks of the suites, by slice.

    Example: evalq list tasks --slice multilingual/sw
    """
    rows = task_rows(suite or (), in_slice)
    if json_:
        typer.echo(json.dumps(rows, ensure_ascii=False))
        return
    shown = [{**row, "weight": f"{row['weight']:g}"} for row in rows]
    _table(shown, ("suite", "task", "slice", "version", "metric", "num_fewshot", "limit", "weight"))


@app.command("data")
def data(
    suite: Annotated[
        list[str] | None, typer.Option(help="Only this suite; can be given again.")
    ] = None,
    data_dir: Annotated[str, typer.Option(help="Folder of local copies of datasets.")] = "",
    json_: Json = False,
) -> None:
    """Which data the tasks need: what is here, and what would be fetched.

    Example: evalq list data --suite multilingual --data-dir data
    """
    show_data(suite or (), data_dir, json_)


def show_data(
    suites: Sequence[str], data_dir: str, as_json: bool, only_missing: bool = False
) -> None:
    """Print where the data of the suites' tasks is.

    Args:
        suites: names, files or selections; all shipped ones if empty.
        data_dir: folder of local copies; empty for none.
        as_json: for machines.
        only_missing: leave out what is here.

    Raises:
        PlanError: an unknown suite or layout.
        TaskError: an unknown task, or a local file that cannot be read.
    """
    from dataclasses import asdict
    from pathlib import Path

    from evalq.tasks.inventory import data_status
    from evalq.tasks.suites import list_suites, load_suite

    chosen = [load_suite(name) for name in suites] if suites else list_suites()
    folder = Path(data_dir) if data_dir else None
    rows = [asdict(data_status(task, folder)) for s in chosen for task in s.tasks]
    if only_missing:
        rows = [row for row in rows if row["status"] == "hub" or row["missing"]]
    if as_json:
        typer.echo(json.dumps(rows, ensure_ascii=False))
        return
    shown = [{**row, "file": (row["files"] or ("",))[0]} for row in rows]
    _table(shown, ("task", "status", "dataset", "config", "file"))
    packages = sorted({name for row in rows for name in row["missing"]})
    if packages:
        typer.echo(f"\nPackages that are missing: pip install {shlex.join(packages)}")
    wanted = sorted({(r["dataset"], r["config"]) for r in rows if r["status"] == "hub"})
    if wanted:
        typer.echo(
            f"\n{len(wanted)} datasets would come from the hub; 'file' is where a copy goes."
        )


@app.command("methods")
def methods(json_: Json = False) -> None:
    """The quantization methods.

    Example: evalq list methods
    """
    from evalq.quantize.config import METHODS

    _registry([(name, METHODS.summary(name)) for name in METHODS], json_)


@app.command("formats")
def formats(json_: Json = False) -> None:
    """The formats that artifacts are written in.

    Example: evalq list formats
    """
    from evalq.artifacts.api import FORMATS

    _registry([(name, FORMATS.summary(name)) for name in FORMATS], json_)


@app.command("scorers")
def scorers(json_: Json = False) -> None:
    """The scorers of a workload's free answers.

    Example: evalq list scorers
    """
    from evalq.tasks.scorers import SCORERS

    rows = [(name, (type(s).__doc__ or "").strip().splitlines()[0]) for name, s in SCORERS.items()]
    _registry(rows, json_)


@app.command("engines")
def engines(json_: Json = False) -> None:
    """What answers requests here, and the loops that speeds are taken with.

    Example: evalq list engines
    """
    from evalq.models.engines import list_engines

    rows = list_engines()
    if json_:
        typer.echo(json.dumps(rows, ensure_ascii=False))
        return
    _table([{**row, "runs": "yes" if row["runs"] else "no"} for row in rows],
           ("name", "kind", "runs", "summary"))  # fmt: skip
    typer.echo("")
    for row in rows:
        if row["why"]:
            typer.echo(f"{row['name']}: {row['why']}")


@app.command("kernels")
def kernels(
    device: Annotated[str, typer.Option(help="cpu or cuda; the GPU where there is one.")] = "",
    shape: Annotated[str, typer.Option(help="OUTxIN of the layer that is asked about.")] = "",
    json_: Json = False,
) -> None:
    """The low-bit kernels, what each scheme would run on here, and why.

    Example: evalq list kernels --shape 4096x14336
    """
    from evalq.kernels.listing import list_kernels

    found = list_kernels(device or None, *([_shape(shape)] if shape else []))
    if json_:
        typer.echo(json.dumps(found, ensure_ascii=False))
        return
    typer.echo(f"device: {found['device']}\n")
    _table(found["kernels"], ("name", "order", "summary"))
    typer.echo("")
    shown = [{**c, "kernel": c["kernel"] or "none", "why": ""} for c in found["choices"]]
    _table(shown, ("scheme", "dtype", "rows", "kernel", "path"))
    reasons: dict[str, list[str]] = {}
    for choice in found["choices"]:
        reasons.setdefault(choice["why"], []).append(f"{choice['scheme']} {choice['dtype']}")
    typer.echo("")
    for why, where in reasons.items():
        typer.echo(f"{', '.join(dict.fromkeys(where))}: {why}")


def _shape(text: str) -> tuple[int, int]:
    from evalq.errors import PlanError

    out, _, columns = text.partition("x")
    if not (out.isdecimal() and columns.isdecimal() and int(out) and int(columns)):
        raise PlanError(f"--shape {text!r} is not of the form OUTxIN", hint="Write 4096x14336.")
    return int(out), int(columns)


def _registry(entries: Sequence[tuple[str, str]], as_json: bool) -> None:
    rows = [{"name": name, "summary": summary} for name, summary in entries]
    if as_json:
        typer.echo(json.dumps(rows, ensure_ascii=False))
        return
    _table(rows, ("name", "summary"))
