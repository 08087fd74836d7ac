"""The sentences of a report: the verdict, the unevenness, the limits. Plain text, not escaped."""

from __future__ import annotations

from evalq.report.adaptive import adaptive_limits, saved_text
from evalq.report.frames import ReportData
from evalq.report.text import interval_text, pp

__all__ = ["banners", "headline", "limits", "unevenness_text"]


def headline(data: ReportData) -> str:
    """The verdict in one sentence."""
    name = data.recommendation.variant
    comparison = data.comparisons.get(name)
    size = data.size_text(name)
    if name == data.run.parent or comparison is None or comparison.overall is None:
        if len(data.recommendation.candidates) <= 1 and data.recommendation.unsized:
            return _served_headline(data)
        if name in data.served:
            return (
                "Keep the parent's endpoint: no variant is shown to keep its quality within the "
                "margins."
            )
        return (
            f"Ship the parent ({size}): no smaller variant is shown to keep its quality within "
            "the margins."
        )
    overall = comparison.overall
    level = f"{100 * overall.confidence:g} %"
    worst = comparison.worst(data.run.recommend.min_items) or comparison.worst()
    where = ""
    if worst is not None:
        where = f"; its worst slice is {worst.slice} with {pp(worst.delta)}"
    loss = (
        "no loss measured" if overall.delta >= 0 else f"a loss of {pp(-overall.delta, sign=False)}"
    )
    change = f"{pp(overall.delta)}, " if overall.delta >= 0 else ""
    saving = f"{100 * data.recommendation.saving:.0f} % smaller than the parent"
    if data.run.parent in data.served:
        saving = "in place of the parent's endpoint, whose size is unknown"
    interval = f"{change}{level} interval of the change {interval_text(overall.ci)}"
    return f"Ship {name} ({size}): {saving}, at {loss} ({interval}){where}."


def _served_headline(data: ReportData) -> str:
    """The verdict where sizes say nothing: whether endpoints keep the parent's quality."""
    every = data.recommendation.unsized
    kept = [name for name, reasons in every.items() if not reasons]
    if len(every) > 1:
        names = f" ({', '.join(kept)})" if kept else ""
        return (
            f"{len(kept)} of {len(every)} endpoints are shown to keep the parent's quality within "
            f"the margins{names}."
        )
    name = next(iter(every))
    verdict = "is" if kept else "is not"
    text = f"{name} {verdict} shown to keep the parent's quality within the margins"
    overall = data.comparisons[name].overall
    if overall is None:
        return f"{text}: it has no scored items."
    level = f"{100 * overall.confidence:g} %"
    return f"{text} ({pp(overall.delta)}, {level} interval {interval_text(overall.ci)})."


def unevenness_text(data: ReportData) -> list[str]:
    """For each 4-bit variant, the worst slice's loss beside the average loss."""
    out = []
    for found in data.uneven:
        worst, overall = found.worst, found.overall
        text = (
            f"{found.variant}: {worst.slice} changes by {pp(worst.delta)} "
            f"({interval_text(worst.ci)}, {worst.items} items), the average over all items by "
            f"{pp(overall.delta)} ({interval_text(overall.ci)})"
        )
        if found.ratio is None:
            text += "; there is no average loss to compare with."
        else:
            text += f": the worst slice takes {found.ratio:.1f} times the average loss."
        out.append(text)
    return out


def banners(data: ReportData) -> list[str]:
    """What a reader has to know before any number."""
    parent = data.run.info["parent"]
    out = []
    if not data.run.finished:
        out.append("This run is not finished. Only what was done so far is shown.")
    saved = saved_text(data)
    if saved:
        out.append(saved)
    if parent.get("demonstration"):
        out.append(
            "The parent is evalq's built-in demonstration model: a few million parameters, trained "
            "on generated text so that a whole run takes minutes. The method is real; the numbers "
            "say nothing about any other model."
        )
    if parent.get("gridded"):
        out.append(
            "The parent's weights were dequantized from an already quantized file: they lie on a "
            "grid, so losses against the original model are larger than shown here."
        )
    if data.dequantized:
        out.append(
            f"{len(data.dequantized)} of {len(data.run.variants)} variants ran dequantized: their "
            "weights are stored in few bits and computed with as dense ones. Their sizes and "
            "their quality are real; their speed is not their format's, and none is claimed."
        )
    return out


def _weights_text(data: ReportData) -> str:
    weights = data.run.weights
    if not weights:
        return "The overall accuracy weighs every item alike, so larger tasks count for more."
    named = ", ".join(f"{task} {weight:g}" for task, weight in sorted(weights.items()))
    return (
        f"Items count by the weights that their suites give their tasks ({named}; all others 1), "
        "in the overall accuracy and in every slice that holds tasks of different weights."
    )


def limits(data: ReportData) -> list[str]:
    """How it was measured and what that leaves open."""
    plan = data.run.recommend
    level = f"{100 * plan.confidence:g} %"
    adaptive = adaptive_limits(data)
    out = adaptive or [
        "Every variant was asked the same items as the parent; pairs are matched by the hashes of "
        "prompt and target, and any difference is refused.",
        f"Intervals are two-sided at {level}: Tango's score interval for right-or-wrong items, and "
        "cluster-robust means with t(G−1) where items share a document or the metric is graded.",
        f"The probability of being on the frontier comes from {data.frontiers['bytes'].resamples} "
        "joint resamplings of the items; costs are taken as known.",
    ]
    out += [
        "A tier is recommended by non-inferiority: the lower bound of its change is above "
        f"−{plan.margin_pp:g} pp overall and above −{plan.slice_margin_pp:g} pp on every slice of "
        f"at least {plan.min_items} items. No verdict rests on a point estimate.",
        _weights_text(data),
        "Stars in the heat map are Holm-adjusted over the most specific slices, for each variant "
        "by itself; the worst slice is picked after the fact, so its loss is on average "
        "overstated.",
    ]
    if data.control is not None:
        kl = data.control.kl_mean
        out.append(
            "Negative control: the parent against itself, run another way, shows a KL of "
            f"{kl:.2g} nats a token; differences below it are noise."
        )
    elif data.fidelity:
        out.append("There is no negative control: how much of the KL is numerical noise is open.")
    if data.served:
        out.append(
            f"{', '.join(data.served)}: answered by an endpoint, known by its URL and its model's "
            "name alone. What it stores, its size, bits, speed and cost are unknown, what answers "
            "there may change at any time, and it shows no distributions to compare, so that it "
            "has no KL."
        )
    if not data.fidelity:
        out.append("Fidelity (KL, top-1 agreement, perplexity ratio) was not measured.")
    if all(c.decode is None for c in data.costs.values()):
        out.append("Speed and memory were not measured.")
    return out
