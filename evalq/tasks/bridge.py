"""The bridge to lm-eval: tasks are built once, asked of every variant, scored by lm-eval.

lm-eval's evaluator builds a task's prompts anew for each model and runs the model itself. Here the
prompts become a flat list of requests that any engine answers, for any number of variants, and the
answers go back into lm-eval's own filters and metrics. Hashes are taken as
``lm_eval.evaluator.evaluate`` takes them, so that records pair with its sample logs.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from evalq.errors import TaskError
from evalq.schema import Request, Response
from evalq.tasks.items import Identity, Item, ItemScore, describe_item
from evalq.tasks.load import LoadedTask, compiled_templates, load_task, quiet, seeded
from evalq.tasks.prompts import Conversations, PromptSettings
from evalq.tasks.requests import as_lm_eval, to_requests
from evalq.tasks.scoring import (
    FAULT,
    choose_filter,
    choose_metric,
    chosen,
    metrics_json,
    missing_package,
    read_score,
)
from evalq.tasks.suites import Suite, SuiteTask, load_suite
from evalq.tasks.workloads import load_workload

__all__ = ["BuiltTask", "ItemScore", "PromptSettings", "build", "build_task", "build_workload"]


@dataclass(frozen=True)
class BuiltTask:
    """A task with its prompts.

    Args:
        suite: name of the suite, or ``workload``.
        suite_version: version of the suite; 0 for a workload.
        name: lm-eval task name.
        version: as the task declares it.
        slice: slice of its items (an item of a workload may have a deeper one).
        metric: primary metric.
        filter: lm-eval filter that metrics are of.
        num_fewshot: examples in each prompt.
        weight: what an item of it counts in the slices above and overall.
        source: where the documents came from.
        notes: what a reader of the results has to know about the data.
        items: one a document, in lm-eval's order.
        requests: flat, in lm-eval's order; a document may have several.
        task: the lm-eval task; its ``instances`` are what ``requests`` were made from.
    """

    suite: str
    suite_version: int
    name: str
    version: str
    slice: str
    metric: str
    filter: str
    num_fewshot: int
    weight: float
    source: str
    notes: tuple[str, ...]
    items: tuple[Item, ...] = field(repr=False)
    requests: list[Request] = field(repr=False)
    task: Any = field(repr=False)

    @property
    def delimiter(self) -> str:
        """What lm-eval puts between a prompt and its target."""
        return str(self.task.config.target_delimiter)

    @property
    def doc_hashes(self) -> frozenset[str]:
        """Hashes of the documents that are evaluated, to tell calibration text from test items."""
        return frozenset(item.doc_hash for item in self.items)

    def subset(self, positions: Collection[int]) -> tuple[BuiltTask, list[int]]:
        """The task with some of its items, and the places of their requests in ``requests``.

        Args:
            positions: of the items, in ``items``.
        """
        documents = list(dict.fromkeys(i.doc_id for i in self.task.instances))
        kept = {documents[p] for p in positions}
        places: list[int] = []
        at = 0
        for instance in self.task.instances:
            if instance.doc_id in kept:
                places += range(at, at + instance.repeats)
            at += instance.repeats
        part = copy(self.task)
        part._instances = [i for i in self.task.instances if i.doc_id in kept]
        chosen = set(positions)
        items = tuple(item for p, item in enumerate(self.items) if p in chosen)
        return replace(
            self, items=items, requests=[self.requests[p] for p in places], task=part
        ), places

    def records(self, responses: Sequence[Response]) -> list[ItemScore]:
        """Score the answers to ``requests`` by lm-eval's own filters and metrics.

        A generated answer that the task's code raises on counts as wrong, and its metrics say why
        (``scoring.FAULT``): what a model writes ends no run.

        Args:
            responses: one a request, in their order.

        Raises:
            TaskError: too few or too many responses, a log-probability that is missing or NaN, a
                metric that is no score of a single item, a package that scoring needs.
        """
        if len(responses) != len(self.requests):
            raise TaskError(
                f"task {self.name!r} has {len(self.requests)} requests and was given "
                f"{len(responses)} responses"
            )
        answers = self._answer(responses)
        with quiet(), seeded(), compiled_templates():
            faults = self._filter()
            scores = [
                self._score(item, instances, own, faults.get(item.item_id, ""))
                for item, instances, own in zip(self.items, self._documents(), answers, strict=True)
            ]
        return scores

    def _filter(self) -> dict[str, str]:
        """Apply lm-eval's filters; items whose answers they raise on, with the reason."""
        try:
            self.task.apply_filters()
            return {}
        except ImportError as error:
            raise missing_package(self.name, error) from error
        except Exception as error:  # a filter is task code: it may raise on what it did not foresee
            if not self._generates:
                raise TaskError(f"task {self.name!r}: a filter fails: {error!r}") from error
        faults = {}
        for item, instances in zip(self.items, self._documents(), strict=True):
            try:
                for ensemble in self.task._filters:
                    ensemble.apply(instances)
            except Exception as error:
                faults[item.item_id] = f"a filter fails: {error!r}"[:300]
        return faults

    @property
    def _generates(self) -> bool:
        return str(self.task.OUTPUT_TYPE) == "generate_until"

    def _metrics(self, label: str, doc: Any, instances: list[Any]) -> dict[str, Any]:
        """The task's own metrics of one item, or what is left of them where it raises."""
        try:
            found = self.task.process_results(
                doc, [instance.filtered_resps[self.filter] for instance in instances]
            )
        except ImportError as error:
            raise missing_package(self.name, error) from error
        except Exception as error:  # task code may raise anything on an answer it did not foresee
            if not self._generates:
                raise TaskError(f"{label}: lm-eval could not score it: {error!r}") from error
            return {self.metric: 0.0, FAULT: f"{error!r}"[:300]}
        return dict(found)

    def _documents(self) -> Iterator[list[Any]]:
        """The instances of each document, in the evaluator's order."""
        grouped: dict[int, list[Any]] = {}
        for instance in self.task.instances:
            grouped.setdefault(instance.doc_id, []).append(instance)
        for instances in grouped.values():
            yield sorted(instances, key=lambda i: int(i.idx))

    def _answer(self, responses: Sequence[Response]) -> list[list[Response]]:
        """Give every instance its answers; returns them by document, in instance order."""
        position = 0
        by_doc: dict[int, list[Response]] = {}
        for instance in self.task.instances:
            taken = responses[position : position + instance.repeats]
            asked = self.requests[position : position + instance.repeats]
            position += instance.repeats
            instance.resps = [
                as_lm_eval(q, r, self.name) for q, r in zip(asked, taken, strict=True)
            ]
            instance.filtered_resps = {}
            by_doc.setdefault(instance.doc_id, []).extend(taken)
        return list(by_doc.values())

    def _score(
        self, item: Item, instances: list[Any], answers: list[Response], fault: str
    ) -> ItemScore:
        label = f"task {self.name!r}, item {item.item_id!r}"
        doc = instances[0].doc
        metrics = (
            {self.metric: 0.0, FAULT: fault} if fault else self._metrics(label, doc, instances)
        )
        score = read_score(metrics, self.metric, label)
        return ItemScore(
            suite=self.suite,
            task=self.name,
            task_version=self.version,
            slice=item.slice,
            item_id=item.item_id,
            cluster=item.cluster,
            doc_hash=item.doc_hash,
            prompt_hash=item.prompt_hash,
            target_hash=item.target_hash,
            filter=self.filter,
            metric=self.metric,
            score=score.value,
            nll=score.nll,
            units=score.units,
            metrics=metrics_json(metrics),
            prompt=item.prompt,
            target=item.target,
            response=self._response(doc, answers),
            tokens_in=sum(r.tokens_in for r in answers),
            tokens_out=sum(r.tokens_out for r in answers),
            truncated=any(r.truncated for r in answers),
        )

    def _response(self, doc: Any, answers: list[Response]) -> str:
        if self.task.OUTPUT_TYPE == "multiple_choice":
            return chosen(self.metric, self.task.doc_to_choice(doc), answers)
        return answers[0].text


def build(
    suites: Sequence[str | Suite],
    workloads: Sequence[str | Path] = (),
    *,
    data_dir: str | Path = "",
    limit: int | None = None,
    prompts: PromptSettings | None = None,
    allow_code: bool = False,
) -> list[BuiltTask]:
    """Build all tasks of a run, once for all its variants.

    Args:
        suites: names, paths or selections (``multilingual:xcopa_*``), see ``load_suite``. The same
            task of the same suite is built once, however often it is selected.
        workloads: files of the user's own items, see ``load_workload``.
        data_dir: folder of local copies of datasets; empty for none.
        limit: the first so many documents a task, in lm-eval's order.
        prompts: chat template, system message and few-shot seed.
        allow_code: run code of the user's and of models, see ``evalq.tasks.consent``.

    Raises:
        PlanError: an unknown suite or task selection, a faulty suite file, nothing selected, code
            that is not allowed.
        TaskError: a task, a dataset or a workload that cannot be built.
    """
    prompts = prompts or PromptSettings()
    folder = Path(data_dir) if str(data_dir) else None
    built: list[BuiltTask] = []
    seen: set[tuple[str, str]] = set()
    for selection in suites:
        suite = selection if isinstance(selection, Suite) else load_suite(selection)
        for entry in suite.tasks:
            if (suite.name, entry.task) not in seen:
                seen.add((suite.name, entry.task))
                loaded = load_task(entry, folder, allow_code)
                built.append(build_task(loaded, suite, entry, limit=limit, prompts=prompts))
    for workload in workloads:
        for task in build_workload(
            workload, data_dir=folder, limit=limit, prompts=prompts, allow_code=allow_code
        ):
            if ("workload", task.name) in seen:
                raise TaskError(
                    f"two workloads are named {task.name!r}",
                    hint="Rename one of the files: a workload is named after its file.",
                )
            seen.add(("workload", task.name))
            built.append(task)
    return built


def build_task(
    loaded: LoadedTask,
    suite: Suite,
    entry: SuiteTask,
    *,
    limit: int | None = None,
    prompts: PromptSettings | None = None,
) -> BuiltTask:
    """Build the prompts of one suite task.

    Raises:
        TaskError: no documents, too few few-shot examples, an unknown metric or filter.
    """
    limits = [n for n in (limit, entry.limit) if n is not None]
    _set_fewshot(loaded.task, entry)
    identity = Identity(
        suite.name, suite.version, entry.task, entry.slice, entry.cluster, weight=entry.weight
    )
    return _assemble(
        loaded,
        identity,
        (entry.metric, entry.filter),
        min(limits) if limits else None,
        prompts or PromptSettings(),
    )


def build_workload(
    file: str | Path,
    *,
    data_dir: Path | None = None,
    limit: int | None = None,
    prompts: PromptSettings | None = None,
    allow_code: bool = False,
) -> list[BuiltTask]:
    """Build a workload: one task for its free answers, one for its multiple-choice items.

    Raises:
        TaskError: a fault in the file, with its place.
        PlanError: a faulty workload YAML, an unknown scorer, code that is not allowed.
    """
    built = []
    for part in load_workload(file, data_dir, allow_code):
        identity = Identity("workload", 0, part.name, part.slice, "", part.own)
        shots = part.loaded.task.get_config("num_fewshot") or 0
        part.loaded.task.set_config(key="num_fewshot", value=shots)
        settings = prompts or PromptSettings()
        built.append(_assemble(part.loaded, identity, ("", ""), limit, settings))
    return built


def _set_fewshot(task: Any, entry: SuiteTask) -> None:
    """lm-eval's rule, except that what it ignores with a log line is refused here."""
    own = task.get_config("num_fewshot")
    wanted = entry.num_fewshot
    if wanted is None:
        task.set_config(key="num_fewshot", value=own or 0)
    elif own == 0 and wanted != 0:
        raise TaskError(
            f"task {entry.task!r} is fixed at 0 examples by lm-eval; the suite asks for {wanted}",
            hint="Take num_fewshot out of the suite: the prompt holds its examples already.",
        )
    else:
        task.set_config(key="num_fewshot", value=wanted)


def _assemble(
    loaded: LoadedTask,
    identity: Identity,
    wanted: tuple[str, str],
    limit: int | None,
    prompts: PromptSettings,
) -> BuiltTask:
    task = loaded.task
    metric = choose_metric(identity.task, wanted[0], task)
    filter_name = choose_filter(identity.task, wanted[1], task)
    task.set_fewshot_seed(seed=prompts.fewshot_seed)
    chat = None if prompts.chat_template is None else Conversations(prompts.chat_template)
    try:
        with quiet(), seeded(), compiled_templates():
            task.build_all_requests(
                limit=limit,
                system_instruction=prompts.system or None,
                apply_chat_template=chat is not None,
                fewshot_as_multiturn=prompts.multiturn,
                chat_template=chat,
            )
    except TaskError:
        raise
    except Exception as error:  # templates and task code raise anything
        raise TaskError(
            f"task {identity.task!r}: prompts cannot be built: {error!r}", hint=_why(task)
        ) from error
    grouped: dict[int, list[Any]] = {}
    for instance in task.instances:
        grouped.setdefault(instance.doc_id, []).append(instance)
    with compiled_templates():
        items = tuple(describe_item(task, identity, *entry) for entry in grouped.items())
    return BuiltTask(
        suite=identity.suite,
        suite_version=identity.suite_version,
        name=identity.task,
        version=str(task.VERSION),
        slice=identity.slice,
        metric=metric,
        filter=filter_name,
        num_fewshot=int(task.get_config("num_fewshot") or 0),
        weight=identity.weight,
        source=loaded.source,
        notes=loaded.notes,
        items=items,
        requests=to_requests(task.instances, identity.task, chat, prompts.key),
        task=task,
    )


def _why(task: Any) -> str:
    shots = task.get_config("num_fewshot") or 0
    sampler = getattr(task, "sampler", None)
    if shots and sampler is not None and len(sampler.df) < shots:
        return (
            f"It takes {shots} examples and the data has {len(sampler.df)}: put the training split "
            "beside the test split, or set num_fewshot."
        )
    return ""
