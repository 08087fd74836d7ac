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
    the middle) takes no part in the estimate of what is left. A share that goes back begins another
    stage (distillation after the layers); one with no layer's name is called by it.
    """
    done = -1

    def tell(layer: str, share: float) -> None:
        nonlocal done
        now = round(1000 * share)
        if done < 0 or now < done:
            done = min(now, 999)
            named = "." in layer
            progress.start(stage if named else f"{stage}, {layer}", 1000 - done, "per mille")
        progress.advance(max(0, now - done), layer)
        done = max(done, now)

    return tell
