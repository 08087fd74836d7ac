"""What a run refuses before any work: another's directory, tasks that do not go together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from evalq.errors import PlanError, StoreError
from evalq.plan import Plan
from evalq.store import Journal, RunDirectory

if TYPE_CHECKING:
    from evalq.tasks.bridge import BuiltTask

__all__ = ["check_directory", "check_tasks"]


def check_directory(directory: RunDirectory, plan: Plan) -> None:
    """Refuse a directory that holds something else.

    Raises:
        StoreError: a file, a directory of other things, or another plan's run.
    """
    path = directory.path
    if path.exists() and not path.is_dir():
        raise StoreError(f"{path} is a file", hint="Choose another --out.")
    found = directory.read_info() if path.exists() else None
    if found is None:
        # A run that was killed at its start leaves a lock, the journal's files, half a run.json.
        own = ("run.lock", "journal.sqlite", ".run.json.")
        names = [p.name for p in path.iterdir()] if path.exists() else []
        if not all(name.startswith(own) for name in names):
            raise StoreError(
                f"{path} is not empty and holds no evalq run",
                hint="Choose another --out, or empty it.",
            )
    elif found.get("plan_hash") != plan.hash and _holds_work(directory):
        raise StoreError(
            f"{path} holds another plan's run",
            hint="Choose another --out, or remove the directory to measure this plan there.",
        )


def _holds_work(directory: RunDirectory) -> bool:
    """Whether anything was made or answered there; a run that failed before may be replaced."""
    if any(directory.artifacts.glob("*/*")) or directory.items.exists():
        return True
    if not directory.journal.exists():
        return False
    with Journal(directory.journal) as journal:
        return len(journal) > 0


def check_tasks(tasks: Sequence[BuiltTask], adaptive: bool) -> None:
    """One task in two suites would count its items twice, or under two slices; an adaptive slice
    is one sequence of items that count alike.

    Raises:
        PlanError: names the task, or the slice.
    """
    suites: dict[str, str] = {}
    weights: dict[str, float] = {}
    for task in tasks if adaptive else ():
        if weights.setdefault(task.slice, task.weight) != task.weight:
            raise PlanError(
                f"the tasks of slice {task.slice!r} have weights that differ, and the run is "
                "adaptive",
                hint="Give them slices of their own, or one weight.",
            )
    for task in tasks:
        other = suites.setdefault(task.name, task.suite)
        if other != task.suite:
            raise PlanError(
                f"task {task.name} is in two suites of this run: {other} and {task.suite}",
                hint="Select tasks with SUITE:PATTERN so that each is asked once.",
            )
