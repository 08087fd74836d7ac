"""A user's items as running text, to calibrate on."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evalq.tasks.scorers import Function
from evalq.tasks.workload_files import read_workload
from evalq.tasks.workload_items import check_items

__all__ = ["WorkloadText", "item_text", "workload_texts"]


@dataclass(frozen=True, slots=True)
class WorkloadText:
    """An item as text: its question and the right answer behind it."""

    text: str
    item_id: str
    slice: str


def item_text(row: Mapping[str, Any]) -> str | None:
    """``prompt`` and the right answer as one text, or ``None`` for a row that is no item.

    The answer is ``target`` (a text, a number, or the first of a list of them) or the chosen one of
    ``choices``; a row may have none. One space parts the two where neither has white space there,
    as lm-eval does by default.
    """
    prompt = row.get("prompt")
    if not isinstance(prompt, str):
        return None
    answer = _answer(row)
    if answer is None:
        return None
    joint = "" if not answer or prompt[-1:].isspace() or answer[:1].isspace() else " "
    return f"{prompt}{joint}{answer}"


def _answer(row: Mapping[str, Any]) -> str | None:
    """The right answer; ``""`` where a row says none, ``None`` where it says nonsense."""
    if "choices" in row:
        choices, answer = row["choices"], row.get("answer")
        if isinstance(answer, str):
            return answer
        if not isinstance(choices, list) or not isinstance(answer, int) or isinstance(answer, bool):
            return None
        return str(choices[answer]) if 0 <= answer < len(choices) else None
    target = row.get("target", "")
    if isinstance(target, list) and target:
        target = target[0]
    if isinstance(target, bool) or not isinstance(target, str | int | float):
        return None
    return str(target)


def workload_texts(file: str | Path) -> Iterator[WorkloadText]:
    """The items of a workload file (JSONL, CSV, Parquet or YAML over one of them) as texts.

    Raises:
        TaskError: a file that is missing or empty, or a faulty item, with its place.
        PlanError: a faulty workload YAML.
    """
    source = read_workload(Path(file))
    function = Function.parse(source.function, source.folder) if source.function else None
    for doc in check_items(source.rows, str(source.path), source.scorer, function):
        prompt = doc["prompt"]
        if doc["messages"]:
            prompt = "\n".join(m["content"] for m in json.loads(doc["messages"]))
        row: dict[str, Any] = {"prompt": prompt}
        if doc["choices"]:
            row |= {"choices": doc["choices"], "answer": doc["answer"]}
        else:
            row["target"] = doc["targets"][0]
        text = item_text(row)
        if text is not None:
            yield WorkloadText(text, str(doc["id"]), str(doc["slice"]))
