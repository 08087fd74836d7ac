"""What of a run would execute code that neither evalq nor lm-eval ships, found without running it.

Three things do: a task file of the user's with a ``!function``, a workload with a scoring function,
and items scored by unit tests of what a model wrote. Each is refused unless the user allows it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from evalq.tasks.index import refuse_code, task_code
from evalq.tasks.suites import Suite, load_suite
from evalq.tasks.workload_files import is_task_file, read_workload, split_scorer

__all__ = ["check_consent", "code_in_workload"]


def code_in_workload(file: str | Path) -> str:
    """Why a workload needs the user's consent, as the end of a sentence; "" where it does not.

    Raises:
        PlanError, TaskError: a file that cannot be read.
    """
    path, scorer = split_scorer(file)
    if is_task_file(path):
        found = task_code(path)
        return f"is a task file that runs Python ({found})" if found else ""
    source = read_workload(path)
    if source.function:
        return f"is scored by the Python function {source.function}"
    default = scorer or source.scorer
    for place, row in source.rows:
        if row.get("scorer", default) == "code" and "choices" not in row:
            return f"is scored by running what the model writes ({place})"
    return ""


def check_consent(
    suites: Sequence[str | Suite], workloads: Sequence[str | Path], allowed: bool
) -> None:
    """Refuse, before any work, a run that would execute code without consent.

    Raises:
        PlanError: names the file and what would run; or a suite or workload that cannot be read.
        TaskError: a task file or a workload that cannot be read.
    """
    if allowed:
        return
    for selection in suites:
        suite = selection if isinstance(selection, Suite) else load_suite(selection)
        for entry in suite.tasks:
            found = task_code(Path(entry.file)) if entry.file else ""
            if found:
                raise refuse_code(f"task {entry.task!r} of suite {suite.name!r}", f"runs {found}")
    for workload in workloads:
        why = code_in_workload(workload)
        if why:
            raise refuse_code(f"workload {workload}", why)
