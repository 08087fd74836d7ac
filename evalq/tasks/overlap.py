"""Items that are evaluated and stand in the text that methods calibrate on.

A variant that was calibrated on the very items it is judged by looks better than it is. Items are
compared by hash where both sides have one, and else by their text: lower case, without any space,
in Unicode's NFKC form. A text holds an item when

- it is the item (its question, or question and answer), as a whole or on a line of its own;
- or it contains the item's question, when that has at least ``LONG`` such characters; shorter
  questions ("12 + 7 =") have to stand at the beginning of a line, with at least ``SHORT``
  characters.

Questions that several items share ("Complete the sentence:") do not tell them apart: question and
answer are then taken together.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from evalq.tasks.bridge import BuiltTask

__all__ = ["LONG", "SHORT", "Evaluated", "evaluated_items", "find_overlap", "normalized"]

LONG = 24
"""Characters of a question that is looked for anywhere in a text."""
SHORT = 6
"""Characters of a question that is looked for at the beginning of lines."""


@dataclass(frozen=True, slots=True)
class Evaluated:
    """What an evaluated item is known by.

    Args:
        name: ``task/item``.
        doc_hash: lm-eval's hash of its document.
        question: without the examples of a few-shot prompt.
        answer: what is expected; may be empty.
    """

    name: str
    doc_hash: str
    question: str
    answer: str


def normalized(text: str) -> str:
    """``text`` in NFKC form and lower case, without white space."""
    return "".join(unicodedata.normalize("NFKC", text).casefold().split())


def evaluated_items(tasks: Iterable[BuiltTask]) -> list[Evaluated]:
    """The items of built tasks, as they are looked for in other text."""
    from evalq.tasks.load import compiled_templates, quiet

    found = []
    for task in tasks:
        documents: dict[int, Any] = {}
        for instance in task.task.instances:
            documents.setdefault(instance.doc_id, instance.doc)
        with quiet(), compiled_templates():
            for item, document in zip(task.items, documents.values(), strict=True):
                question = _question(task.task, document) or item.prompt
                name = f"{task.name}/{item.item_id}"
                found.append(Evaluated(name, item.doc_hash, question, item.target))
    return found


def _question(task: Any, document: Any) -> str:
    """The document's own question, or ``""`` where a task has none that is text."""
    if str(task.OUTPUT_TYPE) == "loglikelihood_rolling" or bool(
        getattr(task, "multiple_input", False)
    ):
        return ""
    try:
        text = task.doc_to_text(document)
    except Exception:  # task code raises anything; the whole prompt then stands for the question
        return ""
    return text if isinstance(text, str) and text.strip() else ""


def find_overlap(
    items: Sequence[Evaluated], documents: Iterable[tuple[str, str]]
) -> dict[str, int]:
    """Names of the items that documents hold, each with the number of the first that does.

    Args:
        items: that are evaluated.
        documents: ``(text, doc_hash)`` of each; the hash may be ``""``.
    """
    index = _Index(items)
    found: dict[str, int] = {}
    for number, (text, doc_hash) in enumerate(documents):
        for name in index.inside(text, doc_hash):
            found.setdefault(name, number)
    return found


class _Index:
    """Items by what they are looked for by; a text is gone through once, whatever their number."""

    def __init__(self, items: Sequence[Evaluated]) -> None:
        self.hashes: dict[str, list[str]] = {}
        self.whole: dict[str, list[str]] = {}
        self.begins: dict[str, list[str]] = {}
        self.long: dict[str, list[tuple[str, str]]] = {}
        shared = Counter(normalized(item.question) for item in items)
        for item in items:
            question = normalized(item.question)
            both = question + normalized(item.answer)
            self.hashes.setdefault(item.doc_hash, []).append(item.name)
            alone = shared[question] == 1
            for key in {both, question} if alone and question else {both}:
                self.whole.setdefault(key, []).append(item.name)
            key = question if alone else both
            if len(key) < LONG <= len(both):
                key = both
            if len(key) >= LONG:
                self.long.setdefault(key[:LONG], []).append((key, item.name))
            if alone and SHORT <= len(question) < LONG:
                self.begins.setdefault(question, []).append(item.name)
        self.lengths = sorted({len(key) for key in self.begins})

    def inside(self, text: str, doc_hash: str) -> Iterator[str]:
        """Names of items that a text holds; a name may come more than once."""
        if doc_hash:
            yield from self.hashes.get(doc_hash, ())
        plain = normalized(text)
        yield from self.whole.get(plain, ())
        for line in text.splitlines():
            short = normalized(line)
            yield from self.whole.get(short, ())
            for length in self.lengths:
                if length > len(short):
                    break
                yield from self.begins.get(short[:length], ())
        if not self.long:
            return
        for start in range(len(plain) - LONG + 1):
            for key, name in self.long.get(plain[start : start + LONG], ()):
                if plain.startswith(key, start):
                    yield name
