"""One variant against its parent: the effect on every slice, with interval, flips and p-values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from evalq import stats
from evalq.compare.adaptive import METHOD, Strata, stops_of
from evalq.compare.pairs import Pairs, pair
from evalq.compare.runs import Run
from evalq.errors import StatisticsError
from evalq.schema import slice_ancestors

__all__ = [
    "OVERALL",
    "Comparison",
    "PerplexityResult",
    "SliceResult",
    "compare",
    "slice_result",
]

OVERALL = "overall"


@dataclass(frozen=True)
class SliceResult:
    """The effect on one slice; accuracies and their difference are in [0, 1].

    Args:
        slice: its name, ``"overall"`` for all items.
        leaf: items name this very slice; it belongs to the Holm family.
        items: that have a score.
        clusters: distinct clusters among them (equal to ``items`` where nothing is shared).
        accuracy, parent_accuracy: mean primary metric of the variant and of the baseline.
        delta: ``accuracy - parent_accuracy``.
        ci: interval of delta; ``None`` where no interval is defined (``warnings`` says why).
        lost, gained: items whose score went down, and up.
        p_worse: one-sided p-value of "the variant is worse"; ``None`` like ``ci``.
        p_holm: ``p_worse`` adjusted over the leaves; ``None`` for other slices.
        p_two_sided_midp: mid-p McNemar; ``None`` where the test is not McNemar's.
        confidence: of ``ci``.
        method: the interval's name.
        warnings: what to keep in mind.
        planned: of an adaptive run: the items that the slice has, of which ``items`` were asked;
            accuracies then weigh its parts by these, a cluster counts as one, and ``ci`` and the
            p-values hold whenever one stops. ``None`` for other runs.
    """

    slice: str
    leaf: bool
    items: int
    clusters: int
    accuracy: float
    parent_accuracy: float
    delta: float
    ci: tuple[float, float] | None
    lost: int
    gained: int
    p_worse: float | None
    p_holm: float | None
    p_two_sided_midp: float | None
    confidence: float
    method: str
    warnings: tuple[str, ...]
    planned: int | None = None

    @property
    def size(self) -> int:
        """Items that the slice has, asked or not: what a least number of items is held against."""
        return self.items if self.planned is None else self.planned

    @property
    def significant(self) -> bool:
        """Whether a loss on this leaf holds after Holm, at half of ``1 - confidence``."""
        return self.p_holm is not None and self.p_holm <= (1 - self.confidence) / 2

    def verdict(self, margin: float) -> stats.Verdict:
        """Pass, fail or inconclusive against ``margin`` (accuracy, positive).

        A slice without an interval is inconclusive.
        """
        if self.ci is None:
            return stats.Verdict("inconclusive", False)
        return stats.verdict(self.ci, self.delta, margin)

    def summary(self) -> dict[str, Any]:
        """The SLICE of ``summary.json``."""
        return {
            "items": self.items,
            "accuracy": self.accuracy,
            "parent_accuracy": self.parent_accuracy,
            "delta": self.delta,
            "ci": None if self.ci is None else list(self.ci),
            "lost": self.lost,
            "gained": self.gained,
            "p_worse": self.p_worse,
            **({} if self.planned is None else {"planned": self.planned}),
        }


@dataclass(frozen=True)
class PerplexityResult:
    """Perplexity of the variant over that of the baseline, on one slice's perplexity tasks.

    Args:
        ratio: exp of the mean difference of negative log-likelihood a unit; above 1 is worse.
        ci: its interval; ``None`` where none is defined.
        items, clusters, units: what it is over.
    """

    slice: str
    items: int
    clusters: int
    units: int
    ratio: float
    ci: tuple[float, float] | None
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class Comparison:
    """A variant against a baseline.

    Args:
        overall: over all scored items, each item alike; ``None`` when there are none.
        slices: by name; every slice that an item belongs to, ancestors too.
        perplexity: by slice name and ``"overall"``; empty without perplexity tasks.
        pairs: the items behind it.
    """

    variant: str
    baseline: str
    confidence: float
    overall: SliceResult | None
    slices: Mapping[str, SliceResult]
    perplexity: Mapping[str, PerplexityResult]
    pairs: Pairs

    @property
    def leaves(self) -> tuple[SliceResult, ...]:
        """The most specific slices."""
        return tuple(s for s in self.slices.values() if s.leaf)

    def worst(self, min_items: int = 1) -> SliceResult | None:
        """The leaf of at least ``min_items`` items that lost most."""
        eligible = [s for s in self.leaves if s.size >= min_items]
        return min(eligible, key=lambda s: (s.delta, s.slice), default=None)


def compare(
    run: Run, variant: str, baseline: str = "parent", confidence: float | None = None
) -> Comparison:
    """Compare two variants of a run item by item, overall and on every slice.

    Args:
        run: an opened run.
        variant, baseline: labels.
        confidence: of two-sided intervals; ``None`` for that of the plan (0.90: one-sided 0.05).

    Raises:
        ComparisonError: as ``pair``.
    """
    level = run.recommend.confidence if confidence is None else confidence
    pairs = pair(run, variant, baseline)
    scored, likely = pairs.scored, pairs.likelihoods
    stops = stops_of(run, pairs.variant, pairs.baseline)
    if stops is None or pairs.variant == pairs.baseline:
        results = {n: slice_result(n, f, leaf, level) for n, f, leaf in _by_slice(scored)}
    else:
        strata = Strata(scored, stops, _stratum_weights(scored, stops))
        results = {n: _adaptive(n, f, leaf, level, strata) for n, f, leaf in _by_slice(scored)}
    overall = results.pop(OVERALL, None)
    return Comparison(
        variant=pairs.variant,
        baseline=pairs.baseline,
        confidence=level,
        overall=overall,
        slices=_with_holm(results),
        perplexity={n: _perplexity(n, f, level) for n, f, _ in _by_slice(likely)},
        pairs=pairs,
    )


def _by_slice(frame: pd.DataFrame) -> list[tuple[str, pd.DataFrame, bool]]:
    """(name, its items, is a leaf), overall first; nothing when there are no items."""
    if frame.empty:
        return []
    column = frame["slice"]
    leaves = [str(name) for name in column.cat.categories[np.unique(column.cat.codes)]]
    codes = column.cat.codes.to_numpy()
    code_of = {str(name): code for code, name in enumerate(column.cat.categories)}
    names = sorted({a for leaf in leaves for a in slice_ancestors(leaf)})
    out = [(OVERALL, frame, False)]
    for name in names:
        inside = [code_of[x] for x in leaves if x == name or x.startswith(name + "/")]
        chosen = np.isin(codes, inside) if len(inside) < len(leaves) else slice(None)
        out.append((name, frame[chosen], name in leaves))
    return out


def slice_result(name: str, frame: pd.DataFrame, leaf: bool, confidence: float) -> SliceResult:
    """The effect on the items of ``frame``, by the test that fits them.

    Args:
        name: of the slice.
        frame: ``variant_score``, ``baseline_score`` (float64) and ``cluster``, a row an item;
            ``weight`` where items do not count alike.
        leaf: as in ``SliceResult``.
        confidence: of the interval.
    """
    ours = frame["variant_score"].to_numpy()
    theirs = frame["baseline_score"].to_numpy()
    difference = ours - theirs
    lost, gained = int((difference < 0).sum()), int((difference > 0).sum())
    cluster = frame["cluster"].to_numpy()
    clusters = len(pd.unique(cluster))
    binary = _binary(ours) and _binary(theirs)
    weight = frame["weight"].to_numpy() if "weight" in frame else np.ones(len(frame))
    if len(frame) and (weight != weight[0]).any():
        return _weighted(name, frame, leaf, confidence)
    result: stats.PairedResult | None = None
    warnings: tuple[str, ...] = ()
    try:
        if binary and clusters == len(frame):
            result = stats.paired_binary(lost, gained, len(frame), confidence)
        elif binary:
            result = stats.paired_clustered(difference, cluster, confidence)
        else:
            shared = cluster if clusters < len(frame) else None
            result = stats.paired_mean(difference, shared, confidence)
        warnings = tuple(result.warnings)
    except StatisticsError as error:
        warnings = (error.message,)
    mcnemar = result is not None and binary and clusters == len(frame)
    return SliceResult(
        slice=name,
        leaf=leaf,
        items=len(frame),
        clusters=clusters,
        accuracy=float(ours.mean()),
        parent_accuracy=float(theirs.mean()),
        delta=float(difference.mean()),
        ci=None if result is None else (float(result.ci[0]), float(result.ci[1])),
        lost=lost,
        gained=gained,
        p_worse=None if result is None else result.p_worse,
        p_holm=None,
        p_two_sided_midp=result.p_two_sided_midp if mcnemar and result else None,
        confidence=confidence,
        method="" if result is None else result.method,
        warnings=warnings,
    )


def _weighted(name: str, frame: pd.DataFrame, leaf: bool, confidence: float) -> SliceResult:
    """The effect on items that count by the weights of their tasks: a ratio of clustered sums."""
    ours, theirs = (frame[f"{who}_score"].to_numpy() for who in ("variant", "baseline"))
    weight, cluster = frame["weight"].to_numpy(dtype=float), frame["cluster"].to_numpy()
    difference = ours - theirs
    delta = float(np.average(difference, weights=weight))
    ci: tuple[float, float] | None = None
    p_worse: float | None = None
    try:
        found = stats.clustered_mean(weight * difference, cluster, confidence, weight)
        ci, p_worse, warnings = found.ci, found.p_below(0.0), found.warnings
        if found.standard_error == 0 and not difference.any():
            # Certainty from items that did not change would be false: as if one of them could.
            sums = np.bincount(np.unique(cluster, return_inverse=True)[1], weights=weight)
            alike = max(1, int(sums.sum() ** 2 / (sums**2).sum()))
            bound = stats.wilson(0, alike, confidence)[1]
            ci, p_worse, warnings = (-bound, bound), 1.0, ()
    except StatisticsError as error:
        warnings = (error.message,)
    return SliceResult(
        slice=name,
        leaf=leaf,
        items=len(frame),
        clusters=len(pd.unique(cluster)),
        accuracy=float(np.average(ours, weights=weight)),
        parent_accuracy=float(np.average(theirs, weights=weight)),
        delta=delta,
        ci=ci,
        lost=int((difference < 0).sum()),
        gained=int((difference > 0).sum()),
        p_worse=p_worse,
        p_holm=None,
        p_two_sided_midp=None,
        confidence=confidence,
        method="weighted mean, cluster-robust t",
        warnings=warnings,
    )


def _adaptive(
    name: str, frame: pd.DataFrame, leaf: bool, confidence: float, strata: Strata
) -> SliceResult:
    """The effect on a slice of an adaptive run; ``frame`` holds the items that were asked."""
    names = strata.within(None if name == OVERALL else name)
    difference = (frame["variant_score"] - frame["baseline_score"]).to_numpy(dtype=float)
    found = strata.result(names, confidence)
    base = strata.baseline(names)
    return SliceResult(
        slice=name,
        leaf=leaf,
        items=len(frame),
        clusters=found.units,
        accuracy=base + found.mean,
        parent_accuracy=base,
        delta=found.mean,
        ci=found.ci,
        lost=int((difference < 0).sum()),
        gained=int((difference > 0).sum()),
        p_worse=found.p_worse,
        p_holm=None,
        p_two_sided_midp=None,
        confidence=confidence,
        method=METHOD,
        warnings=(),
        planned=strata.planned(names),
    )


def _stratum_weights(frame: pd.DataFrame, stops: Mapping[str, Any]) -> dict[str, float]:
    """Planned items of each slice times the weight that its items have."""
    own = frame.groupby(frame["slice"].astype(str))["weight"].first()
    return {n: float(s["planned"]) * float(own.get(n, 1.0)) for n, s in stops.items()}


def _binary(scores: npt.NDArray[np.float64]) -> bool:
    return bool(((scores == 0) | (scores == 1)).all())


def _with_holm(results: Mapping[str, SliceResult]) -> dict[str, SliceResult]:
    tested = {n: r.p_worse for n, r in results.items() if r.leaf and r.p_worse is not None}
    out = dict(results)
    if tested:
        for name, p in zip(tested, stats.holm(list(tested.values())), strict=True):
            out[name] = replace(out[name], p_holm=float(p))
    return out


def _perplexity(name: str, frame: pd.DataFrame, confidence: float) -> PerplexityResult:
    """Token-weighted: the ratio of summed likelihood differences to summed units."""
    units = frame["units"].to_numpy()
    ours, theirs = frame["variant_nll"].to_numpy(), frame["baseline_nll"].to_numpy()
    cluster = frame["cluster"].to_numpy()
    ci: tuple[float, float] | None = None
    try:
        result = stats.perplexity_ratio(theirs, ours, cluster, confidence, units)
        ratio, ci, warnings = result.mean, result.ci, result.warnings
    except StatisticsError as error:
        ratio = float(np.exp((ours - theirs).sum() / units.sum()))
        warnings = (error.message,)
    return PerplexityResult(
        slice=name,
        items=len(frame),
        clusters=len(np.unique(cluster)),
        units=int(units.sum()),
        ratio=ratio,
        ci=ci,
        warnings=warnings,
    )
