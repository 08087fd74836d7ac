"""Adaptive runs: a slice is asked no further once its comparison with the parent is decided.

The units of a slice (its clusters; items where nothing is shared) come in a seeded order, in rounds
that grow. After each round the interval of ``stats.anytime`` is taken: it holds at whatever round
one stops, so looking after each costs no error. Rounds depend on the seed and on answers alone, so
a run that was killed asks the same rounds again and decides the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from evalq import stats
from evalq.errors import PlanError
from evalq.evaluate import answer_all, check_supported, request_keys, score
from evalq.progress import NullProgress, Progress
from evalq.schema import ItemRecord, Response
from evalq.store import Journal

if TYPE_CHECKING:
    from evalq.models.base import Engine
    from evalq.tasks.bridge import BuiltTask

__all__ = ["Rule", "SliceStop", "Watch", "evaluate_adaptively", "next_round", "watched"]

Decision = Literal["pass", "fail", ""]
FIRST_ROUND = 24
"""Units of a slice that are asked before the first look."""
GROWTH = 0.25
"""A later round asks so large a part of what was asked before: few looks, little overshoot."""


@dataclass(frozen=True, slots=True)
class Rule:
    """What decides.

    Args:
        margin: of a slice, in accuracy (0 to 1).
        confidence: of the two-sided interval.
        seed: of the order.
    """

    margin: Callable[[str], float]
    confidence: float
    seed: int


@dataclass(frozen=True, slots=True)
class SliceStop:
    """Where a slice stopped.

    Args:
        planned, used: items.
        planned_units, used_units: clusters (items where nothing is shared).
        margin: in accuracy.
        decision: ``pass``, ``fail``, or empty where all items were asked and nothing is decided.
    """

    planned: int
    used: int
    planned_units: int
    used_units: int
    margin: float
    decision: Decision


def next_round(used: int, total: int) -> int:
    """Units that the next round asks of a slice."""
    return min(total - used, max(FIRST_ROUND, round(GROWTH * used)))


@dataclass(slots=True)
class Watch:
    """One slice while it is asked.

    Args:
        order: its units, each a list of whatever stands for its items, in the order they are asked.
        margin, confidence: of the decision.
    """

    order: list[list[Any]]
    margin: float
    confidence: float
    used: int = 0
    decision: Decision = ""

    @property
    def open(self) -> bool:
        """Whether there is something left to ask."""
        return not self.decision and self.used < len(self.order)

    def take(self) -> list[list[Any]]:
        """The units of the next round."""
        size = next_round(self.used, len(self.order))
        taken = self.order[self.used : self.used + size]
        self.used += size
        return taken

    def look(self, differences: Sequence[float], clusters: Sequence[Any] | None = None) -> None:
        """Decide, if what was asked so far decides it.

        Args:
            differences: variant - parent of every item asked so far.
            clusters: of each.
        """
        found = stats.evidence(differences, clusters)
        self.decision = stats.decided(found, self.margin, self.confidence)


def _rank(seed: int, slice_: str, cluster: str) -> bytes:
    """A place in the order that depends neither on other slices nor on how many items there are."""
    return hashlib.sha256(f"{seed}\0{slice_}\0{cluster}".encode()).digest()


Place = tuple[int, int]
"""Index of a task and of an item in it."""


def watched(
    tasks: Sequence[BuiltTask], parent: Mapping[Place, float], rule: Rule
) -> dict[str, Watch]:
    """A watch for each slice that has scored items.

    Args:
        tasks: of the run.
        parent: the parent's scores; items without one (perplexity tasks) are not watched.
        rule: what decides.
    """
    units: dict[str, dict[str, list[Place]]] = {}
    for place in parent:
        item = tasks[place[0]].items[place[1]]
        units.setdefault(item.slice, {}).setdefault(item.cluster, []).append(place)
    return {
        name: Watch(
            [found[c] for c in sorted(found, key=lambda c: _rank(rule.seed, name, c))],
            rule.margin(name),
            rule.confidence,
        )
        for name, found in sorted(units.items())
    }


def evaluate_adaptively(
    engine: Engine,
    variant: str,
    model_hash: str,
    tasks: Sequence[BuiltTask],
    journal: Journal,
    parent: Sequence[ItemRecord],
    rule: Rule,
    progress: Progress | None = None,
) -> tuple[list[ItemRecord], dict[str, dict[str, Any]]]:
    """Ask a variant until every slice is decided.

    Args:
        engine, variant, model_hash, tasks, journal, progress: as ``evaluate``.
        parent: the parent's records of all items, in the tasks' order.
        rule: what decides.

    Returns:
        The records of the items that were asked, in the tasks' order, and for each slice where it
        stopped (``SliceStop`` as a mapping). Perplexity tasks are asked whole.

    Raises:
        TaskError: a task that the engine cannot answer.
    """
    progress = progress or NullProgress()
    check_supported(engine, tasks, variant)
    places = [(t, i) for t, task in enumerate(tasks) for i in range(len(task.items))]
    if len(places) != len(parent):
        raise PlanError("an adaptive run needs the parent's records of every item")
    base = {p: r.score for p, r in zip(places, parent, strict=True) if r.score is not None}
    watches = watched(tasks, base, rule)
    asker = _Asker(engine, variant, model_hash, tasks, journal, progress)
    asker.ask([p for p in places if p not in base])
    number = 0
    while any(w.open for w in watches.values()):
        number += 1
        taken = [p for w in watches.values() if w.open for unit in w.take() for p in unit]
        asker.ask(taken, f"round {number}")
        for watch in watches.values():
            if watch.decision or not watch.used:
                continue
            asked = [(p, u) for u, unit in enumerate(watch.order[: watch.used]) for p in unit]
            scores = asker.scores
            watch.look([scores[p] - base[p] for p, _ in asked], [u for _, u in asked])
    stops = {name: asdict(_stop(watch)) for name, watch in watches.items()}
    used, planned = (sum(s[k] for s in stops.values()) for k in ("used", "planned"))
    progress.note(f"{variant}: {used:,} of {planned:,} items asked, the rest were not needed")
    return asker.records(), stops


def _stop(watch: Watch) -> SliceStop:
    return SliceStop(
        planned=sum(map(len, watch.order)),
        used=sum(map(len, watch.order[: watch.used])),
        planned_units=len(watch.order),
        used_units=watch.used,
        margin=watch.margin,
        decision=watch.decision,
    )


class _Asker:
    """Asks some items of a run at a time, and keeps what they answered."""

    def __init__(
        self,
        engine: Engine,
        variant: str,
        model_hash: str,
        tasks: Sequence[BuiltTask],
        journal: Journal,
        progress: Progress,
    ) -> None:
        self._engine, self._variant, self._hash = engine, variant, model_hash
        self._tasks, self._journal, self._progress = tasks, journal, progress
        self._found: dict[Place, ItemRecord] = {}
        # Equal requests are told apart by their order in the whole run, asked or not.
        requests = [r for task in tasks for r in task.requests]
        self._keys = request_keys(requests, engine, model_hash)
        self._starts = [0]
        for task in tasks:
            self._starts.append(self._starts[-1] + len(task.requests))

    @property
    def scores(self) -> dict[Place, float]:
        """Of the items asked so far that have one."""
        return {p: r.score for p, r in self._found.items() if r.score is not None}

    def ask(self, places: Sequence[Place], what: str = "") -> None:
        """Ask items and score them."""
        wanted: dict[int, list[int]] = {}
        for task, item in sorted(places):
            wanted.setdefault(task, []).append(item)
        parts = {t: self._tasks[t].subset(items) for t, items in wanted.items()}
        keys = [self._keys[self._starts[t] + k] for t, (_, at) in parts.items() for k in at]
        if not keys:
            return
        answers: list[Response] = answer_all(
            self._engine,
            self._hash,
            [r for part, _ in parts.values() for r in part.requests],
            self._journal,
            self._progress,
            f"{self._variant} {what}".strip(),
            keys,
        )
        records = score(self._variant, self._hash, [part for part, _ in parts.values()], answers)
        asked = [(t, i) for t, items in wanted.items() for i in items]
        self._found.update(zip(asked, records, strict=True))

    def records(self) -> list[ItemRecord]:
        """Of all items asked, in the tasks' order."""
        return [self._found[place] for place in sorted(self._found)]
