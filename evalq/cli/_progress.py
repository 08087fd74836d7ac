"""Progress on a terminal, and plain lines where the output is no terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from evalq.progress import NullProgress, Progress

if TYPE_CHECKING:
    from rich.progress import Progress as Bars
    from rich.progress import TaskID

__all__ = ["terminal_progress"]


class _Bars:
    """A bar for the stage under way; finished stages leave a line."""

    def __init__(self, bars: Bars) -> None:
        self._bars = bars
        self._task: TaskID | None = None
        self._stage = ""
        self._began = 0.0

    def _close(self) -> None:
        if self._task is not None:
            self._bars.remove_task(self._task)
            seconds = time.perf_counter() - self._began
            self._bars.console.print(f"  {self._stage} [dim]{seconds:.1f} s[/dim]", highlight=False)
            self._task = None

    def start(self, stage: str, total: int, unit: str) -> None:
        from rich.markup import escape

        self._close()
        self._stage, self._began = escape(stage), time.perf_counter()
        self._task = self._bars.add_task(self._stage, total=total, unit=unit, detail="")

    def advance(self, steps: int = 1, detail: str = "") -> None:
        from rich.markup import escape

        if self._task is not None:
            self._bars.update(self._task, advance=steps, detail=escape(detail))

    def note(self, message: str) -> None:
        from rich.markup import escape

        self._close()
        self._bars.console.print(f"  {escape(message)}", highlight=False)


class _Lines:
    """For logs: a line when a stage ends, and one every half minute within a long stage."""

    def __init__(self) -> None:
        self._stage, self._total, self._done, self._unit = "", 0, 0, ""
        self._began = self._said = 0.0

    def _say(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)  # noqa: T201 - this is what it is for

    def _close(self) -> None:
        if self._stage:
            self._say(f"  {self._stage}: {time.perf_counter() - self._began:.1f} s")
            self._stage = ""

    def start(self, stage: str, total: int, unit: str) -> None:
        self._close()
        self._stage, self._total, self._done, self._unit = stage, total, 0, unit
        self._began = self._said = time.perf_counter()

    def advance(self, steps: int = 1, detail: str = "") -> None:
        self._done += steps
        now = time.perf_counter()
        if now - self._said > 30 and self._done:
            left = (now - self._began) / self._done * max(0, self._total - self._done)
            self._said = now
            self._say(
                f"  {self._stage}: {self._done}/{self._total} {self._unit}, "
                f"about {left:.0f} s left{', ' + detail if detail else ''}"
            )

    def note(self, message: str) -> None:
        self._close()
        self._say(f"  {message}")


@contextmanager
def terminal_progress(quiet: bool = False) -> Iterator[Progress]:
    """What a verb reports to, on standard error."""
    if quiet:
        yield NullProgress()
        return
    if not sys.stderr.isatty():
        lines = _Lines()
        yield lines
        lines._close()
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars
    from rich.table import Column

    # On a narrow terminal the names are cut, and never how much is done and what is left.
    whole = Column(no_wrap=True, min_width=9)
    columns = (
        TextColumn("  {task.description}"),
        BarColumn(bar_width=12),
        MofNCompleteColumn(table_column=whole),
        TextColumn("{task.fields[unit]}", table_column=Column(no_wrap=True)),
        TextColumn("[dim]{task.fields[detail]}", table_column=Column(no_wrap=True)),
        TimeRemainingColumn(table_column=whole),
    )
    with Bars(*columns, console=Console(stderr=True), transient=True) as bars:
        live = _Bars(bars)
        yield live
        live._close()
