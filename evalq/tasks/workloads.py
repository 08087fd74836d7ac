r"""Workloads: a user's own items in a file, wrapped as lm-eval tasks.

A line of a JSONL file is one item, either a question to answer freely or options to choose from::

    {"prompt": "Capital of Kenya?\nA:", "target": "Nairobi"}
    {"prompt": "2 + 2 =", "choices": ["3", "4"], "answer": 1}

Prompts, targets and options are taken literally: nothing in them is a template.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evalq.errors import PlanError, TaskError, nearest
from evalq.tasks.code_scorers import Code
from evalq.tasks.consent import check_consent
from evalq.tasks.data import Rows
from evalq.tasks.index import load_config
from evalq.tasks.load import LoadedTask, load_task, make_task
from evalq.tasks.sandbox import isolation
from evalq.tasks.scorers import FUNCTION, SCORERS, Function, Scorer, judged
from evalq.tasks.scoring import FAULT
from evalq.tasks.suites import SuiteTask
from evalq.tasks.workload_files import is_task_file, read_workload, split_scorer
from evalq.tasks.workload_items import DEFAULT_MAX_TOKENS, DEFAULT_UNTIL, check_items

__all__ = ["Workload", "load_workload"]

VERSION = "1"
"""Version of the wrapping: goes up when prompts or scores of the same file would change."""


@dataclass(frozen=True)
class Workload:
    """The items of one kind of a workload file, as a task.

    Args:
        name: the file's stem; ``<stem>.choices`` for the multiple-choice items of a mixed file.
        slice: ``workload/<stem>``; an item's own slice goes below it.
        loaded: the lm-eval task.
        own: the documents are the user's items, with ``id``, ``slice`` and ``cluster``.
    """

    name: str
    slice: str
    loaded: LoadedTask
    own: bool


def load_workload(
    file: str | Path, data_dir: Path | None = None, allow_code: bool = False
) -> list[Workload]:
    """The tasks of a workload: one for free answers, one for multiple choice.

    Args:
        file: ``mine.jsonl`` (or .csv, .parquet), ``mine.jsonl:numeric`` to name the scorer of all
            items that name none (default ``exact``); ``mine.yaml`` with templates over a file's
            columns (``evalq.tasks.workload_files``), or with an lm-eval task.
        data_dir: where an lm-eval task's dataset may lie.
        allow_code: run what would run: see ``evalq.tasks.consent``.

    Raises:
        TaskError: a file that is missing, empty or no UTF-8; a line that is no JSON object; an item
            that lacks a field, has one too many or of the wrong kind, or repeats an id (with its
            place).
        PlanError: an unknown scorer after the colon, a faulty workload YAML, code that is not
            allowed.
    """
    path, scorer = split_scorer(file)
    if scorer and scorer not in SCORERS:
        raise PlanError(
            f"workload {file}: unknown scorer {scorer!r}", hint=nearest(scorer, SCORERS)
        )
    if not allow_code:
        check_consent((), (file,), allowed=False)
    if is_task_file(path):
        return [_as_it_is(path, data_dir, allow_code)]
    source = read_workload(path)
    function = None
    if source.function:
        function = Function.parse(source.function, source.folder)
        function.load()
    docs = check_items(source.rows, str(source.path), scorer or source.scorer, function)
    stem = re.sub(r"[^A-Za-z0-9_.+-]+", "-", source.name).strip("-.+") or "items"
    free = [doc for doc in docs if not doc["choices"]]
    choice = [doc for doc in docs if doc["choices"]]
    out = []
    for kind, rows in (("free", free), ("choices", choice)):
        if not rows:
            continue
        name = stem if kind == "free" or not free else f"{stem}.choices"
        config = _free_config(name, rows, function) if kind == "free" else _choice_config(name)
        for row in rows:
            row["slice"] = f"workload/{stem}" + (f"/{row['slice']}" if row["slice"] else "")
        task = make_task(config, {"test": Rows(rows)}, str(source.path))
        _adapt(task)
        loaded = LoadedTask(task, str(source.path), _notes(rows, function))
        out.append(Workload(name, f"workload/{stem}", loaded, True))
    return out


def _notes(rows: Sequence[Mapping[str, Any]], function: Function | None) -> tuple[str, ...]:
    """What ran beside the model."""
    if any(row.get("scorer") == "code" for row in rows):
        return (f"answers are run as Python; isolation: {isolation().words}",)
    if function is not None and any(row.get("scorer") == FUNCTION for row in rows):
        return (f"scored by {function.name} of {function.file} ({function.hash[:12]})",)
    return ()


def _as_it_is(path: Path, data_dir: Path | None, allow_code: bool) -> Workload:
    """An lm-eval task in a YAML file of the user's."""
    name = str(load_config(path, allow_code)["task"])
    below = re.sub(r"[^A-Za-z0-9_.+-]+", "-", name).strip("-.+") or "task"
    entry = SuiteTask.model_validate(
        {"task": name, "slice": f"workload/{below}", "file": str(path.resolve())}
    )
    return Workload(name, entry.slice, load_task(entry, data_dir, allow_code), False)


def _free_config(
    name: str, rows: Sequence[Mapping[str, Any]], function: Function | None
) -> dict[str, Any]:
    """One metric a file: the scorer's own name where all items agree on it, else ``correct``."""
    scorers: dict[str, Scorer] = dict(SCORERS)
    if function is not None:
        scorers[FUNCTION] = function
    used = {str(row["scorer"]) for row in rows}
    metric = scorers[used.pop()].metric if len(used) == 1 else "correct"

    def process_results(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, Any]:
        scorer = scorers[str(doc["scorer"])]
        value, fault = judged(scorer, results[0], doc)
        out: dict[str, Any] = {metric: value}
        if fault:
            out[FAULT] = fault
        elif isinstance(scorer, Code) and not value:
            out["why"] = scorer.why(results[0], doc)
        return out

    return {
        "task": name,
        "output_type": "generate_until",
        "test_split": "test",
        "doc_to_text": "prompt",
        "doc_to_target": _target,
        "process_results": process_results,
        "metric_list": [{"metric": metric, "aggregation": "mean", "higher_is_better": True}],
        "generation_kwargs": {
            "until": list(DEFAULT_UNTIL),
            "max_gen_toks": DEFAULT_MAX_TOKENS,
            "do_sample": False,
            "temperature": 0.0,
        },
        "num_fewshot": 0,
        "metadata": {"version": VERSION if function is None else f"{VERSION}+{function.hash[:12]}"},
    }


def _target(doc: Mapping[str, Any]) -> str:
    targets = list(doc["targets"])
    return str(targets[0]) if len(targets) == 1 else str(targets)


def _choice_config(name: str) -> dict[str, Any]:
    metrics = [
        {"metric": m, "aggregation": "mean", "higher_is_better": True} for m in ("acc", "acc_norm")
    ]
    return {
        "task": name,
        "output_type": "multiple_choice",
        "test_split": "test",
        "doc_to_text": "prompt",
        "doc_to_choice": "choices",
        "doc_to_target": "answer",
        "metric_list": metrics,
        "num_fewshot": 0,
        "metadata": {"version": VERSION},
    }


def _adapt(task: Any) -> None:
    """Let every item's ``messages``, ``until`` and ``max_tokens`` rule its own request."""
    construct, context_of = task.construct_requests, task.fewshot_context

    def fewshot_context(doc: Any, *args: Any, **kwargs: Any) -> Any:
        if not doc["messages"]:
            return context_of(doc, *args, **kwargs)
        render = kwargs.get("chat_template")
        if render is None:
            raise TaskError(
                f"item {doc['id']!r} of workload {task.config.task!r} has messages, and no chat "
                "template is applied",
                hint="Turn the chat template on, or write the item's 'prompt' as text.",
            )
        messages = json.loads(doc["messages"])
        if kwargs.get("system_instruction"):
            messages.insert(0, {"role": "system", "content": kwargs["system_instruction"]})
        return render(messages, add_generation_prompt=True)

    def construct_requests(doc: Any, ctx: Any, **kwargs: Any) -> Any:
        built = construct(doc=doc, ctx=ctx, **kwargs)
        if isinstance(built, list):
            return built
        context, settings = built.arguments
        own = {**settings, "until": list(doc["until"]), "max_gen_toks": int(doc["max_tokens"])}
        built.arguments = (context, own)
        return built

    task.fewshot_context = fewshot_context
    task.construct_requests = construct_requests
