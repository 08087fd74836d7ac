"""From the tables of a run to estimates with intervals, one for each metric that is limited."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd

from evalq import stats
from evalq.compare import Comparison, Run, whole
from evalq.errors import StatisticsError
from evalq.gate.policy import Limit, SliceRule

__all__ = [
    "Measured",
    "cost",
    "design_effect_of",
    "fidelity",
    "fidelity_frame",
    "has_control",
    "items_of_control",
    "margin_of",
    "noise_floor",
    "perplexity_tasks",
    "within",
]

EXACT_COSTS = ("bytes_on_disk", "bits_per_weight")
SPEEDS = ("prefill_tokens_per_second", "decode_tokens_per_second")


@dataclass(frozen=True, slots=True)
class Measured:
    """One metric of one slice against one limit.

    Args:
        estimate, ci: what the limit is about; ``ci`` is ``None`` when nothing can be said, and
            ``notes`` then says why.
        p: one-sided p of being beyond the limit; ``None`` for what carries no chance.
        count, unit, clusters: what it is over.
        value, baseline: of the variant and the baseline.
    """

    estimate: float | None
    ci: tuple[float, float] | None
    p: float | None
    count: int
    unit: str
    clusters: int
    value: float | None = None
    baseline: float | None = None
    notes: tuple[str, ...] = ()


def _nothing(why: str, unit: str = "") -> Measured:
    return Measured(None, None, None, 0, unit, 0, notes=(why,))


def margin_of(rule: SliceRule, baseline: float) -> float:
    """The margin in accuracy (0 to 1) that a rule means at this baseline accuracy."""
    if rule.margin_relative is not None and rule.floor_pp is not None:
        return stats.relative_margin(rule.margin_relative, baseline, rule.floor_pp / 100)
    if rule.margin_pp is None:
        raise StatisticsError("a rule without a margin judges no accuracy")
    return rule.margin_pp / 100


def design_effect_of(comparison: Comparison, slice_: str | None) -> float:
    """Design effect of the differences on a slice (on everything without one), at least 1."""
    frame = within(comparison.pairs.scored, slice_)
    difference = (frame["variant_score"] - frame["baseline_score"]).to_numpy(dtype=float)
    return max(1.0, stats.design_effect(difference, frame["cluster"].to_numpy()))


def within(frame: pd.DataFrame, slice_: str | None) -> pd.DataFrame:
    """The rows of a slice and of what is below it; all rows where none is named."""
    if slice_ is None or frame.empty:
        return frame
    names = frame["slice"].astype(str)
    return frame[(names == slice_) | names.str.startswith(slice_ + "/")]


def fidelity_frame(run: Run, label: str, slice_: str | None = None) -> pd.DataFrame:
    """Fidelity records of a variant, of one slice and what is below it where one is named."""
    frame = run.fidelity[run.fidelity["variant"] == label]
    return whole(frame) if slice_ is None else within(frame, slice_)


def fidelity(frame: pd.DataFrame, metric: str, limit: Limit, confidence: float) -> Measured:
    """KL, top-1 agreement or perplexity ratio of fidelity records, clustered by document."""
    if frame.empty:
        return _nothing("no fidelity was measured here", "tokens")
    documents = frame.groupby(["text", "document"], observed=True).ngroup().to_numpy()
    try:
        if metric == "ppl_ratio":
            return _ratio(
                frame["nll_parent"].to_numpy(dtype=float),
                frame["nll_variant"].to_numpy(dtype=float),
                (documents, None),
                limit,
                confidence,
            )
        column = {"kl_mean": "kl", "top1": "top1"}[metric]
        values = frame[column].to_numpy(dtype=float)
        mean = stats.clustered_mean(values, documents, confidence)
    except StatisticsError as error:
        return _nothing(error.message, "tokens")
    ci, p = mean.ci, mean.p_above(limit.value) if limit.is_max else mean.p_below(limit.value)
    notes = mean.warnings
    if metric == "top1" and mean.standard_error == 0 and mean.mean in (0.0, 1.0):
        # Certainty from a few documents would be false: each counts as one agreement.
        ci = stats.wilson(round(mean.mean * mean.clusters), mean.clusters, confidence)
        p = 1.0 if mean.mean == 1.0 else 0.0
        notes = (*notes, "no token differs: the interval takes each document for one token")
    return Measured(
        mean.mean, ci, p, len(frame), "tokens", mean.clusters, value=mean.mean, notes=notes
    )


def _ratio(
    parent: np.ndarray,
    variant: np.ndarray,
    grouping: tuple[np.ndarray, np.ndarray | None],
    limit: Limit,
    confidence: float,
) -> Measured:
    clusters, units = grouping
    log = stats.clustered_mean(variant - parent, clusters, confidence, units)
    ratio = stats.perplexity_ratio(parent, variant, clusters, confidence, units)
    tokens = len(parent) if units is None else int(units.sum())
    return Measured(
        ratio.mean,
        ratio.ci,
        log.p_above(math.log(limit.value)),
        tokens,
        "tokens",
        ratio.clusters,
        value=ratio.mean,
        notes=ratio.warnings,
    )


def perplexity_tasks(
    comparison: Comparison, slice_: str | None, limit: Limit, confidence: float
) -> Measured | None:
    """Perplexity ratio over the baseline on perplexity tasks; ``None`` where there are none."""
    frame = within(comparison.pairs.likelihoods, slice_)
    if frame.empty:
        return None
    try:
        return _ratio(
            frame["baseline_nll"].to_numpy(dtype=float),
            frame["variant_nll"].to_numpy(dtype=float),
            (frame["cluster"].to_numpy(), frame["units"].to_numpy(dtype=float)),
            limit,
            confidence,
        )
    except StatisticsError as error:
        return _nothing(error.message, "tokens")


def noise_floor(run: Run) -> dict[str, float] | None:
    """What the parent against itself shows; ``None`` without a negative control."""
    frame = fidelity_frame(run, run.control)
    if frame.empty:
        return None
    log = (frame["nll_variant"] - frame["nll_parent"]).to_numpy(dtype=float)
    return {
        "kl_mean": float(frame["kl"].mean()),
        "kl_max": float(frame["kl"].max()),
        "top1": float(frame["top1"].mean()),
        "ppl_ratio": math.exp(float(log.mean())),
    }


def has_control(run: Run) -> bool:
    """Whether the parent was run against itself, by its distributions or by its items."""
    return not fidelity_frame(run, run.control).empty or items_of_control(run) is not None


def items_of_control(run: Run) -> tuple[int, int] | None:
    """How many items the parent was asked again, and on how many of them its score changed.

    It stands for the distributions in runs with endpoints, which show none, where these were not
    compared; ``None`` elsewhere.
    """
    endpoints = any(v.get("endpoint") for v in run.info["variants"])
    if not endpoints or not fidelity_frame(run, run.control).empty:
        return None
    columns = ["task", "item_id", "filter", "score"]
    first, again = (
        run.items.loc[run.items["variant"] == label, columns].astype(
            dict.fromkeys(columns[:3], str)
        )
        for label in (run.parent, run.control)
    )
    both = first.merge(again, on=columns[:3]).dropna(subset=["score_x", "score_y"])
    if both.empty:
        return None
    return len(both), int((both["score_x"] != both["score_y"]).sum())


def cost(
    run: Run, label: str, baseline: tuple[Run, str], metric: str, limit: Limit, confidence: float
) -> Measured:
    """A cost, or its ratio to the baseline's. Speeds carry the interval of their repeats.

    What was run dequantized has neither the speed nor the memory of its format, and is not judged
    by them.
    """
    ours = run.costs[run.costs["variant"] == label].sort_values("repeat")
    other, other_label = baseline
    theirs = other.costs[other.costs["variant"] == other_label].sort_values("repeat")
    if ours.empty or (limit.is_ratio and theirs.empty):
        return _nothing("no cost was measured", "repeats")
    value = ours[metric].to_numpy(dtype=float)
    base = theirs[metric].to_numpy(dtype=float)
    if metric in EXACT_COSTS:
        mine = float(value.max())
        reference = float(base.max()) if len(base) else None
        estimate = mine / reference if limit.is_ratio and reference else mine
        return Measured(estimate, (estimate, estimate), None, 1, "artifact", 1, mine, reference)
    if (ours["execution"] == "dequantized").any():
        return _nothing("it was run dequantized: what was measured is not the format's", "repeats")
    if limit.is_ratio and (theirs["execution"] == "dequantized").any():
        return _nothing("the baseline was run dequantized", "repeats")
    if limit.is_ratio and other is not run:
        return _nothing("runs apart are not timed in turn: their ratio would be noise", "repeats")
    if metric == "peak_memory_bytes":
        mine, reference = float(value.max()), float(base.max()) if len(base) else None
        estimate = mine / reference if limit.is_ratio and reference else mine
        return Measured(
            estimate, (estimate, estimate), None, len(value), "repeats", 1, mine, reference
        )
    return _speed(value, base if limit.is_ratio else None, limit, confidence)


def _speed(value: np.ndarray, base: np.ndarray | None, limit: Limit, confidence: float) -> Measured:
    """Geometric mean of tokens/s, or of its ratio within each repeat, t over the repeats."""
    if (value <= 0).any() or (base is not None and (base <= 0).any()):
        return _nothing("a speed is not positive", "repeats")
    if base is not None and len(base) != len(value):
        return _nothing("the baseline was timed in other repeats", "repeats")
    logs = np.log(value) if base is None else np.log(value / base)
    try:
        mean = stats.clustered_mean(logs, None, confidence)
    except StatisticsError:
        return _nothing("one repeat has no spread: time at least two", "repeats")
    bound = math.log(limit.value)
    return Measured(
        math.exp(mean.mean),
        (math.exp(mean.ci[0]), math.exp(mean.ci[1])),
        mean.p_above(bound) if limit.is_max else mean.p_below(bound),
        len(value),
        "repeats",
        len(value),
        float(np.exp(np.log(value).mean())),
        None if base is None else float(np.exp(np.log(base).mean())),
    )
