"""How fast the models of a run are asked, and what the others will take."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

__all__ = ["Pace"]


def _spoken(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


@dataclass(slots=True)
class Pace:
    """Counts models as they are asked.

    Args:
        total: models that will be asked, the parent and the negative control among them.
        began: of the first, on the clock of ``time.perf_counter``.
    """

    total: int
    began: float = field(default_factory=time.perf_counter)
    asked: int = 0

    def told(self, label: str, items: int, seconds: float) -> str:
        """A line on a model that was asked ``items`` in ``seconds``.

        What is left is taken to need as long as what is done, fidelity and loading included; what
        came from the journal makes it too short.
        """
        self.asked += 1
        rate = f"{items / seconds:,.1f} items/s" if seconds > 0 else "from the journal"
        line = (
            f"{label}: {items:,} items in {_spoken(seconds)} ({rate}); {self.asked} of {self.total}"
        )
        left = self.total - self.asked
        if not left:
            return line + " models asked"
        need = (time.perf_counter() - self.began) / self.asked * left
        return line + f" models asked, about {_spoken(need)} for the others"
