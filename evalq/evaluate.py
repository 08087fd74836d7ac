"""The verb evaluate: ask a model the requests of all tasks, and score what it answers.

Answers go to the journal batch by batch, as they come. Which requests share a batch depends on the
requests alone, and a batch is run whole or not at all: so a run that was killed and resumed gives
the very numbers of an unbroken one. Of an endpoint, each answer is stored by itself.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from evalq.errors import TaskError
from evalq.models.base import StreamingEngine
from evalq.progress import NullProgress, Progress
from evalq.schema import ItemRecord, Request, Response
from evalq.store import Journal, journal_key
from evalq.tasks.scoring import FAULT

if TYPE_CHECKING:
    from evalq.models.base import Engine
    from evalq.tasks.bridge import BuiltTask

__all__ = [
    "answer_all",
    "check_supported",
    "evaluate",
    "fault_warnings",
    "refuse_unscorable",
    "request_keys",
    "score",
    "stored_answers",
]


def check_supported(engine: Engine, tasks: Sequence[BuiltTask], who: str) -> None:
    """Refuse, before the first request, tasks that the engine cannot answer.

    Raises:
        TaskError: names the task and the kind of request.
    """
    for task in tasks:
        for kind in sorted({r.kind for r in task.requests}):
            if not engine.supports(kind):
                raise TaskError(
                    f"task {task.name} asks for {kind}, which {who} cannot answer",
                    hint="Leave the task out, or choose an engine that serves log-probabilities.",
                )
        if isinstance(engine, StreamingEngine):
            why = next(filter(None, map(engine.refuses, task.requests)), "")
            if why:
                raise TaskError(
                    f"task {task.name} cannot be answered by {who}: {why}",
                    hint="Leave the task out, or use a completions endpoint.",
                )


def request_keys(requests: Sequence[Request], engine: Engine, model_hash: str) -> list[str]:
    """The journal's keys of a run's requests; equal ones are told apart by their order."""
    occurrences: Counter[str] = Counter()
    keys = []
    for request in requests:
        keys.append(journal_key(model_hash, request, engine.settings, occurrences[request.hash]))
        occurrences[request.hash] += 1
    return keys


def stored_answers(
    engine: Engine, model_hash: str, requests: Sequence[Request], journal: Journal
) -> list[Response] | None:
    """The answers of the journal, or ``None`` unless all of them are there."""
    keys = request_keys(requests, engine, model_hash)
    found = journal.get(keys)
    return [found[k] for k in keys] if len(found) == len(set(keys)) else None


def answer_all(
    engine: Engine,
    model_hash: str,
    requests: Sequence[Request],
    journal: Journal,
    progress: Progress | None = None,
    label: str = "",
    keys: Sequence[str] | None = None,
) -> list[Response]:
    """Answers to all requests, in their order; those in the journal are not asked again.

    An engine whose answers stand alone is asked only what is missing, and each answer is stored as
    it arrives; of the others a batch with a missing answer is run again whole.

    Args:
        engine: what answers.
        model_hash: content hash of the weights that answer.
        requests: what is asked.
        journal: where answers are kept.
        progress: told of what is answered.
        label: for it.
        keys: of the requests in the journal, where they are a part of more (``request_keys``).
    """
    progress = progress or NullProgress()
    keys = request_keys(requests, engine, model_hash) if keys is None else keys
    found = journal.get(keys)
    progress.start(f"evaluate {label}".strip(), len(requests), "requests")
    asked, tokens, began = 0, 0, time.perf_counter()
    for batch in engine.plan(requests):
        missing = [i for i in batch if keys[i] not in found]
        for indices, answers in _asked(engine, requests, batch, missing):
            answered = [keys[i] for i in indices]
            journal.put(zip(answered, answers, strict=True))
            found.update(zip(answered, answers, strict=True))
            tokens += sum(a.tokens_in + a.tokens_out for a in answers)
            asked += len(indices)
            seconds = max(time.perf_counter() - began, 1e-9)
            rates = f"{asked / seconds:,.1f} requests/s, {tokens / seconds:,.0f} tokens/s"
            progress.advance(len(indices), rates)
        stored = len(batch) - len(missing) if isinstance(engine, StreamingEngine) else 0
        if not missing or stored:
            progress.advance(stored or len(batch), "from the journal")
    return [found[k] for k in keys]


def _asked(
    engine: Engine, requests: Sequence[Request], batch: Sequence[int], missing: Sequence[int]
) -> Iterator[tuple[Sequence[int], Sequence[Response]]]:
    """What has to be asked of a batch, in the portions that are stored at once."""
    if not missing:
        return
    if isinstance(engine, StreamingEngine):
        for at, answer in engine.stream([requests[i] for i in missing]):
            yield [missing[at]], [answer]
    else:
        yield batch, engine.answer([requests[i] for i in batch])


def evaluate(
    engine: Engine,
    variant: str,
    model_hash: str,
    tasks: Sequence[BuiltTask],
    journal: Journal,
    progress: Progress | None = None,
) -> list[ItemRecord]:
    """The item records of one variant on all tasks.

    Args:
        engine: what answers.
        variant: label for the records.
        model_hash: content hash of the weights that answer.
        tasks: built once for all variants of a run.
        journal: where answers are kept.
        progress: told of what is answered.

    Raises:
        TaskError: a task that the engine cannot answer.
    """
    check_supported(engine, tasks, variant)
    requests = [r for task in tasks for r in task.requests]
    answers = answer_all(engine, model_hash, requests, journal, progress, variant)
    return score(variant, model_hash, tasks, answers)


def score(
    variant: str, model_hash: str, tasks: Sequence[BuiltTask], answers: Sequence[Response]
) -> list[ItemRecord]:
    """Item records by lm-eval's scoring, from the answers to all tasks' requests in order."""
    records: list[ItemRecord] = []
    at = 0
    for task in tasks:
        share = answers[at : at + len(task.requests)]
        at += len(task.requests)
        for item in task.records(share):
            records.append(ItemRecord(variant=variant, variant_hash=model_hash, **asdict(item)))
    return records


def _faults(records: Iterable[ItemRecord]) -> dict[tuple[str, str], list[str]]:
    """Why answers could not be scored, by variant and task."""
    found: dict[tuple[str, str], list[str]] = {}
    for record in records:
        if f'"{FAULT}"' in record.metrics:
            fault = json.loads(record.metrics).get(FAULT)
            if fault is not None:
                found.setdefault((record.variant, record.task), []).append(str(fault))
    return found


def refuse_unscorable(records: Sequence[ItemRecord]) -> None:
    """Refuse the parent's records where scoring fails on most of a task: then the scorer is broken.

    Every variant would score 0 as the parent does, and would pass.

    Raises:
        TaskError: names the task and the first fault.
    """
    totals = Counter(record.task for record in records)
    for (_, task), faults in _faults(records).items():
        if 2 * len(faults) > totals[task]:
            raise TaskError(
                f"task {task}: {len(faults)} of {totals[task]} answers of the parent cannot be "
                f"scored: {faults[0]}",
                hint="Mend the scorer: all variants would score 0 alike, and none would differ.",
            )


def fault_warnings(records: Iterable[ItemRecord]) -> list[str]:
    """One warning a variant and task some of whose answers could not be scored."""
    return [
        f"{variant}: {len(faults)} answers to {task} could not be scored and count as wrong "
        f"(first: {faults[0]})"
        for (variant, task), faults in sorted(_faults(records).items())
    ]
