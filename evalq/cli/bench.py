"""``evalq bench``: measured ratios, each against a baseline in the same run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from evalq.schema import WeightScheme

__all__ = ["app"]

app = typer.Typer(
    help="Measure speeds on this machine, as ratios to a baseline in the same run.",
    no_args_is_help=True,
)

Json = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]
Clock = Annotated[
    str, typer.Option(help="wall; or cpu, seconds of this process (one thread, a busy machine).")
]


def _table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> None:
    def text(value: Any) -> str:
        return f"{value:,.2f}" if isinstance(value, float) else "" if value is None else str(value)

    cells = [[text(row.get(c)) for c in columns] for row in rows]
    widths = [max([len(c), *(len(r[i]) for r in cells)]) for i, c in enumerate(columns)]
    for line in [list(columns), *cells]:
        pairs = zip(line, widths, strict=True)
        typer.echo(
            "  ".join(t.ljust(w) if i == 0 else t.rjust(w) for i, (t, w) in enumerate(pairs))
        )


def _scheme(text: str) -> WeightScheme:
    from evalq.plan import VariantPlan, parse_variant

    return VariantPlan.model_validate(parse_variant(f"rtn:{text}")).scheme.weights


def _pair(text: str) -> tuple[int, int]:
    from evalq.errors import PlanError

    columns, _, out = text.partition("x")
    if not (columns.isdecimal() and out.isdecimal() and int(columns) and int(out)):
        raise PlanError(f"--shape {text!r} is not of the form KxN", hint="Write 4096x14336.")
    return int(columns), int(out)


def _where(device: str, clock: str) -> dict[str, Any]:
    """Machine, versions and clock, without which a speed says nothing."""
    import platform

    import torch

    from evalq.run.info import machine

    return {**machine(device), "torch": torch.__version__, "python": platform.python_version(),
            "threads": torch.get_num_threads(), "clock": clock}  # fmt: skip


@app.command("kernels")
def kernels(
    against: Annotated[
        str,
        typer.Option(
            help="Peers beside the dense product, comma-separated: kernels by name, tinygemm, "
            "gemlite, marlin."
        ),
    ] = "",
    scheme: Annotated[
        list[str] | None, typer.Option(help="BITS[:gSIZE|channel][:asym]; repeat it.")
    ] = None,
    shape: Annotated[list[str] | None, typer.Option(help="KxN of a weight; repeat it.")] = None,
    rows: Annotated[list[int] | None, typer.Option(help="Rows of activations; repeat it.")] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda; auto by default.")] = "auto",
    dtype: Annotated[str, typer.Option(help="bfloat16, float16 or float32.")] = "bfloat16",
    repeats: Annotated[int, typer.Option(min=1, help="Of which the median is taken.")] = 10,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads.")] = None,
    clock: Clock = "wall",
    json_: Json = False,
) -> None:
    """Single products with low-bit weights against the dense product.

    Weights are rotated beyond the caches; on CUDA calls are replayed from a graph.

    Example: evalq bench kernels --scheme 4:g128 --shape 4096x14336 --rows 1 --rows 16
    """
    import torch

    from evalq.cost.bench_kernels import SHAPES, bench_kernels
    from evalq.errors import PlanError
    from evalq.models.load import resolve_device
    from evalq.plan import EnginePlan

    target = resolve_device(EnginePlan(device=device))
    if dtype not in ("bfloat16", "float16", "float32"):
        raise PlanError(f"--dtype {dtype!r}", hint="Use bfloat16, float16 or float32.")
    if threads:
        torch.set_num_threads(threads)
    found = bench_kernels(
        [_scheme(s) for s in scheme or ("8:g128", "4:g128", "3:g128", "2:g128")],
        [_pair(s) for s in shape or ()] or SHAPES[target.type],
        rows or (1, 16, 128),
        [name for name in against.split(",") if name],
        target,
        getattr(torch, dtype),
        repeats,
        clock,
    )
    where = _where(str(target), clock)
    if json_:
        typer.echo(json.dumps({"machine": where, "rows": found}))
        return
    typer.echo(", ".join(f"{k} {v}" for k, v in where.items() if v is not None))
    extra = sorted(
        {k for row in found for k in row if k.endswith("_us")} - {"dense_us", "evalq_us"}
    )
    columns = ("scheme", "M", "K", "N", "kernel", "dense_us", "evalq_us", "ratio", "gbs", *extra)
    _table(found, columns)


@app.command("engine")
def engine(
    parent: Annotated[
        str, typer.Option(help="builtin, smollm2, a directory, a GGUF file or a hub name.")
    ] = "builtin",
    artifact: Annotated[
        list[Path] | None, typer.Option(help="Artifacts to time on the low-bit kernels; repeat it.")
    ] = None,
    loop: Annotated[
        str, typer.Option(help="graph, native, eager, transformers; chosen by default.")
    ] = "auto",
    batch: Annotated[list[int] | None, typer.Option(help="Rows at once; repeat it.")] = None,
    prefill: Annotated[int, typer.Option(min=1, help="Tokens read, each row.")] = 128,
    decode: Annotated[int, typer.Option(min=1, help="Tokens generated, each row.")] = 32,
    repeats: Annotated[int, typer.Option(min=1, help="Of which the median is taken.")] = 5,
    device: Annotated[str, typer.Option(help="cpu, cuda; auto by default.")] = "auto",
    dtype: Annotated[
        str, typer.Option(help="float32, bfloat16 or float16; as shipped by default.")
    ] = "auto",
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads.")] = None,
    clock: Clock = "wall",
    json_: Json = False,
) -> None:
    """Prefill, first token and decoding of a parent and its artifacts.

    The baseline is the parent by transformers' own forward pass; beside it the parent and every
    artifact by the lean loop.

    Example: evalq bench engine --parent builtin --artifact out/w4 --batch 1 --batch 8
    """
    import torch

    from evalq.cli._progress import terminal_progress
    from evalq.cost.bench import Subject, bench_engine
    from evalq.models.load import load_artifact, load_parent, timed_dtype
    from evalq.plan import parse_plan

    if threads:
        torch.set_num_threads(threads)
    plan = parse_plan({"engine": {"device": device, "dtype": dtype}}, "command line").engine
    if dtype == "auto":
        stored = load_parent(parent, plan).source.dtype
        plan = plan.model_copy(update={"dtype": timed_dtype(plan, stored)})
    model = load_parent(parent, plan)
    subjects = [Subject("parent, transformers", model, "transformers")]
    subjects.append(Subject("parent", model, loop))
    for path in artifact or ():
        subjects.append(Subject(path.name, load_artifact(path, plan, packed=True), loop))
    with terminal_progress(json_) as progress:
        found = bench_engine(subjects, batch or (1,), prefill, decode, repeats, clock, progress)
    where = _where(str(model.device), clock)
    if json_:
        typer.echo(json.dumps({"machine": where, "rows": found}))
        return
    typer.echo(", ".join(f"{k} {v}" for k, v in where.items() if v is not None))
    shown = [
        {
            **row,
            "prefill/s": row["prefill_tokens_per_second"],
            "decode/s": row["decode_tokens_per_second"],
            "first ms": 1e3 * row["first_token_seconds"],
            "MB": row["memory_bytes"] / 1e6,
            "prefill x": row["prefill_ratio"],
            "decode x": row["decode_ratio"],
        }
        for row in found
    ]
    columns = ("subject", "batch", "loop", "execution", "dtype", "prefill/s", "decode/s",
               "first ms", "MB", "prefill x", "decode x")  # fmt: skip
    _table(shown, columns)
