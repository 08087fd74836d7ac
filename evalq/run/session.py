"""The stages of a run, in an order that keeps one model in memory at a time.

1. With the parent loaded: its answers, its pass over the held-out text, and the artifacts.
2. For each variant, loaded back from its files: its answers and its fidelity.
3. The negative control: the parent again, under settings that ought to change nothing.
4. Costs, all variants timed in turn.

Each finished measurement is on disk before the next begins, under a name made of what it depends
on; a run that is started again finds it there.
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evalq.adaptive import Rule, evaluate_adaptively
from evalq.errors import PlanError, StoreError
from evalq.evaluate import evaluate, fault_warnings, refuse_unscorable
from evalq.fidelity import ParentPass, compare_to_parent, run_parent
from evalq.memory import shape_config
from evalq.plan import EnginePlan, Plan, VariantPlan
from evalq.progress import NullProgress, Progress
from evalq.run.info import git_commit, machine, packages
from evalq.run.inputs import Inputs, note_calibration, read_inputs
from evalq.run.make import check_methods, make_variant
from evalq.run.resolve import resolve_variants
from evalq.run.timing import PARENT, time_variants
from evalq.schema import FidelityRecord, ItemRecord, content_hash
from evalq.store import Journal, RunDirectory, read_table, write_table
from evalq.store.layers import layer_record
from evalq.tasks.consent import check_consent

if TYPE_CHECKING:
    from evalq.artifacts.base import Artifact
    from evalq.models.base import Engine, LoadedModel
    from evalq.tasks.bridge import BuiltTask

__all__ = ["CONTROL", "PARENT", "run_plan"]

CONTROL = "parent@control"


@dataclass(slots=True)
class _Made:
    """A variant that is on disk, ready to be measured; no artifact: the parent's own weights."""

    plan: VariantPlan
    artifact: Artifact | None

    def identity(self, weights: str) -> str:
        """The hash of what is measured: of the weights, and of the cache where that is rounded."""
        bits = self.plan.kv_bits
        return weights if bits is None else content_hash([weights, "kv", bits])


@dataclass(slots=True)
class _Session:
    plan: Plan
    directory: RunDirectory
    journal: Journal
    progress: Progress
    info: dict[str, Any]
    tasks: Sequence[BuiltTask] = ()
    parent_pass: ParentPass | None = None
    text_key: str = ""
    parent_items: Sequence[ItemRecord] = ()
    items: list[ItemRecord] = field(default_factory=list)
    fidelity: list[FidelityRecord] = field(default_factory=list)

    def save_info(self) -> None:
        self.directory.write_info(self.info)


def run_plan(plan: Plan, progress: Progress | None = None, command: str = "") -> Path:
    """Run a plan, or what is left of it, and return its directory.

    Raises:
        EvalqError: bad input, named; what was stored before stays.
    """
    check_methods(plan)
    check_consent(plan.suites, plan.workloads, plan.allow_code)
    directory = RunDirectory(Path(plan.out))
    _check_directory(directory, plan)
    directory.lock()
    try:
        found = directory.read_info()
        if found is not None and found.get("plan_hash") != plan.hash:
            found = None
        if found is not None and found.get("status") == "done":
            return directory.path
        info = found or _fresh_info(plan, command)
        with Journal(directory.journal) as journal:
            session = _Session(plan, directory, journal, progress or NullProgress(), info)
            _measure(session)
        return directory.path
    finally:
        directory.unlock()


def _check_directory(directory: RunDirectory, plan: Plan) -> None:
    path = directory.path
    if path.exists() and not path.is_dir():
        raise StoreError(f"{path} is a file", hint="Choose another --out.")
    found = directory.read_info() if path.exists() else None
    if found is None:
        # A run that was killed at its start leaves a lock, the journal's files, half a run.json.
        own = ("run.lock", "journal.sqlite", ".run.json.")
        names = [p.name for p in path.iterdir()] if path.exists() else []
        if not all(name.startswith(own) for name in names):
            raise StoreError(
                f"{path} is not empty and holds no evalq run",
                hint="Choose another --out, or empty it.",
            )
    elif found.get("plan_hash") != plan.hash and _holds_work(directory):
        raise StoreError(
            f"{path} holds another plan's run",
            hint="Choose another --out, or remove the directory to measure this plan there.",
        )


def _holds_work(directory: RunDirectory) -> bool:
    """Whether anything was made or answered there; a run that failed before may be replaced."""
    if any(directory.artifacts.glob("*/*")) or directory.items.exists():
        return True
    if not directory.journal.exists():
        return False
    with Journal(directory.journal) as journal:
        return len(journal) > 0


def _fresh_info(plan: Plan, command: str) -> dict[str, Any]:
    from evalq import __version__

    return {
        "evalq_version": __version__,
        "name": plan.name,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "status": "running",
        "plan": plan.model_dump(mode="json"),
        "plan_hash": plan.hash,
        "git_commit": git_commit(),
        "packages": packages(),
        "seed": plan.seed,
        "command": command,
        "warnings": [],
    }


def _engine(model: LoadedModel, plan: EnginePlan) -> Engine:
    from evalq.models.hf import TransformersEngine

    return TransformersEngine(model, plan)


def _measure(session: _Session) -> None:
    import torch

    from evalq.models.load import load_parent
    from evalq.tasks.bridge import build

    plan = session.plan
    if plan.engine.threads:
        torch.set_num_threads(plan.engine.threads)
    parent = load_parent(plan.parent, plan.engine)
    plan = session.plan = resolve_variants(plan, parent.module.config)
    session.info["plan"] = plan.model_dump(mode="json")
    session.info["machine"] = machine(str(parent.device))
    session.info["parent"] = _parent_info(parent)
    session.tasks = build(
        plan.suites,
        workloads=plan.workloads,
        data_dir=plan.data_dir,
        limit=plan.limit,
        allow_code=plan.allow_code,
    )
    _check_tasks(session.tasks)
    session.info["suites"] = _suite_info(session.tasks)
    inputs = read_inputs(plan, parent, session.tasks)
    note_calibration(session.info, inputs.calibration)
    # Only now does the directory belong to this plan: a fault in the input leaves it free.
    session.save_info()

    rows = [_parent_row(parent)]
    made = _with_parent(session, parent, inputs)
    parent_hash, parent_source = parent.hash, parent.source
    del parent
    for variant in made:
        rows.append(_with_variant(session, variant))
    if plan.control.enabled:
        session.info["control"] = _with_control(session, parent_hash)
    session.parent_pass = None
    for warning in fault_warnings(session.items):
        if warning not in session.info["warnings"]:
            session.info["warnings"].append(warning)
    write_table(session.directory.items, ItemRecord, session.items)
    if plan.fidelity.enabled:
        write_table(session.directory.fidelity, FidelityRecord, session.fidelity)
    if plan.cost.enabled:
        named = [
            (variant.plan.label, variant.artifact.path)
            for variant in made
            if variant.artifact is not None and variant.plan.kv_bits is None
        ]
        time_variants(plan, session.directory, session.info, named, parent_source, session.progress)
    session.info["variants"] = rows
    session.info["status"] = "done"
    session.info["finished"] = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    session.save_info()


def _check_tasks(tasks: Sequence[BuiltTask]) -> None:
    """One task in two suites would count its items twice, or under two slices."""
    suites: dict[str, str] = {}
    for task in tasks:
        other = suites.setdefault(task.name, task.suite)
        if other != task.suite:
            raise PlanError(
                f"task {task.name} is in two suites of this run: {other} and {task.suite}",
                hint="Select tasks with SUITE:PATTERN so that each is asked once.",
            )


def _parent_info(parent: LoadedModel) -> dict[str, Any]:
    source = parent.source
    return {
        "name": parent.name,
        "hash": parent.hash,
        "kind": source.kind,
        "notes": list(source.notes),
        "parameters": source.parameters,
        "bytes": source.bytes,
        "bits_per_weight": source.bits,
        "dtype": source.dtype,
        "gridded": source.gridded,
        "demonstration": source.demonstration,
        "config": shape_config(parent.module.config.to_dict()),
    }


def _suite_info(tasks: Sequence[BuiltTask]) -> list[dict[str, Any]]:
    suites: dict[str, dict[str, Any]] = {}
    for task in tasks:
        entry = suites.setdefault(task.suite, {"name": task.suite, "tasks": []})
        entry["version"] = task.suite_version
        entry["tasks"].append(
            {
                "task": task.name,
                "version": task.version,
                "slice": task.slice,
                "metric": task.metric,
                "filter": task.filter,
                "items": len(task.items),
                "notes": list(task.notes),
            }
        )
    return list(suites.values())


def _with_parent(session: _Session, parent: LoadedModel, inputs: Inputs) -> list[_Made]:
    """All that needs the parent in memory: its artifacts, its answers, its pass over text."""
    plan = session.plan
    made = _artifacts(session, parent, inputs)
    engine = _engine(parent, plan.engine)
    answered = evaluate(
        engine, PARENT, parent.hash, session.tasks, session.journal, session.progress
    )
    refuse_unscorable(answered)
    session.parent_items = answered
    session.items += answered
    if inputs.text is not None:
        session.info["fidelity"] = {
            "text": inputs.text.name,
            "hash": inputs.text.hash,
            "windows": len(inputs.windows),
            "tokens": sum(len(w.ids) - 1 for w in inputs.windows),
        }
        session.text_key = content_hash(
            [parent.hash, inputs.text.hash, plan.fidelity.model_dump(), dict(engine.settings)]
        )
        session.parent_pass = run_parent(parent, inputs.text.name, inputs.windows, session.progress)
        session.info["fidelity"]["kept"] = session.parent_pass.mode
    return made


def _artifacts(session: _Session, parent: LoadedModel, inputs: Inputs) -> list[_Made]:
    from evalq.quantize.config import METHODS

    made = []
    for variant in session.plan.variants:
        if variant.artifact:
            made.append(_Made(variant, inputs.given[variant.label]))
            continue
        if not variant.method:
            made.append(_Made(variant, None))
            continue
        needed = inputs.calibration if METHODS.get(variant.method).needs_calibration else None
        folder = session.directory.artifacts
        artifact = make_variant(
            parent, variant, needed, session.plan.seed, folder, session.progress
        )
        made.append(_Made(variant, artifact))
    return made


def _ask(session: _Session, engine: Engine, label: str, identity: str) -> None:
    """Append the records of what is not the parent; an adaptive run says where it stopped."""
    plan = session.plan
    given = (engine, label, identity, session.tasks, session.journal)
    if not plan.adaptive.enabled:
        session.items += evaluate(*given, session.progress)
        return
    rule = Rule(plan.stop_margin, plan.recommend.confidence, plan.seed)
    records, stops = evaluate_adaptively(*given, session.parent_items, rule, session.progress)
    session.items += records
    adaptive = session.info.setdefault("adaptive", {"confidence": rule.confidence, "variants": {}})
    adaptive["variants"][label] = stops


def _fidelity_of(session: _Session, label: str, key: str, model: LoadedModel) -> None:
    """Append fidelity records of one variant, from its part file where that is there."""
    if session.parent_pass is None:
        return
    part = (
        session.directory.parts / f"fidelity-{content_hash([key, session.text_key])[:32]}.parquet"
    )
    if part.exists():
        table = read_table(part, FidelityRecord)
        session.fidelity += [FidelityRecord(**row) for row in table.to_pylist()]
        return
    records = compare_to_parent(label, model, session.parent_pass, session.progress)
    write_table(part, FidelityRecord, records)
    session.fidelity += records


def _with_variant(session: _Session, made: _Made) -> dict[str, Any]:
    """Load one artifact from its files, ask and compare it; returns its row of run.json."""
    from evalq.models.load import load_artifact, load_parent

    plan, artifact, label = session.plan, made.artifact, made.plan.label
    if artifact is None:
        model = load_parent(plan.parent, plan.engine)
    else:
        model = load_artifact(artifact.path, plan.engine)
    model.kv_bits = made.plan.kv_bits
    identity = made.identity(model.hash)
    engine = _engine(model, plan.engine)
    _ask(session, engine, label, identity)
    _fidelity_of(session, label, content_hash([label, identity]), model)
    row = _variant_row(made, model)
    # What is said of the whole run is not said again of every variant.
    row["warnings"] = [w for w in row["warnings"] if w not in session.info["warnings"]]
    return row


def _with_control(session: _Session, parent_hash: str) -> dict[str, Any]:
    """The parent against itself: half the batch, and another precision of arithmetic."""
    from evalq.models.load import load_parent

    plan = session.plan
    stored = session.info["parent"]["dtype"]
    used = "float32" if plan.engine.dtype == "float32" else plan.engine.dtype
    model = load_parent(plan.parent, plan.engine)
    running = str(model.dtype).removeprefix("torch.")
    other = stored if running == "float32" and stored != "float32" else "float32"
    if other != running:
        del model
        benign = plan.engine.model_copy(update={"dtype": other, "batch_tokens": _half(plan)})
        model = load_parent(plan.parent, benign)
    else:
        benign = plan.engine.model_copy(update={"batch_tokens": _half(plan)})
    engine = _engine(model, benign)
    _ask(session, engine, CONTROL, parent_hash)
    _fidelity_of(session, CONTROL, content_hash([CONTROL, parent_hash, other, used]), model)
    return {
        "variant": CONTROL,
        "what": f"the parent again, computed in {other} instead of {running}, with half the batch",
        "dtype": other,
        "batch_tokens": benign.batch_tokens,
    }


def _half(plan: Plan) -> int:
    return max(1, plan.engine.batch_tokens // 2)


def _parent_row(parent: LoadedModel) -> dict[str, Any]:
    source = parent.source
    dtype = source.dtype
    return {
        "name": PARENT,
        "hash": parent.hash,
        "kind": "parent",
        "method": "",
        "scheme": dtype,
        "bits": _dense_bits(dtype),
        "group_size": None,
        "symmetric": None,
        "path": str(source.path),
        "bytes": source.bytes,
        "bits_per_weight": source.bits,
        "execution": parent.execution,
        "calibration": None,
        "warnings": list(source.notes),
        "quantize_seconds": 0.0,
    }


def _variant_row(made: _Made, model: LoadedModel) -> dict[str, Any]:
    artifact, plan = made.artifact, made.plan
    manifest = {} if artifact is None else artifact.manifest
    scheme = manifest.get("scheme") or {}
    text = str(scheme.get("text", "")) if artifact is not None else model.source.dtype
    warnings = [*manifest.get("warnings", []), *model.source.notes]
    if plan.kv_bits is not None:
        text += f"{'-' if text else ''}kv{plan.kv_bits}"
        warnings.append(
            f"the KV cache is rounded to {plan.kv_bits} bits in the evaluation; its speed and its "
            "memory are not measured"
        )
    return {
        "name": plan.label,
        "hash": made.identity(model.hash),
        "kind": "made" if plan.method else "artifact",
        "method": manifest.get("method", ""),
        "scheme": text,
        "bits": scheme.get("bits") if artifact is not None else _dense_bits(model.source.dtype),
        "kv_bits": plan.kv_bits,
        "group_size": scheme.get("group_size"),
        "symmetric": scheme.get("symmetric"),
        "path": str(model.source.path),
        "bytes": model.source.bytes,
        "bits_per_weight": model.source.bits,
        "execution": model.execution,
        "calibration": manifest.get("calibration"),
        "warnings": warnings,
        "quantize_seconds": manifest.get("seconds", 0.0),
        **layer_record(manifest),
    }


def _dense_bits(dtype: str) -> int:
    return {"float32": 32}.get(dtype, 16)
