"""How long work tells what it does: verbs speak to a ``Progress``, the command line draws it."""

from __future__ import annotations

from typing import Protocol

__all__ = ["NullProgress", "Progress"]


class Progress(Protocol):
    """Told of stages, steps and notes; it must not slow the work down."""

    def start(self, stage: str, total: int, unit: str) -> None:
        """A stage of ``total`` steps begins; the stage before it is over."""

    def advance(self, steps: int = 1, detail: str = "") -> None:
        """``steps`` more of the stage are done."""

    def note(self, message: str) -> None:
        """Something worth a line of its own."""


class NullProgress:
    """Says nothing."""

    def start(self, stage: str, total: int, unit: str) -> None:
        """Ignore."""

    def advance(self, steps: int = 1, detail: str = "") -> None:
        """Ignore."""

    def note(self, message: str) -> None:
        """Ignore."""
