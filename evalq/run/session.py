"""The stages of a run, in an order that keeps one model in memory at a time.

1. With the parent loaded: its answers, its pass over the held-out text, and the artifacts.
2. For each variant, loaded back from its files: its answers and its fidelity.
3. The negative control: the parent again, under settings that ought to change nothing.
4. Costs, all variants timed in turn.

A parent or a variant may be an endpoint: it is tried before anything is asked, and has answers
only.

Each finished measurement is on disk before the next begins, under a name made of what it depends
on; a run that is started again finds it there.
"""

from __future__ import annotations

import datetime
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evalq.adaptive import Rule, evaluate_adaptively
from evalq.evaluate import evaluate, fault_warnings, refuse_unscorable
from evalq.fidelity import ParentPass, compare_to_parent, run_parent
from evalq.plan import EnginePlan, Plan
from evalq.progress import NullProgress, Progress
from evalq.run.checks import check_directory, check_tasks
from evalq.run.engines import check_engine, check_source
from evalq.run.info import machine
from evalq.run.inputs import Inputs, note_calibration, read_inputs
from evalq.run.make import check_methods, make_variant
from evalq.run.pace import Pace
from evalq.run.prompts import (
    prompt_record,
    prompt_settings,
    prompt_warnings,
    template_file,
)
from evalq.run.resolve import resolve_variants
from evalq.run.rows import (
    Made,
    fresh_info,
    parent_info,
    parent_row,
    served_parent_info,
    served_row,
    suite_info,
    variant_row,
)
from evalq.run.served import (
    check_served,
    check_served_plan,
    open_served,
    same_endpoints,
    without_local_measures,
)
from evalq.run.timing import PARENT, time_variants
from evalq.run.warm import import_engine
from evalq.schema import FidelityRecord, ItemRecord, content_hash
from evalq.store import Journal, RunDirectory, read_table, write_table
from evalq.tasks.consent import check_consent

if TYPE_CHECKING:
    from evalq.models.base import Engine, LoadedModel, ModelSource
    from evalq.models.endpoint import EndpointEngine
    from evalq.models.hf import TransformersEngine
    from evalq.tasks.bridge import BuiltTask

__all__ = ["CONTROL", "PARENT", "run_plan"]

CONTROL = "parent@control"


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
    served: dict[str, EndpointEngine] = field(default_factory=dict)
    items: list[ItemRecord] = field(default_factory=list)
    fidelity: list[FidelityRecord] = field(default_factory=list)
    pace: Pace | None = None

    def save_info(self) -> None:
        self.directory.write_info(self.info)

    def warn(self, texts: Sequence[str]) -> None:
        known = self.info["warnings"]
        known += [text for text in texts if text not in known]

    def ask(self, label: str, identity: str, engine: Engine) -> None:
        """Append the item records of one variant, and say how fast they came.

        Raises:
            TaskError: a task that the engine cannot answer, or one whose scorer is broken.
        """
        if self.pace is None:
            self.pace = Pace(1 + len(self.plan.variants) + self.plan.control.enabled)
        before, began = len(self.items), time.perf_counter()
        self._answered(label, identity, engine)
        seconds = time.perf_counter() - began
        self.progress.note(self.pace.told(label, len(self.items) - before, seconds))

    def ask_local(self, label: str, identity: str, engine: TransformersEngine) -> None:
        """The same of a model in this process; what happened on the way is kept at once, since a
        resumed run does not see it again."""
        self.ask(label, identity, engine)
        self.warn([f"{label}: {event}" for event in dict.fromkeys(engine.events)])
        if engine.events:
            self.save_info()

    def _answered(self, label: str, identity: str, engine: Engine) -> None:
        """Ask; an adaptive run says where it stopped."""
        given = (engine, label, identity, self.tasks, self.journal)
        plan = self.plan
        if label == PARENT or not plan.adaptive.enabled:
            answered = evaluate(*given, self.progress)
            if label == PARENT:
                refuse_unscorable(answered)
                self.parent_items = answered
            self.items += answered
            return
        rule = Rule(plan.stop_margin, plan.recommend.confidence, plan.seed)
        records, stops = evaluate_adaptively(*given, self.parent_items, rule, self.progress)
        self.items += records
        told = self.info.setdefault("adaptive", {"confidence": rule.confidence, "variants": {}})
        told["variants"][label] = stops


def run_plan(plan: Plan, progress: Progress | None = None, command: str = "") -> Path:
    """Run a plan, or what is left of it, and return its directory.

    Raises:
        EvalqError: bad input, named; what was stored before stays.
    """
    check_methods(plan)
    check_consent(plan.suites, plan.workloads, plan.allow_code)
    check_served_plan(plan)
    check_engine(plan)
    template_file(plan)
    directory = RunDirectory(Path(plan.out))
    check_directory(directory, plan)
    directory.lock()
    try:
        found = directory.read_info()
        if found is not None and found.get("plan_hash") != plan.hash:
            found = None
        if found is not None and found.get("status") == "done":
            return directory.path
        info = found or fresh_info(plan, command)
        with Journal(directory.journal) as journal:
            session = _Session(plan, directory, journal, progress or NullProgress(), info)
            try:
                _measure(session)
            finally:
                for engine in session.served.values():
                    engine.close()
        return directory.path
    finally:
        directory.unlock()


def _measure(session: _Session) -> None:
    if session.plan.parent_endpoint is None:
        import_engine()
    import torch

    from evalq.models.load import load_parent

    if session.plan.engine.threads:
        torch.set_num_threads(session.plan.engine.threads)
    session.served = open_served(session.plan)
    parent = None
    if session.plan.parent_endpoint is None:
        parent = load_parent(session.plan.parent, session.plan.engine)
        check_source(session.plan.engine, parent.source)
        session.plan = resolve_variants(session.plan, parent.module.config)
    plan = session.plan = without_local_measures(session.plan)
    session.info["plan"] = plan.model_dump(mode="json")
    session.info["machine"] = machine(str(parent.device) if parent else "none")
    if parent is not None:
        session.info["parent"] = parent_info(parent)
    else:
        session.info["parent"] = served_parent_info(session.served[PARENT])
    _build_tasks(session, parent)
    session.warn(same_endpoints(session.served))
    check_served(session.served, session.tasks, session.journal)
    inputs = read_inputs(plan, parent, session.tasks)
    note_calibration(session.info, inputs.calibration)
    # Only now does the directory belong to this plan: a fault in the input leaves it free.
    session.save_info()

    if parent is None:
        rows = [{**served_row(PARENT, session.served[PARENT]), "kind": "parent"}]
        made = [Made(v, inputs.given.get(v.label)) for v in plan.variants]
        parent_source, parent_hash = None, session.served[PARENT].identity
        session.ask(PARENT, parent_hash, session.served[PARENT])
        rows[0]["warnings"] = list(session.served[PARENT].events)
    else:
        rows = [parent_row(parent)]
        made = _with_parent(session, parent, inputs)
        parent_hash, parent_source = parent.hash, parent.source
        del parent
        _ask_vllm(session, PARENT, parent_hash, parent_source.path, plan.engine)
    for variant in made:
        rows.append(_with_variant(session, variant))
    if plan.control.enabled:
        session.info["control"] = _with_control(session, parent_hash)
    session.parent_pass = None
    session.warn(fault_warnings(session.items))
    write_table(session.directory.items, ItemRecord, session.items)
    if plan.fidelity.enabled:
        write_table(session.directory.fidelity, FidelityRecord, session.fidelity)
    if plan.cost.enabled and parent_source is not None:
        _time(session, made, parent_source)
    session.info["variants"] = rows
    session.info["status"] = "done"
    session.info["finished"] = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    session.save_info()


def _build_tasks(session: _Session, parent: LoadedModel | None) -> None:
    """The run's tasks with their prompts, and what run.json says of both."""
    from evalq.models.load import load_tokenizer
    from evalq.tasks.bridge import build

    plan = session.plan
    tokenizer = None if parent is None else parent.tokenizer
    local = next((v.artifact for v in plan.variants if v.artifact), "")
    if tokenizer is None and local and plan.prompts.chat_template is not False:
        tokenizer = load_tokenizer(Path(local), plan.engine)
    settings = prompt_settings(plan, tokenizer)
    session.info["prompts"] = prompt_record(plan, tokenizer)
    session.tasks = build(
        plan.suites,
        workloads=plan.workloads,
        data_dir=plan.data_dir,
        limit=plan.limit,
        prompts=settings,
        allow_code=plan.allow_code,
    )
    check_tasks(session.tasks, plan.adaptive.enabled)
    session.info["suites"] = suite_info(session.tasks)
    session.warn(prompt_warnings(plan, tokenizer, session.tasks))


def _time(session: _Session, made: Sequence[Made], parent: ModelSource) -> None:
    named = [
        (variant.plan.label, variant.artifact.path)
        for variant in made
        if variant.artifact is not None and variant.plan.kv_bits is None
    ]
    time_variants(session.plan, session.directory, session.info, named, parent, session.progress)


def _local_engine(model: LoadedModel, plan: EnginePlan) -> TransformersEngine:
    from evalq.models.hf import TransformersEngine

    return TransformersEngine(model, plan)


def _ask_vllm(session: _Session, label: str, identity: str, path: Path, plan: EnginePlan) -> None:
    """Ask through vLLM, where the plan wants it; no other model may be in memory."""
    if plan.kind != "vllm":
        return
    from evalq.models.vllm_offline import VllmEngine

    engine = VllmEngine(path, plan)
    try:
        session.ask(label, identity, engine)
    finally:
        engine.close()


def _with_parent(session: _Session, parent: LoadedModel, inputs: Inputs) -> list[Made]:
    """All that needs the parent in memory: its artifacts, its answers, its pass over text."""
    plan = session.plan
    made = _artifacts(session, parent, inputs)
    engine = _local_engine(parent, plan.engine)
    if plan.engine.kind == "transformers":
        session.ask_local(PARENT, parent.hash, engine)
    if inputs.text is not None:
        session.info["fidelity"] = inputs.text_record
        session.text_key = content_hash(
            [parent.hash, inputs.text_hashes, plan.fidelity.model_dump(), dict(engine.settings)]
        )
        session.parent_pass = run_parent(parent, inputs.text.name, inputs.windows, session.progress)
        session.info["fidelity"]["kept"] = session.parent_pass.mode
    return made


def _artifacts(session: _Session, parent: LoadedModel, inputs: Inputs) -> list[Made]:
    from evalq.quantize.config import METHODS

    made = []
    for variant in session.plan.variants:
        if not variant.method:
            made.append(Made(variant, inputs.given.get(variant.label)))
            continue
        needed = inputs.calibration if METHODS.get(variant.method).needs_calibration else None
        folder = session.directory.artifacts
        artifact = make_variant(
            parent, variant, needed, session.plan.seed, folder, session.progress
        )
        made.append(Made(variant, artifact))
    return made


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


def _with_variant(session: _Session, made: Made) -> dict[str, Any]:
    """Load one artifact from its files, ask and compare it; returns its row of run.json."""
    from evalq.models.load import load_artifact, load_parent

    plan, artifact, label = session.plan, made.artifact, made.plan.label
    if made.plan.endpoint is not None:
        served = session.served[label]
        session.ask(label, served.identity, served)
        return served_row(label, served)
    if artifact is None:
        model = load_parent(plan.parent, plan.engine)
    else:
        model = load_artifact(artifact.path, plan.engine)
    model.kv_bits = made.plan.kv_bits
    identity = made.identity(model.hash)
    if plan.engine.kind == "transformers":
        session.ask_local(label, identity, _local_engine(model, plan.engine))
    _fidelity_of(session, label, content_hash([label, identity]), model)
    row = variant_row(made, model)
    # What is said of the whole run is not said again of every variant.
    row["warnings"] = [w for w in row["warnings"] if w not in session.info["warnings"]]
    path = model.source.path
    del model
    _ask_vllm(session, label, identity, path, plan.engine)
    return row


def _with_control(session: _Session, parent_hash: str) -> dict[str, Any]:
    """The parent against itself: half the batch, and another precision of arithmetic; an endpoint
    is asked everything a second time."""
    from evalq.models.endpoint import EndpointEngine
    from evalq.models.load import load_parent

    plan = session.plan
    if plan.parent_endpoint is not None:
        again = session.served[CONTROL] = EndpointEngine(plan.parent_endpoint, repeat=CONTROL)
        session.ask(CONTROL, parent_hash, again)
        return {"variant": CONTROL, "what": "the parent's endpoint, asked everything again"}
    stored = session.info["parent"]["dtype"]
    used = "float32" if plan.engine.dtype == "float32" else plan.engine.dtype
    model = load_parent(plan.parent, plan.engine)
    running = str(model.dtype).removeprefix("torch.")
    other = _other_precision(running, stored)
    del model
    benign = plan.engine.model_copy(update={"dtype": other, "batch_tokens": _half(plan)})
    model = load_parent(plan.parent, benign)
    if plan.engine.kind == "transformers":
        session.ask_local(CONTROL, parent_hash, _local_engine(model, benign))
    _fidelity_of(session, CONTROL, content_hash([CONTROL, parent_hash, other, used]), model)
    path = model.source.path
    del model
    _ask_vllm(session, CONTROL, parent_hash, path, benign)
    return {
        "variant": CONTROL,
        "what": f"the parent again, computed in {other} instead of {running}, with half the batch",
        "dtype": other,
        "batch_tokens": benign.batch_tokens,
    }


def _other_precision(running: str, stored: str) -> str:
    """The dtype of the negative control: float32 for what runs in 16 bits, else the 16 bits of the
    parent's files, or bfloat16: float32 once more would show no noise at all."""
    if running != "float32":
        return "float32"
    return stored if stored in ("bfloat16", "float16") else "bfloat16"


def _half(plan: Plan) -> int:
    return max(1, plan.engine.batch_tokens // 2)
