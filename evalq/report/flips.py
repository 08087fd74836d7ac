"""The items that changed: which, in what order, and packed for the browser in the report."""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from evalq.compare import Comparison, Run
from evalq.report.text import clip, visible

__all__ = ["FlipPack", "flips_of", "pack_flips", "with_texts"]

PROMPT = (240, 560)
ANSWER = (420, 280)
"""Characters kept of the start and the end of a prompt, and of an answer or target."""


def flips_of(comparisons: Mapping[str, Comparison], baseline: str) -> pd.DataFrame:
    """All flips of all variants, worst slices first (by the mean loss over the variants).

    Columns: ``variant``, ``slice``, ``task``, ``item_id``, ``direction`` ("lost" or "gained"),
    ``baseline_score``, ``variant_score``, ``baseline_row``, ``variant_row`` (of ``Run.items``).
    """
    parts = []
    losses: dict[str, list[float]] = {}
    for name, comparison in comparisons.items():
        if name == baseline:
            continue
        scored = comparison.pairs.scored
        changed = scored[scored["baseline_score"] != scored["variant_score"]]
        part = changed[["slice", "task", "item_id", "baseline_score", "variant_score"]].copy()
        part["baseline_row"], part["variant_row"] = changed["baseline_row"], changed["variant_row"]
        part.insert(0, "variant", name)
        parts.append(part)
        for leaf in comparison.leaves:
            losses.setdefault(leaf.slice, []).append(leaf.delta)
    if not parts:
        columns = ["variant", "slice", "task", "item_id", "direction", "baseline_score"]
        return pd.DataFrame(columns=[*columns, "variant_score", "baseline_row", "variant_row"])
    out = pd.concat(parts, ignore_index=True)
    lost = out["variant_score"] < out["baseline_score"]
    out.insert(4, "direction", np.where(lost, "lost", "gained"))
    rank = {s: i for i, s in enumerate(sorted(losses, key=lambda s: (np.mean(losses[s]), s)))}
    order = pd.DataFrame(
        {
            "rank": out["slice"].map(rank).astype(int),
            "gained": ~lost,
            "item": out["baseline_row"],
            "variant": out["variant"].map({v: i for i, v in enumerate(comparisons)}),
        }
    )
    index = order.sort_values(list(order.columns), kind="stable").index
    return out.loc[index].reset_index(drop=True)


def with_texts(run: Run, flips: pd.DataFrame) -> pd.DataFrame:
    """``flips`` with ``prompt``, ``target``, ``baseline_response``, ``variant_response``, whole."""
    out = flips.drop(columns=["baseline_row", "variant_row"])
    base = flips["baseline_row"].to_numpy(dtype=np.int64)
    ours = flips["variant_row"].to_numpy(dtype=np.int64)
    for name in ("prompt", "target"):
        out[name] = run.items[name].take(base).to_numpy()
    out["baseline_response"] = run.items["response"].take(base).to_numpy()
    out["variant_response"] = run.items["response"].take(ours).to_numpy()
    return out


@dataclass(frozen=True)
class FlipPack:
    """Flips for the page.

    Args:
        meta: names and, for each chunk, its slice and its size; JSON-able.
        chunks: base64 of gzipped JSON ``{"items": [[task, id, prompt, target, answer]…],
            "flips": [[variant, lost, item, answer]…]}``.
        head: the first few flips with texts, for readers without scripts.
        shown, total: flips in ``chunks`` and in the run.
    """

    meta: Mapping[str, Any]
    chunks: tuple[str, ...]
    head: pd.DataFrame
    shown: int
    total: int


def _cap(flips: pd.DataFrame, limit: int) -> pd.DataFrame:
    """At most ``limit`` flips, as many of each (variant, slice, direction) as can be, evenly."""
    if len(flips) <= limit:
        return flips
    cell = flips.groupby(["variant", "slice", "direction"], observed=True, sort=False)
    number = cell.cumcount().to_numpy()
    sizes = cell.size().to_numpy()
    low, high = 1, int(sizes.max())
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (
            (middle, high) if np.minimum(sizes, middle).sum() <= limit else (low, middle - 1)
        )
    return flips[number < low].head(limit)


def _chunk(part: pd.DataFrame, variants: Mapping[str, int]) -> str:
    items: dict[tuple[str, str], int] = {}
    listed: list[list[str]] = []
    rows: list[list[Any]] = []
    for row in part.itertuples(index=False):
        key = (str(row.task), str(row.item_id))
        if key not in items:
            items[key] = len(listed)
            texts = (
                clip(str(row.prompt), *PROMPT),
                clip(str(row.target), *ANSWER),
                clip(str(row.baseline_response), *ANSWER),
            )
            listed.append([visible(t) for t in (*key, *texts)])
        answer = visible(clip(str(row.variant_response), *ANSWER))
        lost = 1 if row.direction == "lost" else 0
        rows.append([variants[str(row.variant)], lost, items[key], answer])
    body = json.dumps({"items": listed, "flips": rows}, ensure_ascii=False, separators=(",", ":"))
    packed = gzip.compress(body.encode("utf-8", "replace"), 6, mtime=0)
    return base64.b64encode(packed).decode("ascii")


def pack_flips(
    run: Run,
    flips: pd.DataFrame,
    preferred: str = "",
    limit: int = 10_000,
    budget: int = 3_000_000,
) -> FlipPack:
    """Pack at most ``limit`` flips into chunks of one slice each, of ``budget`` bytes in all.

    Args:
        preferred: the variant that the browser shows first; ``""`` for all.
    """
    variants = {v: i for i, v in enumerate(run.variants)}
    while True:
        chosen = with_texts(run, _cap(flips, limit))
        chunks, sizes = [], []
        for name, group in chosen.groupby("slice", sort=False, observed=True):
            for start in range(0, len(group), 400):
                part = group.iloc[start : start + 400]
                chunks.append(_chunk(part, variants))
                kinds = [
                    [variants[str(v)], int(d == "lost")]
                    for v, d in zip(part["variant"], part["direction"], strict=True)
                ]
                sizes.append({"slice": visible(str(name)), "kinds": kinds})
        if sum(map(len, chunks)) <= budget or limit <= 100:
            break
        limit //= 2
    meta = {
        "variants": [visible(v) for v in run.variants],
        "preferred": variants.get(preferred, -1),
        "chunks": sizes,
    }
    return FlipPack(meta, tuple(chunks), chosen.head(40), len(chosen), len(flips))
