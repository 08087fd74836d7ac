"""Plain text that methods calibrate on and that distributions are compared on.

A source is ``auto``, a file, ``suite:NAME`` (the training split of its tasks) or ``workload:FILE``
(a user's items). ``auto`` is the
built-in parent's own text, and for every other parent the language reference that ships with
Python (``pydoc_data.topics``, English prose with code): it is on every machine, and two thirds
of its topics calibrate and one third is held out.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from evalq.errors import TaskError
from evalq.plan import TextPlan
from evalq.schema import TASK_TEXT, content_hash

if TYPE_CHECKING:
    from evalq.tasks.bridge import BuiltTask

__all__ = ["Document", "TextSource", "named_text", "read_documents", "resolve_text", "task_text"]

Purpose = Literal["calibration", "fidelity"]


@dataclass(frozen=True, slots=True)
class Document:
    """A text with the id that intervals are clustered by, its slice, and lm-eval's hash of it where
    it is a document of a task."""

    text: str
    document: str
    slice: str = "prose"
    doc_hash: str = ""


@dataclass(frozen=True, slots=True)
class TextSource:
    """Documents, where they came from, and the hash of their content."""

    name: str
    documents: tuple[Document, ...]

    @property
    def hash(self) -> str:
        """Of all documents in order."""
        return content_hash([[d.text, d.document, d.slice] for d in self.documents])


def read_documents(path: Path) -> list[Document]:
    """Documents of a file of text.

    A ``.jsonl`` has one a line: ``text`` (optional ``document`` and ``slice``), or an item of a
    workload (``prompt`` and ``target``, or ``choices`` and ``answer``). Any other file is one text,
    or one a block between form feeds.

    Raises:
        TaskError: no such file, no text in it, a line that is no JSON (its number is given).
    """
    try:
        content = path.read_text(encoding="utf-8")
    except OSError as error:
        raise TaskError(f"cannot read the text {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise TaskError(f"{path} is not UTF-8 text") from None
    documents = (
        _jsonl_documents(path, content)
        if path.suffix == ".jsonl"
        else [Document(t, f"{path.name}#{i}") for i, t in enumerate(content.split("\f"))]
    )
    documents = [d for d in documents if d.text.strip()]
    if not documents:
        raise TaskError(f"{path} holds no text", hint="Give a text file, or JSONL with 'text'.")
    return documents


def _jsonl_documents(path: Path, content: str) -> list[Document]:
    from evalq.tasks import item_text

    documents = []
    # JSON allows other line ends within a text, U+2028 among them.
    for number, line in enumerate(content.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise TaskError(f"{path}, line {number}: no JSON ({error})") from None
        text = None
        if isinstance(row, dict):
            text = row["text"] if "text" in row else item_text(row)
        if not isinstance(text, str):
            raise TaskError(
                f"{path}, line {number}: no text in it",
                hint="A line needs 'text', or 'prompt' with 'target' or with 'choices' and "
                "'answer'.",
            )
        name = str(row.get("document", f"{path.name}:{number}"))
        documents.append(Document(text, name, str(row.get("slice", "prose"))))
    return documents


def named_text(plan: TextPlan) -> TextSource:
    """A text of the user's, under its own name and in the slice of its language.

    Slices that a JSONL file names stay, below that of the language.

    Raises:
        TaskError: no such file, or no text in it.
    """
    slice_ = f"prose/{plan.language}" if plan.language else "prose"
    documents = tuple(
        replace(d, slice=slice_ if d.slice == "prose" else f"{slice_}/{d.slice}")
        for d in read_documents(Path(plan.file))
    )
    return TextSource(plan.label, documents)


def task_text(tasks: Sequence[BuiltTask]) -> TextSource:
    """What a run evaluates, as text: every item's prompt with its target, in the item's slice.

    Items of one cluster are one document to the intervals, as they are to those of the scores.
    """
    documents = [
        Document(f"{item.prompt}{task.delimiter}{item.target}", item.cluster, item.slice)
        for task in tasks
        for item in task.items
    ]
    return TextSource(TASK_TEXT, tuple(documents))


def _python_reference(purpose: Purpose) -> TextSource:
    from pydoc_data.topics import topics

    # Two topics of three calibrate: 128 windows of 512 tokens need more than half of the text.
    chosen = [
        Document(text, f"topic:{name}")
        for i, (name, text) in enumerate(sorted(topics.items()))
        if (i % 3 != 2) == (purpose == "calibration")
    ]
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    return TextSource(f"Python {version} language reference", tuple(chosen))


def _builtin(purpose: Purpose) -> TextSource:
    name = "calibration.txt" if purpose == "calibration" else "heldout.jsonl"
    path = Path(str(files("evalq") / "assets" / "builtin" / name))
    return TextSource(f"built-in {path.stem} text", tuple(read_documents(path)))


def _from_suites(names: Sequence[str], data_dir: str) -> Iterable[Document]:
    from evalq.tasks import load_suite, training_documents

    for name in names:
        for task in load_suite(name).tasks:
            for i, found in enumerate(training_documents(task, data_dir)):
                yield Document(found.text, f"{task.task}#{i}", task.slice, found.doc_hash)


def _from_workload(file: str) -> Iterable[Document]:
    from evalq.tasks import workload_texts

    for item in workload_texts(file):
        name = f"{Path(file).name}:{item.item_id}"
        yield Document(item.text, name, f"workload/{item.slice}" if item.slice else "workload")


def resolve_text(source: str, purpose: Purpose, builtin_parent: bool, data_dir: str) -> TextSource:
    """The documents of a source.

    Args:
        source: ``auto``, ``builtin``, a file, ``suite:NAME[,NAME]`` or ``workload:FILE``.
        purpose: the halves of ``auto`` are disjoint by purpose.
        builtin_parent: what ``auto`` means.
        data_dir: where local copies of datasets are.

    Raises:
        TaskError: nothing to read there.
    """
    if source == "builtin" or (source == "auto" and builtin_parent):
        return _builtin(purpose)
    if source == "auto":
        return _python_reference(purpose)
    if source.startswith("suite:"):
        documents = tuple(_from_suites(source.removeprefix("suite:").split(","), data_dir))
        if not documents:
            raise TaskError(
                f"{source} has no training split to read",
                hint="Give a text file instead, or a suite whose tasks have one.",
            )
        return TextSource(source, documents)
    if source.startswith("workload:"):
        return TextSource(source, tuple(_from_workload(source.removeprefix("workload:"))))
    return TextSource(source, tuple(read_documents(Path(source))))
