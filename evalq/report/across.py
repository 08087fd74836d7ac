"""Several runs in one report: which model at which precision for this memory?"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from evalq import stats
from evalq.compare import Entrant, Run, Shared, SliceResult, shared_items
from evalq.errors import PlanError
from evalq.memory import cache_shape
from evalq.report.capacity import cache_bytes, parent_config
from evalq.report.frames import ReportData, collect
from evalq.report.text import bytes_text, interval_text, pp
from evalq.schema import slice_ancestors

__all__ = ["Across", "Place", "Step", "across", "across_tables", "answer", "parse_memory"]

_MEMORY = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*([KMGT]i?)?B?\s*$", re.I)
_CONTEXT = 8192


@dataclass(frozen=True)
class Place:
    """A variant among those of all runs.

    Args:
        entrant: which.
        column: of ``Shared.scores``.
        bytes: on disk.
        need: memory in bytes: weights, and one KV cache where it could be modelled for every run.
        quality: accuracy on the shared items.
        on: on the frontier of need and quality.
        probability: of that, by resampling the shared items.
    """

    entrant: Entrant
    column: int
    bytes: float
    need: float
    quality: float
    on: bool
    probability: float


@dataclass(frozen=True)
class Step:
    """From this much memory on, this variant is the best.

    Args:
        place: the variant.
        gain: its effect against the step before; ``None`` for the first.
    """

    place: Place
    gain: SliceResult | None


@dataclass(frozen=True)
class Across:
    """What a report of several runs is made of.

    Args:
        shared: variants on the items that all runs were asked.
        data: the report of each run.
        places: all variants with a size, by need.
        steps: the frontier, by need.
        context: tokens of the KV cache in ``need``; ``None`` where it is the weights alone.
        memory: what there is, in bytes; ``None`` where it was not said.
        chosen: the best that fits; ``None`` where nothing does, or no memory was given.
        lighter: the least of memory that is shown to stay within the margin of ``chosen``, or of
            the best of all; ``None`` where that is ``chosen`` itself.
        confidence, margin: of the first run's plan; the margin in accuracy, 0 to 1.
        notes: what a reader has to know.
    """

    shared: Shared
    data: tuple[ReportData, ...]
    places: tuple[Place, ...]
    steps: tuple[Step, ...]
    context: int | None
    memory: float | None
    chosen: Place | None
    lighter: Place | None
    confidence: float
    margin: float
    notes: tuple[str, ...]

    @property
    def best(self) -> Place:
        """The most accurate; of equals the least in need."""
        return max(self.places, key=lambda p: (p.quality, -p.need))


def parse_memory(text: str) -> float:
    """Bytes of ``"24GB"`` (decimal), ``"24GiB"`` (binary) or a plain number.

    >>> parse_memory("24GB"), parse_memory("1.5 GiB")
    (24000000000.0, 1610612736.0)

    Raises:
        PlanError: not of that form, or nothing.
    """
    found = _MEMORY.match(text)
    value = float(found[1]) if found else 0.0
    if not found or value <= 0:
        raise PlanError(f"{text!r} is no size of memory", hint="Write 24GB, 24GiB or 512MiB.")
    unit = (found[2] or "").lower()
    if not unit:
        return value
    return value * float(1024 if unit.endswith("i") else 1000) ** ("kmgt".index(unit[0]) + 1)


def _caches(runs: Sequence[Run]) -> tuple[int, list[dict[str, int]]] | None:
    """A context that every parent allows, and the bytes of one cache of it by run and variant."""
    shapes = []
    for run in runs:
        config = parent_config(run)
        try:
            shapes.append(cache_shape(config or {}))
        except PlanError:
            return None
    context = min([_CONTEXT, *(s.longest for s in shapes if s.longest)])
    return context, [
        {name: cache_bytes(shape, context, bits) for name, bits in run.kv_bits.items()}
        for run, shape in zip(runs, shapes, strict=True)
    ]


def _places(
    shared: Shared,
    data: Sequence[ReportData],
    caches: Sequence[Mapping[str, int]] | None,
    resamples: int,
) -> list[Place]:
    columns, sizes, needs = [], [], []
    for column, entrant in enumerate(shared.entrants):
        size = data[entrant.run].costs[entrant.variant].bytes
        if size:
            columns.append(column)
            sizes.append(size)
            needs.append(size + (caches[entrant.run][entrant.variant] if caches else 0))
    scores = shared.scores[:, columns]
    on = stats.pareto(np.array(needs), scores.mean(axis=0))
    rng = np.random.default_rng(0)
    sure = stats.frontier_probability(scores, np.array(needs), rng, resamples, shared.resampled)
    quality = scores.mean(axis=0)
    places = [
        Place(shared.entrants[c], c, sizes[i], needs[i], float(quality[i]), bool(on[i]), sure[i])
        for i, c in enumerate(columns)
    ]
    return sorted(places, key=lambda p: (p.need, -p.quality, p.entrant.label))


def _notes(shared: Shared, data: Sequence[ReportData], context: int | None) -> list[str]:
    common = len(shared.scores)
    notes = [f"Left out: {label}, as {why}." for label, why in shared.left_out.items()]
    for name, asked in zip(shared.names, shared.asked, strict=True):
        if asked > common:
            notes.append(f"{name} was asked {asked:,} items; {common:,} of them count here.")
    for name, one in zip(shared.names, data, strict=True):
        if one.served:
            notes.append(
                f"Of {name} without a place here, as sizes of endpoints are unknown: "
                f"{', '.join(one.served)}."
            )
    if context is None:
        notes.append("The KV cache could not be modelled for every run: memory is weights alone.")
    for name, one in zip(shared.names, data, strict=True):
        if not one.run.finished:
            notes.append(f"{name} is not finished.")
        if one.run.info["parent"].get("demonstration"):
            notes.append(f"The parent of {name} is a demonstration model, fit for nothing else.")
        if one.run.info["parent"].get("gridded"):
            notes.append(f"The parent of {name} comes from an already quantized file.")
    return notes


def _lighter(
    shared: Shared, places: Sequence[Place], best: Place, level: float, margin: float
) -> Place | None:
    """The least in need that is shown to lose less than ``margin`` against ``best``."""
    for place in places:
        if place.column == best.column or place.need >= best.need:
            return None
        effect = shared.effect(place.column, best.column, level)
        if effect.ci is not None and effect.ci[0] > -margin:
            return place
    return None


def across(runs: Sequence[Run], memory: float | None = None, resamples: int = 2000) -> Across:
    """Put the variants of several runs side by side.

    Args:
        runs: two or more.
        memory: what there is for weights and one cache, in bytes.
        resamples: for the probability of being on the frontier.

    Raises:
        ComparisonError: as ``shared_items``, or no variant has a size.
    """
    shared = shared_items(runs)
    data = tuple(collect(run, resamples) for run in runs)
    caches = _caches(runs)
    places = _places(shared, data, caches[1] if caches else None, resamples)
    plan = runs[0].recommend
    level, margin = plan.confidence, plan.margin_pp / 100
    steps: list[Step] = []
    for place in (p for p in places if p.on):
        before = steps[-1].place if steps else None
        if before is not None and place.quality <= before.quality:
            continue
        gain = shared.effect(place.column, before.column, level) if before else None
        steps.append(Step(place, gain))
    fitting = [p for p in places if memory is None or p.need <= memory]
    best = max(fitting, key=lambda p: (p.quality, -p.need), default=None)
    context = caches[0] if caches else None
    return Across(
        shared=shared,
        data=data,
        places=tuple(places),
        steps=tuple(steps),
        context=context,
        memory=memory,
        chosen=best if memory is not None else None,
        lighter=_lighter(shared, places, best, level, margin) if best else None,
        confidence=level,
        margin=margin,
        notes=tuple(_notes(shared, data, context)),
    )


def _told(found: Across, place: Place) -> str:
    return f"{place.entrant.label} ({bytes_text(place.need)}, accuracy {100 * place.quality:.1f} %)"


def answer(found: Across) -> str:
    """The answer in one or two sentences."""
    items = f"on the {len(found.shared.scores):,} items that all runs were asked"
    if found.memory is not None and found.chosen is None:
        least = found.places[0]
        return (
            f"Nothing fits {found.memory / 1e9:g} GB: the least, {_told(found, least)}, needs more."
        )
    if found.chosen is not None and found.memory is not None:
        top = found.chosen
        room = f"{found.memory / 1e9:g} GB"
        text = f"In {room}, {_told(found, top)} is the most accurate {items}."
    else:
        top = found.best
        text = f"{_told(found, top)} is the most accurate {items}."
    if found.lighter is not None:
        effect = found.shared.effect(found.lighter.column, top.column, found.confidence)
        text += (
            f" {_told(found, found.lighter)} is the least that is shown to stay within "
            f"{100 * found.margin:g} pp of it: {pp(effect.delta)} "
            f"({100 * found.confidence:g} % interval {interval_text(effect.ci)})."
        )
    return text


def across_tables(found: Across) -> dict[str, pd.DataFrame]:
    """``variants``: one row a variant. ``slices``: accuracy by slice of those on the frontier."""
    variants = pd.DataFrame(
        [
            {
                "run": found.shared.names[p.entrant.run],
                "parent": str(found.data[p.entrant.run].run.info["parent"].get("name")),
                "variant": p.entrant.variant,
                "bytes": p.bytes,
                "need_bytes": p.need,
                "context_tokens": found.context,
                "accuracy": p.quality,
                "on_frontier": p.on,
                "frontier_probability": p.probability,
            }
            for p in found.places
        ]
    )
    rows: list[dict[str, Any]] = []
    names = sorted({a for s in set(found.shared.slices) for a in slice_ancestors(str(s))})
    for name in names:
        inside = found.shared.rows(name)
        for step in found.steps:
            scores = found.shared.scores[inside, step.place.column]
            rows.append(
                {
                    "slice": name,
                    "items": int(inside.sum()),
                    "run": found.shared.names[step.place.entrant.run],
                    "variant": step.place.entrant.variant,
                    "accuracy": float(scores.mean()),
                }
            )
    return {"variants": variants, "slices": pd.DataFrame(rows)}
