"""``evalq quantize``: one artifact."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from evalq.artifacts.base import Artifact
    from evalq.models.base import LoadedModel
    from evalq.plan import Plan, VariantPlan
    from evalq.progress import Progress
    from evalq.quantize.calibration import Calibration
    from evalq.quantize.mixed import Mixed

__all__ = ["command", "parse_option"]


def _group_size(text: str) -> int | str:
    from evalq.errors import PlanError

    if text == "channel":
        return text
    try:
        return int(text.removeprefix("g"))
    except ValueError:
        raise PlanError(
            f"--group-size {text!r} is no number of columns",
            hint="Use 32, 64 or 128, or 'channel' for one scale a row.",
        ) from None


def parse_option(text: str) -> tuple[str, Any]:
    """``NAME=VALUE`` of a method's option; the value is JSON, or else text.

    Raises:
        PlanError: not of that form.
    """
    from evalq.errors import PlanError

    name, found, value = text.partition("=")
    if not found or not name:
        raise PlanError(f"--option {text!r} is not of the form NAME=VALUE")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value


def _calibration(
    loaded: Any, plan: Plan, evaluated: Sequence[str], progress: Progress
) -> Calibration:
    from evalq.calibrate import read_calibration
    from evalq.tasks import build

    wanted = plan.calibration
    progress.note(f"calibrating on {wanted.samples} x {wanted.length} tokens")
    suites = [name for name in evaluated if not Path(name.partition(":")[0]).is_file()]
    workloads = [name for name in evaluated if name not in suites]
    return read_calibration(
        wanted,
        loaded.tokenizer,
        builtin_parent=plan.parent == "builtin",
        seed=plan.seed,
        data_dir=plan.data_dir,
        tasks=build(suites, workloads, data_dir=plan.data_dir) if evaluated else (),
    )


def _mixed(
    parent: LoadedModel,
    variant: VariantPlan,
    text: Calibration,
    target_bits: float | None,
    max_bytes: int | None,
    progress: Progress,
) -> Mixed:
    """Widths of single layers for a budget of bits a weight, or of bytes."""
    from evalq.artifacts.write import stored_types
    from evalq.errors import PlanError
    from evalq.progress import layer_steps
    from evalq.quantize.config import skipped_parts
    from evalq.quantize.mixed import mixed_precision, target_of_bytes

    if target_bits is not None and max_bytes is not None:
        raise PlanError("--target-bits and --max-bytes both give a budget", hint="Give one.")
    for name in ("layer_bits", "keep"):
        if variant.options.get(name):
            raise PlanError(f"the option {name} sets widths already", hint="Leave the budget out.")
    skip = skipped_parts(variant.options)
    types = stored_types(parent.source.path, parent.module)
    budget = target_bits
    if budget is None:
        assert max_bytes is not None
        budget = target_of_bytes(parent.module, max_bytes, 8 * types.main.itemsize, skip)
    return mixed_precision(
        parent.module,
        variant.scheme.weights,
        text.tokens,
        budget,
        skip=skip,
        progress=layer_steps(progress, "sensitivity of layers"),
    )


def _streamed(parent: str, wanted: bool | None, whole: str) -> bool:
    """Whether the parent's weights stay in their files.

    Args:
        parent: as the user names it.
        wanted: what the user said of it, if anything.
        whole: what is to be done that runs the whole parent at once, or ``""``.

    Raises:
        PlanError: streaming is asked for where the whole parent is needed.
    """
    import psutil

    from evalq.errors import PlanError

    if wanted and whole:
        raise PlanError(
            f"{whole} needs the whole parent, which --stream leaves on disk",
            hint="Leave --stream out, or use a method that works layer by layer.",
        )
    if wanted is not None or whole or not Path(parent).is_dir():
        return bool(wanted)
    size = sum(path.stat().st_size for path in Path(parent).glob("*.safetensors"))
    # Half-precision weights take twice as much as float32, as a CPU computes.
    return 2 * size > psutil.virtual_memory().available // 2


def _peak(memory: Mapping[str, int | None]) -> str:
    """Peak memory in words: of the process, what of it cannot be given back, and of the GPU."""
    words = f"peak memory {_size(memory['peak_resident_bytes'])}"
    if memory.get("peak_anonymous_bytes"):
        words += f", {_size(memory['peak_anonymous_bytes'])} of it besides mapped files"
    if memory.get("peak_device_bytes"):
        words += f"; on the GPU {_size(memory['peak_device_bytes'])}"
    return words


def _size(count: int | None) -> str:
    return f"{(count or 0) / 2**30:.2f} GiB"


def _summary(artifact: Artifact) -> str:
    manifest = artifact.manifest
    stored = manifest["storage"]
    state = "already there" if artifact.reused else f"made in {manifest['seconds']:.1f} s"
    if manifest.get("resumed_at_layer") and not artifact.reused:
        state += f", resumed at layer {manifest['resumed_at_layer']}"
    lines = [
        f"{artifact.path}  ({state})",
        f"  content {artifact.hash}",
        f"  {stored['bytes_on_disk']:,} bytes, {stored['bits_per_weight']:.2f} bits a weight "
        f"({stored['linear_bits_per_weight']:.2f} in quantized layers)",
    ]
    if "allocation" in manifest:
        counts = Counter(layer["bits"] for layer in manifest["layers"])
        widths = ", ".join(f"{n} layers at {bits}" for bits, n in sorted(counts.items()))
        lines.append(f"  mixed: {widths} bits")
    if "kept" in manifest:
        kept = manifest["kept"]
        lines.append(
            f"  kept: {len(kept['layers'])} layers, {kept['share']:.1%} of the weights, at "
            f"{kept['bits']} bits: {', '.join(kept['layers'])}"
        )
    memory = manifest.get("memory")
    if memory and not artifact.reused:
        lines.append(f"  {_peak(memory)}")
    lines += [f"  warning: {warning}" for warning in manifest["warnings"]]
    return "\n".join(lines)


def command(
    parent: Annotated[
        str, typer.Argument(help="builtin, smollm2, a directory, a GGUF file or a hub name.")
    ],
    out: Annotated[Path, typer.Option(help="Directory to make.")],
    method: Annotated[str, typer.Option(help="How: see 'evalq list methods'.")] = "gptq",
    bits: Annotated[int, typer.Option(help="2 to 8.")] = 4,
    group_size: Annotated[
        str | None,
        typer.Option(
            help="Columns that share a scale, or 'channel'; 128, and 'channel' with 8-bit "
            "activations.",
            show_default=False,
        ),
    ] = None,
    asym: Annotated[bool, typer.Option("--asym", help="Store zero points too.")] = False,
    activation_bits: Annotated[
        int | None, typer.Option(help="8: int8 activations (with --bits 8).")
    ] = None,
    target_bits: Annotated[
        float | None,
        typer.Option(
            help="Mixed precision: most bits a weight, scales and zeros included; each layer gets "
            "the width that its measured sensitivity asks for (--bits is not used)."
        ),
    ] = None,
    max_bytes: Annotated[
        int | None, typer.Option(help="Mixed precision: most bytes of all weights together.")
    ] = None,
    option: Annotated[
        list[str] | None, typer.Option(help="NAME=VALUE, an option of the method; repeat it.")
    ] = None,
    calibration: Annotated[
        str,
        typer.Option(
            help="auto, a text or JSONL file, suite:NAME, workload:FILE, or a mixture with shares: "
            "suite:math=0.5,text.txt=0.5."
        ),
    ] = "auto",
    evaluated: Annotated[
        list[str] | None,
        typer.Option(
            help="A suite or workload file that the artifact will be judged by: none of its items "
            "may be in the calibration text; repeat it."
        ),
    ] = None,
    allow_overlap: Annotated[
        bool, typer.Option("--allow-overlap", help="Calibrate on evaluated items nevertheless.")
    ] = False,
    samples: Annotated[int, typer.Option(help="Windows of calibration text.")] = 128,
    length: Annotated[int, typer.Option(help="Tokens a window.")] = 512,
    data_dir: Annotated[str, typer.Option(help="Local copies of datasets.")] = "",
    seed: Annotated[int, typer.Option(help="Of everything that is drawn.")] = 0,
    artifact_format: Annotated[
        str, typer.Option("--format", help="See 'evalq list formats'.")
    ] = "compressed-tensors",
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1; auto by default.")] = "auto",
    stream: Annotated[
        bool | None,
        typer.Option(
            "--stream/--no-stream",
            help="Leave the parent on disk and read one layer at a time; by default when it would "
            "fill more than half of the free memory.",
            show_default=False,
        ),
    ] = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run code that comes with the parent.")
    ] = False,
    json_output: Annotated[bool, typer.Option("--json", help="Print the manifest.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
) -> None:
    """Make one artifact of a parent: quantize it and write it, whole or not at all.

    Example: evalq quantize smollm2 --method gptq --bits 4 --group-size 64 --out smol-w4
    """
    from evalq.cli._progress import terminal_progress
    from evalq.plan import parse_plan
    from evalq.progress import layer_steps

    # The plan checks widths, sizes and calibration as it does for a run.
    plan = parse_plan(
        {
            "parent": parent,
            "variants": [
                {
                    "method": method,
                    "bits": bits,
                    "group_size": None if group_size is None else _group_size(group_size),
                    "symmetric": not asym,
                    "activation_bits": activation_bits,
                    "options": dict(parse_option(text) for text in option or []),
                }
            ],
            "calibration": {
                "source": calibration,
                "samples": samples,
                "length": length,
                "allow_overlap": allow_overlap,
            },
            "engine": {"device": device, "trust_remote_code": trust_remote_code},
            "data_dir": data_dir,
            "seed": seed,
        },
        "evalq quantize",
    )
    variant = plan.variants[0]
    from evalq.artifacts.api import FORMATS
    from evalq.quantize.config import METHODS, check_scheme, resolve_options

    chosen = METHODS.get(variant.method)
    resolved = resolve_options(chosen, variant.options)
    check_scheme(chosen, variant.scheme)
    FORMATS.get(artifact_format)

    from evalq.artifacts.make import make_artifact
    from evalq.models.load import load_parent

    with terminal_progress(quiet) as progress:
        budget = target_bits is not None or max_bytes is not None
        whole = "mixed precision" if budget else f"method {method!r}" if chosen.distills else ""
        if resolved.get("rotate", "none") != "none":
            whole = "a rotation"
        if resolved.get("keep"):
            whole = "the option keep"
        streamed = _streamed(plan.parent, stream, whole)
        if streamed:
            progress.note("the parent stays on disk: its layers are read one at a time")
        loaded = load_parent(plan.parent, plan.engine, mapped=streamed)
        text = None
        if chosen.needs_calibration or budget:
            text = _calibration(loaded, plan, evaluated or (), progress)
        mixed = None
        options = dict(variant.options)
        if text is not None and budget:
            mixed = _mixed(loaded, variant, text, target_bits, max_bytes, progress)
            options["layer_bits"] = mixed.layer_bits
        artifact = make_artifact(
            loaded,
            variant.scheme,
            method,
            text,
            options,
            seed,
            out,
            layer_steps(progress, f"{method} {variant.scheme}"),
            artifact_format,
            None if mixed is None else mixed.record(),
        )
    if json_output:
        typer.echo(json.dumps({"path": str(out), **artifact.manifest}, indent=2))
    else:
        typer.echo(_summary(artifact))
