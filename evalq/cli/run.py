"""``evalq run``: the main job."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

__all__ = ["command"]


def _merged(plan: Path | None, flags: dict[str, Any]) -> dict[str, Any]:
    from evalq.plan import load_plan

    data = load_plan(plan) if plan else {}
    for path, value in flags.items():
        if value is None or value == []:
            continue
        target = data
        *outer, last = path.split(".")
        for part in outer:
            nested = target.setdefault(part, {})
            target = nested if isinstance(nested, dict) else {}
        target[last] = value
    return data


def command(
    plan: Annotated[
        Path | None, typer.Argument(metavar="[PLAN.yaml]", help="Plan; flags override it.")
    ] = None,
    parent: Annotated[
        str | None,
        typer.Option(
            help="builtin, smollm2, a directory, a GGUF file, a hub name, or "
            "endpoint=URL[,model=NAME][,api=chat]."
        ),
    ] = None,
    variant: Annotated[
        list[str] | None,
        typer.Option(
            help="METHOD:BITS[:gSIZE|channel][:asym][:kvBITS], artifact=DIR, or "
            "endpoint=URL[,model=NAME][,api=chat][,name=LABEL]; repeat it."
        ),
    ] = None,
    kv_bits: Annotated[
        list[int] | None,
        typer.Option(help="Also the parent with a KV cache of 8, 4 or 2 bits; repeat it."),
    ] = None,
    suite: Annotated[
        list[str] | None,
        typer.Option(help="A suite, suite:TASK-PATTERN or a suite file; repeat it."),
    ] = None,
    workload: Annotated[
        list[str] | None, typer.Option(help="JSONL file of your own items; repeat it.")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="At most so many items a task.")] = None,
    out: Annotated[str | None, typer.Option(help="Run directory; resumed if it exists.")] = None,
    name: Annotated[str | None, typer.Option(help="Name of the run.")] = None,
    data_dir: Annotated[
        str | None, typer.Option(help="Local copies of datasets, one folder each.")
    ] = None,
    calibration: Annotated[
        str | None,
        typer.Option(
            help="auto, a text or JSONL file, suite:NAME, workload:FILE, or a mixture with shares: "
            "suite:math=0.5,text.txt=0.5."
        ),
    ] = None,
    allow_overlap: Annotated[
        bool,
        typer.Option("--allow-overlap", help="Calibrate on evaluated items; reports say so."),
    ] = False,
    text: Annotated[
        list[str] | None,
        typer.Option(
            help="Prose of yours to compare distributions on: FILE, NAME=FILE or NAME@LANG=FILE; "
            "repeat it."
        ),
    ] = None,
    task_text: Annotated[
        bool,
        typer.Option(
            "--task-text",
            help="Compare distributions on what is evaluated, too: prompts with their targets.",
        ),
    ] = False,
    allow_code: Annotated[
        bool,
        typer.Option(
            "--allow-code",
            help="Run Python of task files and scorers, and what models write (sandboxed).",
        ),
    ] = False,
    adaptive: Annotated[
        bool,
        typer.Option(
            "--adaptive", help="Stop asking a slice once its comparison to the parent is decided."
        ),
    ] = False,
    margin_pp: Annotated[
        float | None,
        typer.Option(help="With --adaptive: accuracy points that a slice may lose; 5 by default."),
    ] = None,
    chat: Annotated[
        bool, typer.Option("--chat", help="Put prompts into the parent's chat template.")
    ] = False,
    chat_template: Annotated[
        str | None, typer.Option(help="Jinja file of the chat template to use in its place.")
    ] = None,
    system: Annotated[
        str | None, typer.Option(help="A system message before every prompt.")
    ] = None,
    engine: Annotated[
        str | None, typer.Option(help="transformers or vllm, for local models.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1; auto by default.")] = None,
    dtype: Annotated[
        str | None, typer.Option(help="float32, bfloat16 or float16; auto by default.")
    ] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of everything that is drawn.")] = None,
    price: Annotated[
        float | None,
        typer.Option("--price-per-hour", help="Dollars an hour of this machine, for $ a token."),
    ] = None,
    json_output: Annotated[bool, typer.Option("--json", help="Print summary.json.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
) -> None:
    """Quantize, evaluate, compare and report, in one go. Killed, it resumes where it was.

    Example: evalq run --parent smollm2 --variant gptq:4 --suite math --data-dir data --limit 100
    """
    from evalq.cli._progress import terminal_progress
    from evalq.errors import PlanError
    from evalq.plan import parse_parent, parse_text, parse_variant
    from evalq.run import resolve_plan, run_plan

    flags: dict[str, Any] = {
        "parent": None if parent is None else parse_parent(parent),
        "variants": [
            *(parse_variant(v) for v in variant or []),
            *({"kv_bits": bits} for bits in kv_bits or []),
        ],
        "suites": suite,
        "workloads": workload,
        "limit": limit,
        "out": out,
        "name": name,
        "data_dir": data_dir,
        "calibration.source": calibration,
        "calibration.allow_overlap": allow_overlap or None,
        "fidelity.texts": [parse_text(value) for value in text or []],
        "fidelity.tasks": task_text or None,
        "allow_code": allow_code or None,
        "adaptive.enabled": adaptive or None,
        "adaptive.margin_pp": margin_pp,
        "prompts.chat_template": chat_template or chat or None,
        "prompts.system": system,
        "engine.kind": engine,
        "engine.device": device,
        "engine.dtype": dtype,
        "engine.threads": threads,
        "seed": seed,
        "cost.price_per_hour": price,
    }
    resolved = resolve_plan(_merged(plan, flags), str(plan) if plan else "command line")
    if margin_pp is not None and not resolved.adaptive.enabled:
        raise PlanError("--margin-pp goes with --adaptive", hint="Give both, or neither.")
    typed = shlex.join(["evalq", *sys.argv[1:]])
    with terminal_progress(quiet or json_output) as progress:
        path = run_plan(resolved, progress, typed)
        from evalq.report.render import render

        progress.note("rendering the report")
        index = render(path, price_per_hour=resolved.cost.price_per_hour)
    if json_output:
        typer.echo((path / "report" / "summary.json").read_text(encoding="utf-8"), nl=False)
        return
    from evalq.cli import show

    show.command(path)
    typer.echo(f"report: {index}")
