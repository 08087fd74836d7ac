"""Comparisons of runs that stopped slices early: intervals that hold at any stopping time.

A slice above several others is their mean weighted by the items that each has, asked or not: a
slice that stopped early counts for no less.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from evalq import stats
from evalq.compare.runs import Run
from evalq.errors import ComparisonError

__all__ = ["METHOD", "Strata", "stops_of"]

METHOD = "anytime-valid betting interval"


def stops_of(run: Run, *labels: str) -> Mapping[str, Any] | None:
    """Where the slices of the first label that was asked adaptively stopped, by slice.

    ``None`` where none of them was.
    """
    variants = (run.info.get("adaptive") or {}).get("variants") or {}
    for label in labels:
        if label in variants:
            found: Mapping[str, Any] = variants[label]
            return found
    return None


class Strata:
    """The most specific slices of an adaptive comparison, each with its units.

    Args:
        frame: the scored items that were asked of both, as ``Pairs.scored``.
        stops: where each slice stopped.
        weights: of the slices in what is above them; by default the items that each has.

    Raises:
        ComparisonError: records that do not fit what run.json says.
    """

    def __init__(
        self,
        frame: pd.DataFrame,
        stops: Mapping[str, Any],
        weights: Mapping[str, float] | None = None,
    ) -> None:
        self._stops = stops
        self._frames: dict[str, pd.DataFrame] = {}
        names = frame["slice"].astype(str).to_numpy()
        for name in stops:
            self._frames[name] = frame[names == name]
        missing = set(names) - set(stops)
        if missing:
            raise ComparisonError(f"run.json does not say where slice {min(missing)!r} stopped")
        self._weights = weights or {n: float(s["planned"]) for n, s in stops.items()}
        self._evidence = {n: self._units(f) for n, f in self._frames.items()}
        shared = frame.groupby("cluster")["slice"].nunique() if len(frame) else pd.Series([1])
        self._independent = bool((shared <= 1).all())

    @staticmethod
    def _units(frame: pd.DataFrame) -> stats.Evidence:
        difference = (frame["variant_score"] - frame["baseline_score"]).to_numpy(dtype=float)
        return stats.evidence(difference, frame["cluster"].to_numpy())

    def within(self, name: str | None) -> list[str]:
        """The most specific slices in a slice, or all."""
        return [n for n in self._stops if name is None or n == name or n.startswith(name + "/")]

    def planned(self, names: Sequence[str]) -> int:
        """Items that slices have, asked or not."""
        return sum(int(self._stops[n]["planned"]) for n in names)

    def decision(self, name: str) -> str:
        """What a most specific slice stopped on, or empty."""
        return str(self._stops[name]["decision"]) if name in self._stops else ""

    def result(self, names: Sequence[str], confidence: float) -> stats.AnytimeResult:
        """The weighted mean difference over slices.

        Raises:
            StatisticsError: nothing was asked.
        """
        return stats.pooled_anytime(
            [self._evidence[n] for n in names],
            self._shares(names),
            confidence,
            self._independent,
        )

    def baseline(self, names: Sequence[str]) -> float:
        """The baseline's accuracy on the units that were asked, weighted alike."""
        means = [
            f.groupby("cluster")["baseline_score"].mean().mean() if len(f) else 0.0
            for f in (self._frames[n] for n in names)
        ]
        return float(self._shares(names) @ np.array(means) / self._shares(names).sum())

    def draws(self, rng: np.random.Generator, count: int) -> npt.NDArray[np.float64]:
        """Plausible overall mean differences, ``[count]``: normal about what was seen.

        The variance of a slice counts one more unit, changed, so that one that stopped without a
        flip is not taken for certain.
        """
        names = self.within(None)
        share = self._shares(names) / self._shares(names).sum()
        out = np.zeros(count)
        for name, weight in zip(names, share, strict=True):
            found = self._evidence[name]
            spread = float(found.counts @ (found.values - found.mean) ** 2) + 1.0
            error = (spread / (found.units + 1) / max(found.units, 1)) ** 0.5
            out += weight * rng.normal(found.mean, error, count)
        return out

    def _shares(self, names: Sequence[str]) -> npt.NDArray[np.float64]:
        return np.array([self._weights[n] for n in names])
