r"""Workloads: a user's own items in a file, wrapped as lm-eval tasks.

A line of a JSONL file is one item, either a question to answer freely or options to choose from::

    {"prompt": "Capital of Kenya?\nA:", "target": "Nairobi"}
    {"prompt": "2 + 2 =", "choices": ["3", "4"], "answer": 1}

Prompts, targets and options are taken literally: nothing in them is a template.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evalq.errors import EvalqError, PlanError, TaskError, nearest
from evalq.tasks.data import read_jsonl_lines, to_dataset
from evalq.tasks.load import make_task
from evalq.tasks.scorers import SCORERS
from evalq.tasks.slices import check_slice

__all__ = ["DEFAULT_MAX_TOKENS", "DEFAULT_UNTIL", "Workload", "load_workload", "read_items"]

DEFAULT_UNTIL = ("\n\n",)
"""Where an answer stops unless an item says otherwise; lm-eval's own default."""

DEFAULT_MAX_TOKENS = 256
"""Longest answer unless an item says otherwise; lm-eval's own default."""

VERSION = "1"
"""Version of the wrapping: goes up when prompts or scores of the same file would change."""

_COMMON = {"prompt", "id", "slice", "cluster"}
_FREE = {"target", "scorer", "until", "max_tokens", "tolerance"}
_CHOICE = {"choices", "answer"}
_KEYS = _COMMON | _FREE | _CHOICE


@dataclass(frozen=True)
class Workload:
    """The items of one kind of a workload file, as a task.

    Args:
        name: the file's stem; ``<stem>.choices`` for the multiple-choice items of a mixed file.
        slice: ``workload/<stem>``; an item's own slice goes below it.
        path: the file.
        task: the lm-eval task.
        items: number of items.
    """

    name: str
    slice: str
    path: Path
    task: Any
    items: int


def load_workload(file: str | Path) -> list[Workload]:
    """The tasks in a workload file: one for free answers, one for multiple choice.

    Args:
        file: ``mine.jsonl``, or ``mine.jsonl:numeric`` to name the scorer of all items that name
            none (default ``exact``).

    Raises:
        TaskError: a file that is missing, empty or no UTF-8; a line that is no JSON object, lacks a
            field, has one too many or of the wrong kind, or repeats an id (with its number).
        PlanError: an unknown scorer after the colon.
    """
    text, _, scorer = str(file).rpartition(":")
    if not text or Path(str(file)).is_file():
        text, scorer = str(file), ""
    if scorer and scorer not in SCORERS:
        raise PlanError(
            f"workload {file}: unknown scorer {scorer!r}", hint=nearest(scorer, SCORERS)
        )
    path = Path(text)
    docs = read_items(path, scorer or "exact")
    stem = re.sub(r"[^A-Za-z0-9_.+-]+", "-", path.stem).strip("-.+") or "items"
    free = [doc for doc in docs if not doc["choices"]]
    choice = [doc for doc in docs if doc["choices"]]
    out = []
    for kind, rows in (("free", free), ("choices", choice)):
        if not rows:
            continue
        name = stem if kind == "free" or not free else f"{stem}.choices"
        config = _free_config(name, rows) if kind == "free" else _choice_config(name)
        for row in rows:
            row["slice"] = f"workload/{stem}" + (f"/{row['slice']}" if row["slice"] else "")
        task = _workload_task(config, rows, path)
        out.append(Workload(name, f"workload/{stem}", path, task, len(rows)))
    return out


def read_items(path: Path, scorer: str = "exact") -> list[dict[str, Any]]:
    """The checked items of a JSONL workload, every field filled in.

    Raises:
        TaskError: see ``load_workload``.
    """
    docs: list[dict[str, Any]] = []
    lines: dict[str, int] = {}
    for number, row in read_jsonl_lines(path):
        where = f"{path}, line {number}"
        doc = _item(row, where, scorer)
        doc["id"] = doc["id"] or f"line-{number}"
        if doc["id"] in lines:
            raise TaskError(
                f"{where}: id {doc['id']!r} is already that of line {lines[doc['id']]}",
                hint="Ids must be unique within a file; leave them out to number the lines.",
            )
        lines[doc["id"]] = number
        docs.append(doc)
    if not docs:
        raise TaskError(f"workload {path} holds no items", hint="One JSON object a line.")
    return docs


def _item(row: Mapping[str, Any], where: str, scorer: str) -> dict[str, Any]:
    unknown = [key for key in row if key not in _KEYS]
    if unknown:
        raise TaskError(f"{where}: unknown field {unknown[0]!r}", hint=nearest(unknown[0], _KEYS))
    prompt = row.get("prompt")
    if not isinstance(prompt, str) or not prompt:
        raise TaskError(
            f"{where}: 'prompt' is {'missing' if 'prompt' not in row else 'not a text'}",
            hint='An item is {"prompt", "target"} or {"prompt", "choices", "answer"}.',
        )
    doc: dict[str, Any] = {"prompt": prompt}
    for key in ("id", "slice", "cluster"):
        value = row.get(key)
        if (value is not None and not isinstance(value, str | int)) or isinstance(value, bool):
            raise TaskError(f"{where}: {key!r} is not a text or a whole number")
        doc[key] = "" if value is None else str(value)
    if doc["slice"]:
        _check_slice(doc["slice"], where)
    if _CHOICE & row.keys():
        doc |= _choice_fields(row, where)
    else:
        doc |= _free_fields(row, where, scorer)
    _check_text(doc, where)
    return doc


def _check_slice(name: str, where: str) -> None:
    try:
        check_slice(name, where)
    except PlanError as error:
        raise TaskError(error.message, hint=error.hint) from None


def _check_text(doc: Mapping[str, Any], where: str) -> None:
    """Text that UTF-8 cannot hold could not be hashed, stored or sent."""
    for value in doc.values():
        for text in value if isinstance(value, list) else [value]:
            if isinstance(text, str) and any("\ud800" <= c <= "\udfff" for c in text):
                raise TaskError(f"{where}: a lone surrogate (\\ud800 to \\udfff) is not text")


def _choice_fields(row: Mapping[str, Any], where: str) -> dict[str, Any]:
    extra = _FREE & row.keys()
    if extra:
        raise TaskError(f"{where}: {min(extra)!r} does not go with 'choices'")
    choices, answer = row.get("choices"), row.get("answer")
    if (
        not isinstance(choices, list)
        or len(choices) < 2
        or not all(isinstance(c, str) and c for c in choices)
    ):
        raise TaskError(f"{where}: 'choices' is not a list of two or more texts")
    if len(set(choices)) < len(choices):
        raise TaskError(f"{where}: two of the 'choices' are the same")
    if isinstance(answer, str) and answer in choices:
        answer = choices.index(answer)
    if not isinstance(answer, int) or isinstance(answer, bool) or not 0 <= answer < len(choices):
        raise TaskError(
            f"{where}: 'answer' is {answer!r}, and there are {len(choices)} choices",
            hint="Give the place of the right choice, counted from 0, or its text.",
        )
    return {"choices": choices, "answer": answer}


def _free_fields(row: Mapping[str, Any], where: str, default: str) -> dict[str, Any]:
    if "target" not in row:
        raise TaskError(
            f"{where}: no 'target' (and no 'choices')",
            hint='An item is {"prompt", "target"} or {"prompt", "choices", "answer"}.',
        )
    target = row["target"]
    targets = target if isinstance(target, list) else [target]
    numbers = all(isinstance(t, int | float) and not isinstance(t, bool) for t in targets)
    if not targets or not (numbers or all(isinstance(t, str) for t in targets)):
        raise TaskError(f"{where}: 'target' is not a text, a number or a list of them")
    name = row.get("scorer", default)
    if name not in SCORERS:
        raise TaskError(f"{where}: unknown scorer {name!r}", hint=nearest(str(name), SCORERS))
    until = row.get("until", list(DEFAULT_UNTIL))
    until = [until] if isinstance(until, str) else until
    if not isinstance(until, list) or not all(isinstance(s, str) and s for s in until):
        raise TaskError(f"{where}: 'until' is not a text or a list of texts")
    limit = row.get("max_tokens", DEFAULT_MAX_TOKENS)
    if not isinstance(limit, int) or isinstance(limit, bool) or limit < 1:
        raise TaskError(f"{where}: 'max_tokens' is {limit!r}, not a positive whole number")
    tolerance = row.get("tolerance", 0.0)
    if not isinstance(tolerance, int | float) or isinstance(tolerance, bool) or tolerance < 0:
        raise TaskError(f"{where}: 'tolerance' is {tolerance!r}, not a number of 0 or more")
    doc = {
        "targets": [str(t) for t in targets],
        "scorer": name,
        "until": until,
        "max_tokens": limit,
        "tolerance": float(tolerance),
        "choices": [],
    }
    try:
        SCORERS[name].check(doc)
    except EvalqError as error:
        raise TaskError(f"{where}: {error.message}", hint=error.hint) from None
    return doc


def _free_config(name: str, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One metric a file: the scorer's own name where all items agree on it, else ``correct``."""
    scorers = {str(row["scorer"]) for row in rows}
    metric = SCORERS[scorers.pop()].metric if len(scorers) == 1 else "correct"

    def process_results(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
        return {metric: float(SCORERS[str(doc["scorer"])].correct(results[0], doc))}

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
        "metadata": {"version": VERSION},
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


def _workload_task(config: dict[str, Any], rows: list[dict[str, Any]], path: Path) -> Any:
    task = make_task(config, to_dataset({"test": rows}, ()), str(path))
    if config["output_type"] == "generate_until":
        _own_limits(task)
    return task


def _own_limits(task: Any) -> None:
    """Let every item's ``until`` and ``max_tokens`` rule its request."""
    construct = task.construct_requests

    def construct_requests(doc: Any, ctx: Any, **kwargs: Any) -> Any:
        instance = construct(doc=doc, ctx=ctx, **kwargs)
        context, settings = instance.arguments
        own = {**settings, "until": list(doc["until"]), "max_gen_toks": int(doc["max_tokens"])}
        instance.arguments = (context, own)
        return instance

    task.construct_requests = construct_requests
