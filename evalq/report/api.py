"""A stored run for notebooks and scripts: pandas frames and figures, without a model."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from evalq.compare import Comparison, Run, compare, load_run
from evalq.report.figures import Figure, draw
from evalq.report.flips import flips_of, with_texts
from evalq.report.frames import ReportData, collect
from evalq.report.summary import summary
from evalq.report.tables import tables
from evalq.report.words import headline

__all__ = ["OpenRun", "open_run"]


@dataclass(frozen=True)
class OpenRun:
    """An opened run; everything is computed when it is first asked for.

    Args:
        run: the run as stored.
    """

    run: Run

    @cached_property
    def data(self) -> ReportData:
        """What the report is made of."""
        return collect(self.run)

    @cached_property
    def frames(self) -> dict[str, pd.DataFrame]:
        """The tables of the report by name: ``variants``, ``slices``, ``frontier``, …"""
        return tables(self.data)

    @property
    def verdict(self) -> str:
        """The verdict in one sentence."""
        return headline(self.data)

    @property
    def summary(self) -> dict[str, Any]:
        """What ``summary.json`` holds."""
        return summary(self.data)

    def compare(self, variant: str, baseline: str = "parent") -> Comparison:
        """Two variants item by item.

        Raises:
            ComparisonError: no such variant, or other items.
        """
        return compare(self.run, variant, baseline)

    def flips(self, variant: str, baseline: str = "parent") -> pd.DataFrame:
        """The items that changed, with prompts and both answers, worst slices first.

        Raises:
            ComparisonError: no such variant, or other items.
        """
        found = self.compare(variant, baseline)
        return with_texts(self.run, flips_of({found.variant: found}, ""))

    def figure(self, name: Figure, style: str = "paper") -> Any:
        """A matplotlib figure: ``frontier``, ``heatmap``, ``cliff`` or ``fidelity``; ``None``
        where the run has no data for it.

        Args:
            name: of the figure.
            style: ``paper``, ``slide`` or ``dark``.

        Raises:
            PlanError: no figure or style of that name.
        """
        return draw(self.data, name, style)


def open_run(path: str | Path) -> OpenRun:
    """Open a run directory.

    Raises:
        StoreError: no run directory, of a newer format version, or a broken table.
    """
    return OpenRun(load_run(Path(path)))
