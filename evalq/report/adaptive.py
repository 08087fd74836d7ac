"""What a report says of an adaptive run: where slices stopped, and what that saved."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from evalq.compare.adaptive import METHOD
from evalq.report.frames import ReportData
from evalq.report.text import visible

__all__ = ["adaptive_limits", "adaptive_rows", "saved_text"]

_WORDS = {"pass": "within the margin", "fail": "beyond the margin", "": "undecided, all asked"}


def _stops(data: ReportData) -> Mapping[str, Mapping[str, Any]]:
    found: Mapping[str, Mapping[str, Any]] = (data.run.info.get("adaptive") or {}).get(
        "variants"
    ) or {}
    return {label: stops for label, stops in found.items() if label in data.run.variants}


def saved_text(data: ReportData) -> str:
    """How many items of how many were asked, over all variants; "" for other runs."""
    stops = [s for slices in _stops(data).values() for s in slices.values()]
    used, planned = (sum(int(s[k]) for s in stops) for k in ("used", "planned"))
    if not planned:
        return ""
    decided = sum(1 for s in stops if s["decision"])
    share = 100 * (planned - used) / planned
    return (
        "This run was adaptive: slices stopped as soon as their comparison to the parent was "
        f"decided ({decided} of {len(stops)} were). Of {planned:,} items {used:,} were asked of "
        f"the variants; {planned - used:,} ({share:.0f} %) were not needed."
    )


def adaptive_rows(data: ReportData) -> list[dict[str, str]]:
    """One row a variant and slice: how many items were asked, how many that saved, and why."""
    return [
        {
            "variant": visible(label),
            "slice": visible(name),
            "used": f"{stop['used']:,}",
            "planned": f"{stop['planned']:,}",
            "saved": f"{stop['planned'] - stop['used']:,}",
            "margin": f"{100 * stop['margin']:g} pp",
            "decision": _WORDS[str(stop["decision"])],
        }
        for label, slices in _stops(data).items()
        for name, stop in slices.items()
    ]


def adaptive_limits(data: ReportData) -> list[str]:
    """How an adaptive run was measured; empty for other runs."""
    if not _stops(data):
        return []
    level = f"{100 * data.run.recommend.confidence:g} %"
    return [
        "The parent was asked every item, and each variant the items of a slice in a seeded "
        "order until the slice was decided; pairs are matched by the hashes of prompt and target.",
        f"Intervals are two-sided at {level} and hold at whatever item one stops ({METHOD}); they "
        "are wider than those of a number of items fixed in advance. A cluster counts as one item. "
        "Slices above others, and the overall change, weigh their parts by the items they have.",
        "The probability of being on the frontier draws each variant's change by itself.",
    ]
