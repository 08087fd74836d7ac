"""Scorers that run code: unit tests of a generated program, and a user's own function.

Neither runs unless the user says so (``--allow-code``).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from evalq.errors import PlanError, TaskError
from evalq.tasks.sandbox import Outcome, run_tests
from evalq.tasks.worker import ScoringError, Worker

__all__ = ["CODE_SECONDS", "FUNCTION_SECONDS", "Code", "Function", "code_of", "without_fence"]

CODE_SECONDS = 10.0
"""Time limit of a program unless an item says otherwise."""
FUNCTION_SECONDS = 60.0
"""Time limit of a user's function over one answer."""

_FENCED = re.compile(r"\s*```[\w+-]*[ \t]*\n(.*?)\n?```\s*", re.DOTALL)
_BLOCK = re.compile(r"^```[\w+-]*[ \t]*\n(.*?)(?:^```|\Z)", re.DOTALL | re.MULTILINE)


def without_fence(answer: str) -> str:
    """An answer without the one code fence around all of it."""
    fenced = _FENCED.fullmatch(answer)
    return fenced[1] if fenced else answer.strip()


def code_of(answer: str) -> str:
    """The program in an answer: its first code block, or else all of it.

    >>> code_of("Here:\\n```python\\nx = 1\\n```\\nDone.")
    'x = 1\\n'
    """
    found = _BLOCK.search(answer)
    return found[1] if found else answer


@dataclass(frozen=True)
class Code:
    """The answer is Python, and the target, unit tests in Python, runs behind it without an error.

    Its first code block counts, or else all of it, behind the item's ``before`` where it has one.
    Runs in a sandbox, and only with --allow-code.
    """

    metric: str = "tests_passed"
    _known: dict[str, Outcome] = field(default_factory=dict, repr=False, compare=False)

    def check(self, item: Mapping[str, Any]) -> None:
        """Every target compiles and tests something."""
        for target in item["targets"]:
            try:
                compile(str(target), "tests.py", "exec")
            except (SyntaxError, ValueError) as error:
                raise TaskError(f"'target' is no Python: {error}") from None
            if not str(target).strip():
                raise TaskError("an empty 'target' tests nothing: every program would pass")

    def correct(self, answer: str, item: Mapping[str, Any]) -> bool:
        """Passes one of the targets."""
        return any(outcome.passed for outcome in self._outcomes(answer, item))

    def why(self, answer: str, item: Mapping[str, Any]) -> str:
        """Why it did not pass, in a line; "" if it did."""
        outcomes = self._outcomes(answer, item)
        return "" if any(o.passed for o in outcomes) else outcomes[0].fault

    def _outcomes(self, answer: str, item: Mapping[str, Any]) -> list[Outcome]:
        """One a target; the same program is run once, whichever variant wrote it."""
        before = str(item.get("before") or "")
        program = before + (answer if before and "```" not in answer else code_of(answer))
        seconds = float(item.get("time_limit") or CODE_SECONDS)
        out = []
        for target in item["targets"]:
            key = hashlib.sha256(repr((program, str(target), seconds)).encode()).hexdigest()
            if key not in self._known:
                self._known[key] = run_tests(program, str(target), seconds)
            out.append(self._known[key])
        return out


@dataclass(frozen=True)
class Function:
    """A user's ``function(answer, item)``, run in a process of its own.

    Args:
        file: the Python file.
        name: of the function in it. ``item`` is a dict of ``id``, ``prompt``, ``messages``,
            ``targets``, ``slice`` and ``cluster``; it returns a bool or a score from 0 to 1.
    """

    file: Path
    name: str
    metric: str = "score"
    _worker: Worker = field(default_factory=Worker, repr=False, compare=False)

    @classmethod
    def parse(cls, text: str, folder: Path) -> Function:
        """Of ``path/file.py:name``, the path relative to ``folder``.

        Raises:
            PlanError: not of that form, or no such file.
        """
        file, _, name = text.rpartition(":")
        if not file or not name.isidentifier():
            raise PlanError(
                f"function {text!r} is not of the form FILE.py:NAME",
                hint="Write function: score.py:my_score, relative to the workload's YAML.",
            )
        path = (folder / file).resolve()
        if not path.is_file():
            raise PlanError(f"function {text!r}: there is no file {path}")
        return cls(path, name)

    def load(self) -> None:
        """Import the file now, so that a fault in it costs no run.

        Raises:
            TaskError: it cannot be imported or has no such function.
        """
        try:
            self._ask("load", {})
        except ScoringError as fault:
            raise TaskError(f"{self.file}: {fault}") from None

    @property
    def hash(self) -> str:
        """Of the file's content: another function gives other scores."""
        return hashlib.sha256(self.file.read_bytes()).hexdigest()

    def check(self, item: Mapping[str, Any]) -> None:
        """Any target will do, and none."""

    def correct(self, answer: str, item: Mapping[str, Any]) -> float:
        """What the function returns."""
        keys = ("id", "prompt", "messages", "targets", "tolerance", "slice", "cluster")
        shown = {key: item[key] for key in keys}
        return float(self._ask("function", {"answer": answer, "item": shown}))

    def _ask(self, kind: str, more: dict[str, Any]) -> Any:
        request = {"kind": kind, "file": str(self.file), "name": self.name, **more}
        return self._worker.ask(request, FUNCTION_SECONDS)
