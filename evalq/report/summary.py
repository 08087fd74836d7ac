"""``summary.json``, the stable interface for scripts and gates, and ``summary.md`` for people."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from evalq.compare import Comparison, SliceResult, fidelity_by_text
from evalq.report.frames import ReportData
from evalq.report.text import interval_text, markdown_safe, pp
from evalq.report.words import headline, limits, unevenness_text
from evalq.schema import FORMAT_VERSION

__all__ = ["markdown", "summary", "variant_table"]


def _number(value: Any) -> float | None:
    """A finite float, or ``None``: JSON knows no NaN."""
    return None if value is None or not math.isfinite(value) else float(value)


def _whole(value: Any) -> int | None:
    number = _number(value)
    return None if number is None else int(number)


def _against_itself(result: SliceResult) -> dict[str, Any]:
    return {**result.summary(), "delta": 0.0, "ci": [0.0, 0.0], "p_worse": 1.0}


def _scores(comparison: Comparison | None, is_parent: bool) -> dict[str, Any]:
    if comparison is None:
        return {"overall": None, "slices": {}}
    entry = _against_itself if is_parent else SliceResult.summary
    overall = comparison.overall
    return {
        "overall": None if overall is None else entry(overall),
        "slices": {name: entry(result) for name, result in comparison.slices.items()},
    }


def _texts(data: ReportData, name: str) -> dict[str, Any]:
    """Fidelity on each of the user's texts, with the noise floor of the parent on it."""
    rows = []
    for (text, slice_), results in fidelity_by_text(data.run).items():
        own = next((r for r in results if r.variant == name), None)
        floor = next((r for r in results if r.variant == data.run.control), None)
        if own is not None and slice_:
            rows.append(
                {
                    "text": text,
                    "slice": slice_,
                    **own.detail(),
                    "noise_floor": None if floor is None else floor.detail(),
                }
            )
    return {"texts": rows} if rows else {}


def _variant(data: ReportData, name: str) -> dict[str, Any]:
    entry = data.run.variant_info(name)
    cost = data.costs[name]
    point = next((p for p in data.frontiers["bytes"].points if p.variant == name), None)
    fidelity = data.fidelity.get(name)
    own_speed = cost.execution != "dequantized"
    place = entry.get("endpoint")
    return {
        "name": name,
        **({"endpoint": dict(place)} if place else {}),
        "hash": entry.get("hash"),
        "method": entry.get("method") or None,
        "bits": entry.get("bits"),
        "group_size": entry.get("group_size"),
        "bits_per_weight": _number(cost.bits_per_weight),
        "bytes": _whole(cost.bytes),
        "peak_memory_bytes": _whole(cost.peak_memory_bytes),
        "execution": cost.execution,
        "tokens_per_second": {
            "prefill": _number(cost.prefill) if own_speed else None,
            "decode": _number(cost.decode) if own_speed else None,
        },
        **_scores(data.comparisons.get(name), name == data.run.parent),
        "fidelity": None if fidelity is None else {**fidelity.summary(), **_texts(data, name)},
        "frontier": {
            "on_frontier": False if point is None else point.on_frontier,
            "probability": None if point is None else point.probability,
        },
    }


def summary(data: ReportData) -> dict[str, Any]:
    """The content of ``summary.json``, as ``shared/docs/design.md`` has it.

    Accuracies and their differences are in [0, 1], sizes in bytes, KL in nats a token. What was not
    measured is ``null``, and so is the speed of a variant that ran dequantized (costs.csv has it,
    labelled); the parent against itself has a delta of 0 by identity. An endpoint has the key
    ``endpoint`` (url, model, api), and sizes and bits of ``null``.
    """
    info = data.run.info
    parent = data.costs[data.run.parent]
    return {
        "format_version": FORMAT_VERSION,
        "run": info["name"],
        "parent": {
            "name": info["parent"].get("name"),
            "hash": info["parent"].get("hash"),
            "bits_per_weight": _number(parent.bits_per_weight),
            "bytes": _whole(parent.bytes),
        },
        "machine": info.get("machine"),
        "suites": info.get("suites"),
        **({"adaptive": info["adaptive"]} if info.get("adaptive") else {}),
        "variants": [_variant(data, name) for name in data.run.variants],
        "recommended": {
            "variant": data.recommendation.variant,
            "why": data.recommendation.why,
        },
    }


def _table(header: list[str], rows: list[list[str]]) -> list[str]:
    return [
        "| " + " | ".join(header) + " |",
        "|" + " --- |" * len(header),
        *("| " + " | ".join(row) + " |" for row in rows),
    ]


def _variant_cells(data: ReportData, name: str) -> list[str]:
    comparison: Comparison | None = data.comparisons.get(name)
    overall = comparison.overall if comparison else None
    worst = comparison.worst(data.run.recommend.min_items) if comparison else None
    is_parent = name == data.run.parent
    shown = f"**{markdown_safe(name)}**" if name == data.recommendation.variant else None
    return [
        shown or markdown_safe(name),
        data.size_text(name),
        data.bits_text(name),
        f"{100 * overall.accuracy:.1f} %" if overall else "–",
        f"{pp(overall.delta)} ({interval_text(overall.ci)})" if overall and not is_parent else "–",
        f"{markdown_safe(worst.slice)} {pp(worst.delta)}" if worst and not is_parent else "–",
        data.kl_text(name),
    ]


def variant_table(data: ReportData) -> list[str]:
    """The variants as the lines of a Markdown table."""
    confidence = f"{100 * data.run.recommend.confidence:g} %"
    header = ["variant", "size", "bits/weight", "accuracy", f"change ({confidence} interval)"]
    header += ["worst slice", "KL (nats)"]
    return _table(header, [_variant_cells(data, v) for v in data.run.variants])


def markdown(data: ReportData) -> str:
    """The run in a page of Markdown. Names and texts of others are escaped."""
    slices: Mapping[str, SliceResult] = {}
    if data.comparisons:
        slices = data.comparisons[data.run.parent].slices
    names = [c.variant for c in data.others]
    rows = [
        [
            markdown_safe(name),
            str(result.items),
            f"{100 * result.accuracy:.1f} %",
            *(pp(data.comparisons[v].slices[name].delta).removesuffix(" pp") for v in names),
        ]
        for name, result in slices.items()
    ]
    lines = [f"# evalq: {markdown_safe(str(data.run.info['name']))}", ""]
    lines += [markdown_safe(headline(data)), "", markdown_safe(data.recommendation.why), ""]
    lines += [f"- {markdown_safe(text)}" for text in unevenness_text(data)]
    lines += ["", "## Variants", ""]
    lines += variant_table(data)
    if rows:
        lines += ["", "## Change by slice, in accuracy points", ""]
        lines += _table(["slice", "items", "parent", *map(markdown_safe, names)], rows)
    lines += ["", "## Limits", ""]
    lines += [f"- {markdown_safe(text)}" for text in (*limits(data), *data.warnings)]
    return "\n".join(lines) + "\n"
