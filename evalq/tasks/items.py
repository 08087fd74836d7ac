"""Items: what a document's record is filed under, and lm-eval's hashes of it."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from typing import Any

from evalq.errors import TaskError

__all__ = ["Identity", "Item", "ItemScore", "describe_item"]


@dataclass(frozen=True)
class Identity:
    """What a task's records are filed under.

    Args:
        suite, suite_version, task, slice: as in ``BuiltTask``.
        cluster: a template over ``{doc_id}`` and the document's columns, empty for none.
        own: the documents carry their own ``id``, ``slice`` and ``cluster`` (a workload's do).
        weight: of an item in the aggregate.
    """

    suite: str
    suite_version: int
    task: str
    slice: str
    cluster: str
    own: bool = False
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class ItemScore:
    """One item's score: the fields of ``schema.ItemRecord`` but the two of the variant."""

    suite: str
    task: str
    task_version: str
    slice: str
    item_id: str
    cluster: str
    doc_hash: str
    prompt_hash: str
    target_hash: str
    filter: str
    metric: str
    score: float | None
    nll: float | None
    units: int | None
    metrics: str
    prompt: str
    target: str
    response: str
    tokens_in: int
    tokens_out: int
    truncated: bool


@dataclass(frozen=True, slots=True)
class Item:
    """What is known of an item before it is answered."""

    item_id: str
    slice: str
    cluster: str
    doc_hash: str
    prompt_hash: str
    target_hash: str
    prompt: str
    target: str


def describe_item(task: Any, identity: Identity, doc_id: int, instances: list[Any]) -> Item:
    """The evaluator's hashes of a document, and what its record is filed under."""
    from lm_eval.utils import handle_non_serializable, hash_string

    first = min(instances, key=lambda i: int(i.idx))
    doc = first.doc
    target = task.doc_to_target(doc)
    text = json.dumps(doc, indent=2, default=handle_non_serializable, ensure_ascii=False)
    prompt = str(first.arguments[0])
    own = doc if identity.own else {}
    item_id = str(own.get("id") or doc_id)
    cluster = str(own.get("cluster") or "") or _cluster(identity.cluster, doc_id, doc)
    return Item(
        item_id=item_id,
        slice=str(own.get("slice") or identity.slice),
        cluster=cluster or f"{identity.task}/{item_id}",
        doc_hash=str(hash_string(text)),
        prompt_hash=str(hash_string(first.arguments[0])),
        target_hash=str(hash_string(str(target))),
        prompt=prompt,
        target=_target_text(task, doc, target),
    )


def _target_text(task: Any, doc: Any, target: Any) -> str:
    """The target as a reader knows it: a multiple-choice task's is the option, not its index."""
    if task.OUTPUT_TYPE != "multiple_choice":
        return str(target)
    choices = task.doc_to_choice(doc)
    gold = task.doc_to_text(doc) if getattr(task, "multiple_input", 0) else target
    if isinstance(gold, list):
        return json.dumps([choices[g] if isinstance(g, int) else g for g in gold])
    if isinstance(gold, int) and not 0 <= gold < len(choices):
        raise TaskError(f"the right option is number {gold} of {len(choices)}")
    return str(choices[gold]) if isinstance(gold, int) else str(gold)


def _cluster(template: str, doc_id: int, doc: Any) -> str:
    """A cluster template filled in: ``{doc_id}`` or a column; long values by their hash."""
    if not template:
        return ""

    def fill(match: re.Match[str]) -> str:
        name = match[1]
        if name == "doc_id":
            return str(doc_id)
        if name not in doc:
            raise TaskError(f"cluster {template!r}: the documents have no column {name!r}")
        value = str(doc[name])
        return value if len(value) <= 64 else hashlib.sha256(value.encode()).hexdigest()[:16]

    return re.sub(r"\{(\w+)\}", fill, template)
