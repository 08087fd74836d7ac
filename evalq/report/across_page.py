"""The page of several runs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from evalq.compare import load_run
from evalq.errors import StoreError
from evalq.report.across import Across, Place, across, across_tables, answer
from evalq.report.html import fill
from evalq.report.palette import METHOD_MARKS
from evalq.report.render import write_csv
from evalq.report.rows import NARROW, WIDE
from evalq.report.scatter import Costs, Spot, scatter
from evalq.report.svg import element, mark, root
from evalq.report.text import bytes_text, interval_text, pp, visible
from evalq.report.words import headline
from evalq.store.files import atomic_write

__all__ = ["across_summary", "render_across"]


def _tier(found: Across, place: Place) -> str:
    return found.data[place.entrant.run].tier(place.entrant.variant).key


def _shape(found: Across, place: Place) -> str:
    return METHOD_MARKS[place.entrant.run % len(METHOD_MARKS)]


def _rows(found: Across) -> list[dict[str, Any]]:
    best = found.best
    out = []
    for index, place in enumerate(found.places):
        effect = found.shared.effect(place.column, best.column, found.confidence)
        own = place.column == best.column
        fits = "" if found.memory is None else "yes" if place.need <= found.memory else "no"
        out.append(
            {
                "index": index,
                "run": visible(found.shared.names[place.entrant.run]),
                "variant": visible(place.entrant.variant),
                "tier": _tier(found, place),
                "bytes": bytes_text(place.bytes),
                "need": bytes_text(place.need),
                "quality": f"{100 * place.quality:.1f} %",
                "delta": "–" if own else pp(effect.delta),
                "ci": "" if own else interval_text(effect.ci),
                "effect": effect,
                "probability": f"{place.probability:.2f}",
                "on": place.on,
                "chosen": found.chosen is not None and place.column == found.chosen.column,
                "fits": fits or "–",
            }
        )
    return out


def _spots(found: Across, rows: Sequence[dict[str, Any]]) -> list[Spot]:
    best = found.best
    spots = []
    for place, row in zip(found.places, rows, strict=True):
        ci = row["effect"].ci
        ends = None
        if ci is not None and place.column != best.column:
            low, high = (min(1.0, max(0.0, best.quality + c)) for c in ci)
            ends = (low, high)
        tip = f"{place.entrant.label}\n{row['need']}, accuracy {row['quality']}"
        if place.column != best.column:
            tip += f"\n{row['delta']} against the best ({row['ci']})"
        spots.append(
            Spot(
                label=place.entrant.label,
                cost=place.need,
                quality=place.quality,
                ends=ends,
                on=place.on,
                chosen=bool(row["chosen"]),
                named=place.on,
                tier=_tier(found, place),
                shape=_shape(found, place),
                tip=tip,
                index=int(row["index"]),
            )
        )
    return spots


def _legend(found: Across) -> list[dict[str, Any]]:
    tiers = {}
    for place in found.places:
        tier = found.data[place.entrant.run].tier(place.entrant.variant)
        tiers[tier.key] = tier.name
    items = [("circle", key, name) for key, name in tiers.items()]
    for index, name in enumerate(found.shared.names):
        items.append((METHOD_MARKS[index % len(METHOD_MARKS)], "none", visible(name)))
    out = []
    for shape, key, name in items:
        body = [element("g", mark(shape, 8, 8, 5), class_=f"pt tier-{key}")]
        out.append({"name": name, "svg": root((16, 16), name, body, "key")})
    return out


def _steps(found: Across) -> list[dict[str, str]]:
    out = []
    for step in found.steps:
        gain = step.gain
        sure = gain is not None and gain.ci is not None and gain.ci[0] > 0
        out.append(
            {
                "need": bytes_text(step.place.need),
                "label": visible(step.place.entrant.label),
                "tier": _tier(found, step.place),
                "quality": f"{100 * step.place.quality:.1f} %",
                "gain": "–" if gain is None else pp(gain.delta),
                "ci": "–" if gain is None else interval_text(gain.ci),
                "shown": "–" if gain is None else "yes" if sure else "no",
            }
        )
    return out


def _slices(found: Across) -> list[dict[str, Any]]:
    table = across_tables(found)["slices"]
    out = []
    for name, group in table.groupby("slice", sort=False):
        values = group["accuracy"].tolist()
        out.append(
            {
                "name": visible(str(name)),
                "short": visible(str(name).rsplit("/", 1)[-1]),
                "depth": str(name).count("/"),
                "items": int(group["items"].iloc[0]),
                "cells": [{"text": f"{100 * v:.1f}", "best": v == max(values)} for v in values],
            }
        )
    return out


def _page(found: Across) -> str:
    need = "weights and one KV cache" if found.context else "weights"
    costs = Costs("need", f"memory, {need}", bytes=True, less=True)
    rows = _rows(found)
    spots = _spots(found, rows)
    runs = [
        {
            "name": visible(name),
            "parent": visible(str(one.run.info["parent"].get("name"))),
            "created": visible(str(one.run.info.get("created", "")))[:10],
            "asked": f"{asked:,}",
            "verdict": visible(headline(one)),
        }
        for name, one, asked in zip(found.shared.names, found.data, found.shared.asked, strict=True)
    ]
    return fill(
        "across.html.j2",
        title=visible(", ".join(found.shared.names)),
        answer=visible(answer(found)),
        items=len(found.shared.scores),
        notes=[visible(n) for n in found.notes],
        cost_name=costs.name,
        level=f"{100 * found.confidence:g} %",
        legend=_legend(found),
        wide=scatter(spots, costs, WIDE),
        narrow=scatter(spots, costs, NARROW),
        rows=rows,
        steps=_steps(found),
        slices=_slices(found),
        runs=runs,
        context=found.context,
    )


def across_summary(found: Across) -> dict[str, Any]:
    """What ``comparison.json`` holds: sizes in bytes, accuracies in [0, 1]."""
    variants = across_tables(found)["variants"].to_dict("records")
    return {
        "runs": list(found.shared.names),
        "items": len(found.shared.scores),
        "context_tokens": found.context,
        "memory_bytes": found.memory,
        "answer": answer(found),
        "chosen": None if found.chosen is None else found.chosen.entrant.label,
        "steps": [
            {
                "need_bytes": s.place.need,
                "variant": s.place.entrant.label,
                "accuracy": s.place.quality,
                "gain": None if s.gain is None else s.gain.summary(),
            }
            for s in found.steps
        ],
        "variants": variants,
        "notes": list(found.notes),
    }


def render_across(
    runs: Sequence[Path], out: Path | None = None, memory: float | None = None
) -> Path:
    """Render several runs into one page and return its path; tables and ``comparison.json`` lie
    beside it.

    Args:
        runs: run directories, two or more.
        out: directory; ``comparison`` beside the first run if ``None``.
        memory: what there is, in bytes.

    Raises:
        StoreError: no run directory, or ``out`` is one.
        ComparisonError: the runs share no items.
    """
    found = across([load_run(run) for run in runs], memory)
    out = Path(runs[0]).resolve().parent / "comparison" if out is None else out
    if (out / "run.json").exists():
        raise StoreError(f"{out} is a run directory", hint="Choose another --out.")
    for name, frame in across_tables(found).items():
        write_csv(out / "tables" / f"{name}.csv", frame)
    content = json.dumps(across_summary(found), indent=2, ensure_ascii=False, allow_nan=False)
    for path, text in (("comparison.json", content + "\n"), ("index.html", _page(found))):
        with atomic_write(out / path) as stream:
            stream.write(text.encode("utf-8", "replace"))
    return out / "index.html"
