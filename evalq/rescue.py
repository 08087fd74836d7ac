"""The verb rescue: bits where a failing slice needs them, shown on items that chose nothing.

A variant that fails on one slice is made again under growing budgets. Each budget is spent where
the slice's own training text says that it counts most (KL of single layers at single widths), no
layer gets fewer bits than it had, and half of the calibration text is the slice's.

Whether the slice is back is judged on *fresh* items: on those of the run the slice was found to
fail, so they favour every other variant. Budgets are tested from the largest down, and the first
that does not pass ends the test; the smallest before it is chosen. Testing in an order that was
fixed beforehand keeps the error of the whole at that of one test (Maurer, Hothorn and Lehmacher,
1995; the fixed-sequence procedure).
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from evalq.compare import Run, SliceResult, compare, load_run, pair, slice_result
from evalq.errors import EvalqError, PlanError, nearest
from evalq.plan import CalibrationPlan, Plan, VariantPlan, parse_plan
from evalq.progress import NullProgress, Progress, layer_steps
from evalq.quantize.config import skipped_parts
from evalq.run import run_plan
from evalq.tasks.slices import in_slice

if TYPE_CHECKING:
    from evalq.models.base import LoadedModel
    from evalq.quantize.allocate import Unit
    from evalq.tasks import SuiteTask

__all__ = ["Rescue", "RescueRequest", "Trial", "rescue"]

RESULT = "rescue.json"
_SENSITIVITY_WINDOWS = 16
_SLICE_SHARE = 0.5


@dataclass(frozen=True, slots=True)
class RescueRequest:
    """What is asked for.

    Args:
        run: a finished run.
        variant: label of the variant that fails; it was made by that run.
        slice: that it fails on.
        margin: largest tolerable loss in accuracy, 0 to 1; the plan's for slices by default.
        target_bits: largest budget, bits a weight over the quantized layers with scales and zeros.
        steps: budgets tried between the variant's own and ``target_bits``; the variant's own bits,
            calibrated on the slice, are always tried first.
        confirm: suites whose items of the slice confirm; by default half of the run's items do.
        method: to make the trials with; the variant's own by default.
        options: of that method, over the variant's own.
        targeted: measure sensitivities and calibrate on the slice's text; else on the plan's, which
            is what an untargeted allocation does.
        out: directory of the trials; beside the run's own files by default.
    """

    run: Path
    variant: str
    slice: str
    margin: float | None = None
    target_bits: float = 3.5
    steps: int = 3
    confirm: tuple[str, ...] = ()
    method: str = ""
    options: Mapping[str, Any] | None = None
    targeted: bool = True
    out: Path | None = None


@dataclass(frozen=True, slots=True)
class Trial:
    """One budget.

    Args:
        variant: its label in the run of the trials.
        bits: stored a weight over the quantized layers, scales and zeros included.
        bytes: of the weight files.
        widths: how many layers have each width.
        seen: the slice on the run's items (or half of them), against the parent.
        fresh: on the items that confirm.
        path: the artifact.
    """

    variant: str
    bits: float
    bytes: int
    widths: Mapping[int, int]
    seen: SliceResult
    fresh: SliceResult
    path: str


@dataclass(frozen=True, slots=True)
class Rescue:
    """What came of it.

    Args:
        variant, slice, margin: as asked for.
        before: the variant on the slice, on all of the run's items.
        before_bytes: of its weight files.
        failed: whether it failed at all; if not, nothing was tried.
        trials: by growing budget; the first is the variant itself, asked the same items.
        chosen: the smallest budget of those that pass on fresh items, from the largest down.
        rescued: whether there is one.
        directory: the run of the trials, or ``None``.
    """

    variant: str
    slice: str
    margin: float
    before: SliceResult
    before_bytes: int
    failed: bool
    trials: tuple[Trial, ...] = ()
    chosen: Trial | None = None
    rescued: bool = False
    directory: Path | None = None

    def record(self) -> dict[str, Any]:
        """All of it as JSON values."""
        return {
            "variant": self.variant,
            "slice": self.slice,
            "margin": self.margin,
            "before": self.before.summary(),
            "before_bytes": self.before_bytes,
            "failed": self.failed,
            "trials": [
                {
                    **{k: v for k, v in asdict(t).items() if k not in ("seen", "fresh")},
                    "seen": t.seen.summary(),
                    "fresh": t.fresh.summary(),
                }
                for t in self.trials
            ],
            "chosen": None if self.chosen is None else self.chosen.variant,
            "rescued": self.rescued,
        }


def rescue(request: RescueRequest, progress: Progress | None = None) -> Rescue:
    """Make the smallest variant that brings a failing slice back, and confirm it.

    Raises:
        PlanError: no such variant or slice, a variant that the run did not make, a slice without
            training text, or a budget that is no larger than the variant's own.
        EvalqError: whatever making or measuring the trials meets.
    """
    progress = progress or NullProgress()
    run = load_run(request.run)
    plan = parse_plan(run.info["plan"])
    variant = _made_variant(plan, request.variant)
    margin = plan.recommend.slice_margin_pp / 100 if request.margin is None else request.margin
    before = _slice_of(run, request)
    size = next(int(v["bytes"]) for v in run.info["variants"] if v["name"] == request.variant)
    if before.verdict(margin).verdict == "pass":
        return Rescue(request.variant, request.slice, margin, before, size, False)
    trial_plan = _trial_plan(request, run, plan, variant, progress)
    directory = run_plan(trial_plan, progress, command="evalq rescue")
    measured = load_run(directory)
    trials = tuple(_trial(measured, request, v.label, plan) for v in trial_plan.variants)
    chosen = None
    for trial in reversed(trials[1:]):
        if trial.fresh.verdict(margin).verdict != "pass":
            break
        chosen = trial
    rescued = chosen is not None
    result = Rescue(
        request.variant, request.slice, margin, before, size, True, trials, chosen, rescued,
        directory,
    )  # fmt: skip
    (directory / RESULT).write_text(json.dumps(result.record(), indent=2), encoding="utf-8")
    return result


def _made_variant(plan: Plan, label: str) -> VariantPlan:
    labels = [v.label for v in plan.variants]
    if label not in labels:
        raise PlanError(f"the run has no variant {label!r}", hint=nearest(label, labels))
    variant = plan.variants[labels.index(label)]
    if not variant.method:
        raise PlanError(
            f"{label!r} is an artifact that the run was given: how it was made is not known",
            hint="Rescue a variant that the run made itself.",
        )
    return variant


def _slice_of(run: Run, request: RescueRequest) -> SliceResult:
    compared = compare(run, request.variant)
    found = compared.slices.get(request.slice)
    if found is None:
        raise PlanError(
            f"the run has no slice {request.slice!r}",
            hint=nearest(request.slice, list(compared.slices)),
        )
    return found


def _suites_of_slice(suites: Sequence[str], slice_name: str) -> list[tuple[str, list[SuiteTask]]]:
    """Each suite that has tasks of the slice, as a name that picks nothing, with those tasks."""
    from evalq.tasks import load_suite

    found = []
    for name in suites:
        whole = name if Path(name).is_file() else name.partition(":")[0]
        tasks = [t for t in load_suite(name).tasks if in_slice(t.slice, slice_name)]
        if tasks:
            found.append((whole, tasks))
    return found


def _picked(chosen: Sequence[tuple[str, list[SuiteTask]]]) -> tuple[str, ...]:
    return tuple(f"{name}:{','.join(t.task for t in tasks)}" for name, tasks in chosen)


def _trial_plan(
    request: RescueRequest, run: Run, plan: Plan, variant: VariantPlan, progress: Progress
) -> Plan:
    """The plan that measures the variant and its trials on the slice alone."""
    from evalq.models.load import load_parent

    chosen = _suites_of_slice(plan.suites, request.slice)
    if not chosen:
        raise PlanError(
            f"no task of the run's suites is of the slice {request.slice!r}",
            hint="Slices of workloads have no training text to learn from.",
        )
    fresh = _suites_of_slice(request.confirm, request.slice)
    if request.confirm and not fresh:
        raise PlanError(f"{', '.join(request.confirm)}: no task of the slice {request.slice!r}")
    parent = load_parent(plan.parent, plan.engine)
    _check_budget(request, variant, parent)
    calibration, units = _look_at_slice(request, plan, variant, chosen, parent, progress)
    made = [_as_it_was(request, run), *_budgets(request, variant, units)]
    label = f"{request.variant}-{request.slice}".replace("/", "-")
    if not request.targeted:
        label += "-untargeted"
    out = request.out or request.run / "rescue" / label
    changed = plan.model_dump() | {
        "name": f"rescue {request.variant} {request.slice}",
        "variants": [v.model_dump() for v in made],
        "suites": [*_picked(chosen), *_picked(fresh)],
        "workloads": [],
        "limit": None,
        "calibration": calibration.model_dump(),
        "fidelity": plan.fidelity.model_copy(update={"enabled": False}).model_dump(),
        "control": {"enabled": False},
        "cost": plan.cost.model_copy(update={"enabled": False}).model_dump(),
        "out": str(out),
    }
    return parse_plan(changed, "rescue")


def _as_it_was(request: RescueRequest, run: Run) -> VariantPlan:
    """The failing variant's own artifact, to be asked the same items as the trials."""
    rows = run.info["variants"]
    path = next(str(v["path"]) for v in rows if v["name"] == request.variant)
    return VariantPlan(artifact=path, name=request.variant)


def _look_at_slice(
    request: RescueRequest,
    plan: Plan,
    variant: VariantPlan,
    chosen: Sequence[tuple[str, list[SuiteTask]]],
    parent: LoadedModel,
    progress: Progress,
) -> tuple[CalibrationPlan, list[Unit]]:
    """Calibration for the trials, and what each layer costs the slice at each width."""
    from evalq.calibrate import read_calibration
    from evalq.quantize.mixed import MIXED_WIDTHS
    from evalq.quantize.sensitivity import measure_sensitivity

    mixed = plan.calibration
    looked_at = plan.calibration.model_copy(
        update={"samples": min(_SENSITIVITY_WINDOWS, plan.calibration.samples)}
    )
    if request.targeted:
        source = "suite:" + ",".join(f"{n}:{t.task}" for n, tasks in chosen for t in tasks)
        windows = _windows_of(source, plan, parent)
        share = min(_SLICE_SHARE, windows / plan.calibration.samples)
        rest = {name: part * (1 - share) for name, part in plan.calibration.shares.items()}
        mixed = plan.calibration.model_copy(update={"source": {source: share, **rest}})
        count = min(_SENSITIVITY_WINDOWS, windows)
        looked_at = plan.calibration.model_copy(update={"source": source, "samples": count})
    tokens = read_calibration(
        looked_at,
        parent.tokenizer,
        builtin_parent=parent.source.demonstration,
        seed=plan.seed,
        data_dir=plan.data_dir,
    ).tokens
    widths = [w for w in MIXED_WIDTHS if w >= variant.scheme.weights.bits]
    step = layer_steps(progress, "sensitivity of layers")
    skip = skipped_parts(variant.options)
    units = measure_sensitivity(parent.module, variant.scheme.weights, widths, tokens, skip, step)
    return mixed, units


def _windows_of(source: str, plan: Plan, parent: LoadedModel) -> int:
    """How many calibration windows the slice's training text fills.

    Raises:
        PlanError: not one.
    """
    from evalq.texts import resolve_text

    try:
        text = resolve_text(source, "calibration", False, plan.data_dir)
    except EvalqError as error:
        raise PlanError(
            f"the slice cannot be looked at: {error.message}", hint=error.hint
        ) from None
    tokens = sum(len(parent.tokenizer(d.text)["input_ids"]) + 1 for d in text.documents)
    windows = tokens // plan.calibration.length
    if not windows:
        raise PlanError(
            f"the training text of the slice holds {tokens} tokens, less than one window of "
            f"{plan.calibration.length}",
            hint="Run with shorter calibration windows (calibration.length).",
        )
    return windows


def _check_budget(request: RescueRequest, variant: VariantPlan, parent: LoadedModel) -> None:
    """Refuse, before anything is measured, a budget that buys no bit."""
    from evalq.quantize.allocate import stored_bits
    from evalq.quantize.linear import decoder_layers, linears, weight_shape

    scheme = variant.scheme.weights
    _, layers = decoder_layers(parent.module)
    shapes = [weight_shape(linear) for layer in layers for _, linear in linears(layer)]
    weights = sum(rows * columns for rows, columns in shapes)
    base = sum(stored_bits(shape, scheme, scheme.bits, 16) for shape in shapes) / max(1, weights)
    if request.target_bits <= base:
        raise PlanError(
            f"a budget of {request.target_bits:g} bits a weight is no more than the {base:.3f} "
            f"that {request.variant!r} takes",
            hint="Raise --target-bits.",
        )


def _budgets(
    request: RescueRequest, variant: VariantPlan, units: Sequence[Unit]
) -> list[VariantPlan]:
    """The trials: the variant's bits calibrated on the slice, then growing budgets."""
    from evalq.quantize.allocate import allocate, format_bits

    scheme = variant.scheme.weights
    weights = sum(u.weights for u in units)
    base = sum(u.bits(scheme, scheme.bits, 16) for u in units) / weights
    method = request.method or variant.method
    kept = variant.options if method == variant.method else {}
    trials = []
    for budget in np.linspace(base, request.target_bits, request.steps + 1).tolist():
        found = allocate(units, scheme, budget + 1e-9, lowest=scheme.bits)
        options = {**kept, **(request.options or {}), "layer_bits": format_bits(found.bits)}
        trials.append(
            variant.model_copy(
                update={"method": method, "options": options, "name": f"budget {budget:.3f}"}
            )
        )
    return trials


def _trial(measured: Run, request: RescueRequest, label: str, plan: Plan) -> Trial:
    from evalq.artifacts.api import storage
    from evalq.artifacts.files import read_json
    from evalq.artifacts.identity import MANIFEST

    frame = pair(measured, label, "parent").scored
    if request.confirm:
        confirm = {_suite_name(name) for name in request.confirm}
        second = frame["suite"].astype(str).isin(confirm).to_numpy()
    else:
        keys = frame["task"].astype(str) + "/" + frame["item_id"].astype(str)
        second = np.array([zlib.crc32(key.encode()) & 1 == 1 for key in keys])
    level = plan.recommend.confidence
    row = next(v for v in measured.info["variants"] if v["name"] == label)
    stored = storage(Path(row["path"]))
    manifest = read_json(Path(row["path"]) / MANIFEST)
    widths: dict[int, int] = {}
    for layer in manifest["layers"]:
        bits = int(layer.get("bits") or manifest["scheme"]["bits"])
        widths[bits] = widths.get(bits, 0) + 1
    return Trial(
        variant=label,
        bits=stored.linear_bits_per_weight,
        bytes=int(row["bytes"]),
        widths=dict(sorted(widths.items())),
        seen=slice_result(request.slice, frame[~second], False, level),
        fresh=slice_result(request.slice, frame[second], False, level),
        path=str(row["path"]),
    )


def _suite_name(name: str) -> str:
    from evalq.tasks import load_suite

    return load_suite(name).name
