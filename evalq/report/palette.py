"""One colour a tier and one mark a method, the same in every chart; after Okabe and Ito.

Okabe and Ito's eight colours stay apart for all common colour blindnesses; those too faint on
white (orange, sky blue) are darkened to a contrast of at least 3 to 1. Methods differ by shape as
well, so that no chart depends on colour alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["METHOD_MARKS", "TIERS", "Tier", "mark_of", "tier_of"]


@dataclass(frozen=True)
class Tier:
    """A rung of the precision ladder.

    Args:
        key: CSS class suffix.
        name: as written in legends.
        light, dark: colours on a light and a dark ground.
    """

    key: str
    name: str
    light: str
    dark: str


TIERS: Mapping[str, Tier] = {
    t.key: t
    for t in (
        Tier("parent", "parent", "#1b2733", "#e6edf3"),
        Tier("8", "int8", "#0072b2", "#5aaeea"),
        Tier("7", "int7", "#3b7fb0", "#7fb8dd"),
        Tier("6", "int6", "#2a8fc4", "#8fd3f8"),
        Tier("5", "int5", "#4a7c59", "#8cc9a0"),
        Tier("4", "int4", "#00825f", "#2fcf9f"),
        Tier("3", "int3", "#b87700", "#f2b632"),
        Tier("2", "int2", "#c84e00", "#ff8a4c"),
        Tier("endpoint", "endpoint", "#6a51a3", "#b9a6e8"),
        Tier("other", "other", "#a8518a", "#e29cc7"),
    )
}

METHOD_MARKS = ("circle", "square", "triangle", "diamond", "down", "cross", "star")
"""Shapes, dealt to methods in the order of the run; the parent is a ring."""

MATPLOTLIB_MARKS = {
    "circle": "o",
    "square": "s",
    "triangle": "^",
    "diamond": "D",
    "down": "v",
    "cross": "X",
    "star": "*",
    "ring": "o",
}


def tier_of(entry: Mapping[str, Any]) -> Tier:
    """The tier of a variant by its entry in run.json."""
    if entry.get("kind") == "parent":
        return TIERS["parent"]
    if entry.get("kind") == "endpoint":
        return TIERS["endpoint"]
    return TIERS.get(str(entry.get("bits")), TIERS["other"])


def mark_of(entries: list[Mapping[str, Any]], entry: Mapping[str, Any]) -> str:
    """The shape of a variant's method."""
    if entry.get("kind") == "parent":
        return "ring"
    methods = list(dict.fromkeys(e.get("method") or e.get("kind") for e in entries[1:]))
    method = entry.get("method") or entry.get("kind")
    return METHOD_MARKS[methods.index(method) % len(METHOD_MARKS)]
