"""How long work tells what it does: verbs speak to a ``Progress``, the command line draws it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

__all__ = ["NullProgress", "Progress", "layer_steps"]


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


def layer_steps(progress: Progress, stage: str) -> Callable[[str, float], None]:
    """What a quantizer is given to call with ``(layer, share done)``: steps of one stage.

    The stage begins with the first call, so that what was done before it (a resumed job starts in
    the middle) takes no part in the estimate of what is left.
    """
    first = -1
    done = 0

    def tell(layer: str, share: float) -> None:
        nonlocal first, done
        now = round(1000 * share)
        if first < 0:
            first = done = min(now, 999)
            progress.start(stage, 1000 - first, "per mille of the layers")
        progress.advance(max(0, now - done), layer)
        done = max(done, now)

    return tell
