"""Text of a task that is not evaluated: its training split, for calibration."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evalq.errors import TaskError
from evalq.tasks.bridge import BuiltTask
from evalq.tasks.load import compiled_templates, load_task, quiet
from evalq.tasks.suites import SuiteTask

__all__ = ["TrainingDocument", "evaluated_hashes", "training_documents", "training_text"]


@dataclass(frozen=True, slots=True)
class TrainingDocument:
    """A document that a task gives away: prompt and answer as one text.

    Args:
        text: as it would stand among the examples of a few-shot prompt.
        doc_hash: lm-eval's hash of it, to be held against ``evaluated_hashes``.
    """

    text: str
    doc_hash: str


def training_text(task: SuiteTask | BuiltTask, data_dir: str | Path = "") -> Iterator[str]:
    """The texts of ``training_documents``."""
    return (document.text for document in training_documents(task, data_dir))


def training_documents(
    task: SuiteTask | BuiltTask, data_dir: str | Path = ""
) -> Iterator[TrainingDocument]:
    """What a task has besides its evaluated documents, in the order of its data.

    That is the training split, else the worked examples that the task carries, else the validation
    split of a task that is evaluated on its test split. A task with none of them gives nothing:
    evaluated documents are never calibration text.

    Args:
        task: an entry of a suite, or a task that is built already.
        data_dir: folder of local copies of datasets, for an entry of a suite.

    Raises:
        TaskError: the task cannot be loaded, or its templates fail on a document.
    """
    if isinstance(task, BuiltTask):
        name, loaded = task.name, task.task
    else:
        name = task.task
        loaded = load_task(task, Path(data_dir) if str(data_dir) else None).task
    for doc in _documents(loaded):
        try:
            with quiet(), compiled_templates():
                document = TrainingDocument(_text(loaded, doc), _hash(doc))
        except Exception as error:  # templates and task code raise anything
            raise TaskError(f"task {name!r}: a training document fails: {error!r}") from error
        if document.text.strip():
            yield document


def evaluated_hashes(tasks: Iterable[BuiltTask]) -> frozenset[str]:
    """Hashes of all documents that are evaluated."""
    return frozenset(h for task in tasks for h in task.doc_hashes)


def _documents(task: Any) -> Iterable[Any]:
    docs = task.training_docs() if task.has_training_docs() else None
    if docs is not None and len(docs):
        return list(docs)
    settings = getattr(task, "fewshot_cfg", None)
    samples = getattr(settings, "samples", None)
    if samples is not None:
        return list(samples() if callable(samples) else samples)
    if task.has_test_docs() and task.has_validation_docs():
        return list(task.validation_docs())
    return []


def _text(task: Any, doc: Any) -> str:
    """The document as lm-eval writes an example of a few-shot prompt."""
    settings = getattr(task, "fewshot_cfg", None)
    if settings is None:  # a task in Python, with methods only
        return str(task.doc_to_text(doc)) + str(task.doc_to_target(doc))
    question = task.doc_to_text(doc, settings.doc_to_text)
    choices = None
    if settings.doc_to_choice is not None:
        choices = task.doc_to_choice(doc, settings.doc_to_choice)
    answer = task.doc_to_target(doc, settings.doc_to_target)
    if getattr(task, "multiple_input", 0) and choices is not None:
        question, choices = choices[question], None
    turn = task.build_qa_turn(
        q=question,
        c=choices,
        a=answer,
        gen_prefix=task.resolve_field(doc, settings.gen_prefix),
        tgt_delim=settings.target_delimiter,
        few_delim="",
    )
    return "".join(str(message.to_text()) for message in turn)


def _hash(doc: Any) -> str:
    from lm_eval.utils import handle_non_serializable, hash_string

    text = json.dumps(doc, indent=2, default=handle_non_serializable, ensure_ascii=False)
    return str(hash_string(text))
