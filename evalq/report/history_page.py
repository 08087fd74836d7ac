"""The page of a gate over releases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from evalq.report.history import Release, history_table, read_history
from evalq.report.html import fill
from evalq.report.render import write_csv
from evalq.report.svg import element, linear, mark, root, text
from evalq.report.text import interval_text, pp, short, visible
from evalq.store.files import atomic_write

__all__ = ["render_history"]

SHOWN = 30
"""Releases on the page, the newest; the table on disk has all."""

SIGNS = {"pass": "✓", "fail": "✗", "inconclusive": "?", "not certified": "–"}
_SHAPES = {"pass": "circle", "fail": "cross", "inconclusive": "diamond"}


def _kind(verdict: str) -> str:
    return {"pass": "pass", "fail": "fail", "inconclusive": "open"}.get(verdict, "none")


def _names(releases: Sequence[Release]) -> list[str]:
    """The run's name, and the date where one name occurs twice."""
    names = [r.name for r in releases]
    return [
        visible(f"{n} {r.created[:10]}" if names.count(n) > 1 and r.created else n)
        for n, r in zip(names, releases, strict=True)
    ]


def _tip(check: Mapping[str, Any], name: str) -> str:
    lines = [name, f"{check['slice']}, {check['metric']}: {check['verdict']}"]
    estimate, ci, limit = check.get("estimate"), check.get("ci"), check.get("limit")
    if check.get("kind") == "margin" and estimate is not None:
        lines.append(f"{pp(estimate)} ({interval_text(tuple(ci) if ci else None)})")
        lines.append(f"margin {pp(-limit)}" if limit is not None else "")
    elif estimate is not None:
        lines.append(f"{estimate:.4g}" + (f", limit {limit:g}" if limit is not None else ""))
    return visible("\n".join(line for line in lines if line))


def _trend(variant: str, releases: Sequence[Release], names: Sequence[str], width: float) -> Markup:
    """The pooled change of accuracy of one variant, release by release, with its margin."""
    checks = [r.check(variant, "overall", "accuracy") for r in releases]
    seen = [(i, c) for i, c in enumerate(checks) if c and c.get("estimate") is not None]
    if not seen:
        return Markup("")
    values = [float(c["estimate"]) for _, c in seen]
    values += [float(e) for _, c in seen for e in c.get("ci") or ()]
    limits = {i: -float(c["limit"]) for i, c in seen if c.get("limit") is not None}
    reach = [0.0, *values, *limits.values()]
    span = (max(reach) - min(reach)) or 0.02
    height = 220.0
    left, top, right, bottom = 58.0, 16.0, width - 16.0, height - 34.0
    y = linear((min(reach) - 0.08 * span, max(reach) + 0.08 * span), (bottom, top))
    step = (right - left) / len(releases)
    body = []
    for tick in y.ticks:
        at = y.to(tick)
        kind = "axis" if tick == 0 else "grid"
        body.append(element("line", x1=left, x2=right, y1=at, y2=at, class_=kind))
        label = f"{100 * tick:+g}".replace("-", "−") if tick else "0"
        body.append(text(left - 8, at + 4, label, "tick", text_anchor="end"))
    every = max(1, round(90 / step))
    for i, name in enumerate(names):
        if i % every == 0:
            at = left + step * (i + 0.5)
            body.append(text(at, height - 12, short(name, 14), "tick", text_anchor="middle"))
    for i, limit in limits.items():
        ends = (left + step * i, left + step * (i + 1))
        body.append(
            element("line", x1=ends[0], x2=ends[1], y1=y.to(limit), y2=y.to(limit), class_="floor")
        )
    for i, check in seen:
        at = left + step * (i + 0.5)
        parts = element("title", _tip(check, names[i]))
        if check.get("ci"):
            low, high = (y.to(float(e)) for e in check["ci"])
            parts += element("line", x1=at, x2=at, y1=low, y2=high, class_="bar")
        shape = _SHAPES.get(str(check["verdict"]), "square")
        parts += mark(shape, at, y.to(float(check["estimate"])), 5.5)
        body.append(element("g", parts, class_=f"pt v-{_kind(check['verdict'])}", tabindex=0))
    return root((width, height), f"Change of accuracy of {variant} by release", body, "chart")


def _matrix(releases: Sequence[Release], names: Sequence[str]) -> list[dict[str, Any]]:
    """A row a (variant, slice, metric), those that fail in the newest release first."""
    keys: dict[tuple[str, str, str], None] = {}
    for release in releases:
        for judged in release.variants:
            for each in judged["checks"]:
                keys[(str(judged["variant"]), str(each["slice"]), str(each["metric"]))] = None
    rows: list[dict[str, Any]] = []
    for variant, slice_, metric in keys:
        cells = []
        for release, name in zip(releases, names, strict=True):
            check = release.check(variant, slice_, metric)
            verdict = str(check["verdict"]) if check else ""
            cells.append(
                {
                    "verdict": visible(verdict) or "not judged",
                    "sign": SIGNS.get(verdict, ""),
                    "kind": _kind(verdict) if verdict else "none",
                    "tip": _tip(check, name) if check else "",
                }
            )
        rows.append(
            {
                "variant": visible(variant),
                "slice": visible(slice_),
                "metric": visible(metric),
                "cells": cells,
            }
        )
    order = {"fail": 0, "open": 1, "none": 2, "pass": 3}
    rows.sort(key=lambda r: order[r["cells"][-1]["kind"]])
    return rows


def _sentence(releases: Sequence[Release], names: Sequence[str]) -> str:
    newest = releases[-1]
    passed = sum(r.verdict == "pass" for r in releases)
    text = f"The newest release, {names[-1]}: {visible(newest.verdict)}. "
    text += f"{passed} of {len(releases)} gated releases passed"
    bad = [v for v in newest.variants if v["verdict"] != "pass"]
    if bad and bad[0].get("reasons"):
        return f"{text}. {visible(str(bad[0]['variant']))}: {visible(str(bad[0]['reasons'][0]))}."
    return text + "."


def _changes(releases: Sequence[Release], names: Sequence[str]) -> list[str]:
    out = [
        f"The policy changed with {name}: verdicts before and after are by different rules."
        for before, now, name in zip(releases, releases[1:], names[1:], strict=False)
        if before.policy[1] != now.policy[1]
    ]
    undated = sum(not r.created for r in releases)
    if undated:
        out.append(
            f"{undated} of {len(releases)} releases have no run.json beside them and come first."
        )
    return out


def render_history(directory: Path, out: Path | None = None) -> Path:
    """Render the gated runs under ``directory`` and return the page's path; ``history.csv`` has
    every check of every release.

    Args:
        directory: searched for ``gate.json``.
        out: ``history`` in the directory if ``None``.

    Raises:
        StoreError: as ``read_history``, or the disk cannot be written.
    """
    every = read_history(directory)
    out = directory / "history" if out is None else out
    shown = every[-SHOWN:]
    names = _names(shown)
    variants = list(dict.fromkeys(str(v["variant"]) for r in shown for v in r.variants))
    content = fill(
        "history.html.j2",
        title=visible(directory.resolve().name),
        sentence=_sentence(shown, names),
        changes=_changes(shown, names),
        names=names,
        releases=[
            {
                "name": name,
                "created": visible(r.created)[:10] or "unknown",
                "verdict": visible(r.verdict),
                "kind": _kind(r.verdict),
                "policy": visible(f"{r.policy[0]} · {r.policy[1][:12]}"),
                "variants": [
                    {"name": visible(str(v["variant"])), "verdict": visible(str(v["verdict"]))}
                    for v in r.variants
                ],
            }
            for name, r in zip(names, shown, strict=True)
        ],
        trends=[
            {
                "name": visible(v),
                "wide": _trend(v, shown, names, 1120.0),
                "narrow": _trend(v, shown, names, 380.0),
            }
            for v in variants
        ],
        rows=_matrix(shown, names),
        older=len(every) - len(shown),
    )
    write_csv(out / "history.csv", history_table(every))
    with atomic_write(out / "index.html") as stream:
        stream.write(content.encode("utf-8", "replace"))
    return out / "index.html"
