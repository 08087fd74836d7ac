"""How far a variant's next-token distributions are from the parent's, with intervals."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from evalq import stats
from evalq.compare.runs import Run
from evalq.errors import StatisticsError
from evalq.schema import TASK_TEXT

__all__ = ["FidelityResult", "fidelity_by_text", "fidelity_result", "kl_by_slice"]

Interval = tuple[float, float]


@dataclass(frozen=True)
class FidelityResult:
    """Fidelity of one variant; clusters are documents.

    Args:
        tokens, documents: what it is over.
        kl_mean, kl_median, kl_p95, kl_p99, kl_max: nats a token.
        top1_agreement: share of positions where both find the same token likeliest.
        ppl_ratio: perplexity of the variant over the parent's.
        kl_ci, top1_ci, ppl_ratio_ci: two-sided; ``None`` where there are too few documents.
    """

    variant: str
    tokens: int
    documents: int
    kl_mean: float
    kl_ci: Interval | None
    kl_median: float
    kl_p95: float
    kl_p99: float
    kl_max: float
    top1_agreement: float
    top1_ci: Interval | None
    ppl_ratio: float
    ppl_ratio_ci: Interval | None
    confidence: float
    warnings: tuple[str, ...]

    def summary(self) -> dict[str, Any]:
        """The ``fidelity`` entry of ``summary.json``."""
        return {
            "kl_mean": self.kl_mean,
            "kl_ci": None if self.kl_ci is None else list(self.kl_ci),
            "kl_p99": self.kl_p99,
            "top1_agreement": self.top1_agreement,
            "ppl_ratio": self.ppl_ratio,
            "ppl_ratio_ci": None if self.ppl_ratio_ci is None else list(self.ppl_ratio_ci),
            "tokens": self.tokens,
        }

    def detail(self) -> dict[str, Any]:
        """``summary`` with the rest of the distribution of KL."""
        rest = {"kl_median": self.kl_median, "kl_p95": self.kl_p95, "kl_max": self.kl_max}
        return {**self.summary(), **rest}


def _interval(call: Any) -> tuple[Interval | None, tuple[str, ...]]:
    try:
        result = call()
    except StatisticsError as error:
        return None, (error.message,)
    return (float(result.ci[0]), float(result.ci[1])), tuple(getattr(result, "warnings", ()))


def fidelity_result(
    run: Run, variant: str, confidence: float | None = None
) -> FidelityResult | None:
    """Fidelity of ``variant`` (or of ``run.control``); ``None`` when it was not measured."""
    return _result(
        run, variant, whole(run.fidelity[run.fidelity["variant"] == variant]), confidence
    )


def whole(frame: pd.DataFrame) -> pd.DataFrame:
    """What counts in figures of the whole: all texts but the evaluated one, which is short, alike,
    and different from run to run; it counts in its slices."""
    return frame[frame["text"] != TASK_TEXT]


def fidelity_by_text(
    run: Run, confidence: float | None = None
) -> dict[tuple[str, str], list[FidelityResult]]:
    """Fidelity of the negative control and of every variant on each text of the user's.

    Returns:
        ``(text, slice)`` to results, the control first; before them ``(text, "")`` for the held-out
        text as a whole. Empty where the user gave no text.
    """
    named = [str(t["name"]) for t in (run.info.get("fidelity") or {}).get("texts") or ()]
    frame = run.fidelity
    out: dict[tuple[str, str], list[FidelityResult]] = {}
    if frame.empty or not named:
        return out
    labels = [v for v in (run.control, *run.variants) if v in set(frame["variant"].unique())]
    pairs = frame[["text", "slice"]].drop_duplicates().astype(str)
    keys = [(t, s if t in named else "") for t, s in pairs.itertuples(index=False, name=None)]
    for text, slice_ in dict.fromkeys(keys):
        part = frame[frame["text"] == text]
        part = part[part["slice"] == slice_] if slice_ else part
        found = [
            _result(run, label, part[part["variant"] == label], confidence) for label in labels
        ]
        out[text, slice_] = [result for result in found if result is not None]
    return out


def _result(
    run: Run, variant: str, frame: pd.DataFrame, confidence: float | None
) -> FidelityResult | None:
    if frame.empty:
        return None
    level = run.recommend.confidence if confidence is None else confidence
    kl = frame["kl"].to_numpy(dtype=float)
    top1 = frame["top1"].to_numpy(dtype=float)
    documents = frame.groupby(["text", "document"], observed=True).ngroup().to_numpy()
    parent = frame["nll_parent"].to_numpy(dtype=float)
    mine = frame["nll_variant"].to_numpy(dtype=float)
    kl_ci, warnings = _interval(lambda: stats.clustered_mean(kl, documents, level))
    top1_ci, _ = _interval(lambda: stats.clustered_mean(top1, documents, level))
    ppl_ci, _ = _interval(lambda: stats.perplexity_ratio(parent, mine, documents, level))
    median, p95, p99 = np.quantile(kl, (0.5, 0.95, 0.99))
    return FidelityResult(
        variant=variant,
        tokens=len(frame),
        documents=int(documents.max()) + 1,
        kl_mean=float(kl.mean()),
        kl_ci=kl_ci,
        kl_median=float(median),
        kl_p95=float(p95),
        kl_p99=float(p99),
        kl_max=float(kl.max()),
        top1_agreement=float(top1.mean()),
        top1_ci=top1_ci,
        ppl_ratio=float(np.exp((mine - parent).mean())),
        ppl_ratio_ci=ppl_ci,
        confidence=level,
        warnings=warnings,
    )


def kl_by_slice(run: Run) -> pd.DataFrame:
    """Mean KL in nats, one row a slice of the held-out text, one column a variant."""
    table = run.fidelity.pivot_table(index="slice", columns="variant", values="kl", observed=True)
    table.columns = pd.Index([str(c) for c in table.columns])
    order = [v for v in (run.control, *run.variants) if v in table.columns]
    return table[order]
