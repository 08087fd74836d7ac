"""A run in the terminal: tables and the frontier as a line; control characters are shown."""

from __future__ import annotations

import pandas as pd
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from evalq.compare import Comparison, SliceResult
from evalq.report.frames import ReportData
from evalq.report.text import bytes_text, clip, p_text, pp, visible
from evalq.report.words import banners, headline, unevenness_text

__all__ = ["comparison_view", "flip_view", "run_view", "sparkline"]

BARS = "▁▂▃▄▅▆▇█"


def safe(text: str, style: str = "") -> Text:
    """Text of others: no markup, no control sequences."""
    return Text(visible(text), style=style)


def sparkline(values: list[float]) -> str:
    """Values as bars of eight heights, the lowest to the highest.

    >>> sparkline([0.0, 0.5, 1.0])
    '▁▅█'
    """
    if not values:
        return ""
    low, span = min(values), (max(values) - min(values)) or 1.0
    return "".join(BARS[min(7, int(8 * (v - low) / span))] for v in values)


def _plain_table(*columns: tuple[str, int, bool]) -> Table:
    """A table without rules; a column is its name, its widest, and whether it is a number."""
    table = Table(box=None, header_style="dim", pad_edge=False, padding=(0, 1, 0, 0))
    for name, width, number in columns:
        table.add_column(
            safe(name),
            justify="right" if number else "left",
            max_width=width,
            no_wrap=True,
            overflow="ellipsis",
        )
    return table


def _effect(result: SliceResult) -> Text:
    if result.ci is None:
        return Text(pp(result.delta).removesuffix(" pp"))
    ends = ", ".join(pp(c).removesuffix(" pp") for c in result.ci)
    return Text.assemble(pp(result.delta).removesuffix(" pp") + " ", (f"[{ends}]", "dim"))


def _variants(data: ReportData, width: int) -> Table:
    room = max(0, width - 80)
    more = [("KL", 8, True), ("frontier", 8, True)] if room >= 20 else []
    table = _plain_table(
        ("variant", 20 + room // 2, False),
        ("size", 8, True),
        ("accuracy", 8, True),
        ("change, pp", 20, True),
        ("worst slice", 20 + room // 2, False),
        *more,
    )
    for name in data.costs:
        comparison = data.comparisons.get(name)
        overall = comparison.overall if comparison else None
        worst = comparison.worst(data.run.recommend.min_items) if comparison else None
        is_parent = name == data.run.parent
        point = next((p for p in data.frontiers["bytes"].points if p.variant == name), None)
        chosen = name == data.recommendation.variant
        cells: list[RenderableType] = [
            safe(("▸ " if chosen else "  ") + name, "bold green" if chosen else ""),
            data.size_text(name),
            f"{100 * overall.accuracy:.1f} %" if overall else "–",
            _effect(overall) if overall and not is_parent else "–",
            safe(f"{pp(worst.delta)} {worst.slice}") if worst and not is_parent else "–",
        ]
        if more:
            on = "●" if point and point.on_frontier else " "
            cells.append(data.kl_text(name))
            cells.append(f"{point.probability:.2f}{on}" if point else "–")
        table.add_row(*cells)
    return table


def run_view(data: ReportData, width: int = 80) -> RenderableType:
    """The verdict, the variants and the frontier of a run, for so many columns."""
    points = sorted(data.frontiers["bytes"].points, key=lambda p: p.cost)
    on = [p for p in points if p.on_frontier]
    parts: list[RenderableType] = [
        Panel(safe(headline(data), "bold"), border_style="green", title=safe(data.run.info["name"]))
    ]
    parts += [safe(f"! {text}", "yellow") for text in banners(data)]
    parts += [Text(""), _variants(data, width), Text("")]
    if len(on) > 1:
        line = sparkline([p.quality for p in on])
        span = f"{bytes_text(on[0].cost)} to {bytes_text(on[-1].cost)}"
        names = " → ".join(p.variant for p in on)
        parts.append(safe(f"frontier {line}  accuracy by size, {span}: {names}"))
    parts += [safe(f"unevenness: {text}") for text in unevenness_text(data)[:1]]
    parts.append(safe(data.recommendation.why, "dim"))
    return Group(*parts)


def comparison_view(comparison: Comparison) -> RenderableType:
    """Every slice of one comparison, worst first."""
    table = _plain_table(
        ("slice", 24, False),
        ("items", 7, True),
        (comparison.baseline, 8, True),
        ("change, pp", 20, True),
        ("lost/gained", 11, True),
        ("p", 7, True),
        ("Holm", 7, True),
    )
    ordered = sorted(comparison.slices.values(), key=lambda s: (s.delta, s.slice))
    for result in [*([comparison.overall] if comparison.overall else []), *ordered]:
        table.add_row(
            safe(result.slice, "" if result.leaf else "bold"),
            str(result.items),
            f"{100 * result.parent_accuracy:.1f}",
            _effect(result),
            f"{result.lost}/{result.gained}",
            p_text(result.p_worse),
            p_text(result.p_holm),
        )
    parts: list[RenderableType] = [table]
    for name, found in comparison.perplexity.items():
        ends = "no interval" if found.ci is None else f"{found.ci[0]:.4f} to {found.ci[1]:.4f}"
        parts.append(safe(f"perplexity ratio on {name}: {found.ratio:.4f} ({ends})"))
    return Group(*parts)


def flip_view(flips: pd.DataFrame, baseline: str, variant: str) -> RenderableType:
    """Flips with their prompts and both answers."""
    parts: list[RenderableType] = []
    for row in flips.itertuples(index=False):
        style = "red" if row.direction == "lost" else "cyan"
        head = f"{row.direction} · {row.slice} · {row.task} · item {row.item_id}"
        body = Group(
            safe(clip(str(row.prompt), 300, 500)),
            Text(""),
            Text.assemble(("expected  ", "dim"), safe(clip(str(row.target), 400))),
            Text.assemble(
                (f"{visible(baseline)}  ", "dim"), safe(clip(str(row.baseline_response), 300, 300))
            ),
            Text.assemble(
                (f"{visible(variant)}  ", "dim"), safe(clip(str(row.variant_response), 300, 300))
            ),
        )
        parts.append(Panel(body, title=safe(head), title_align="left", border_style=style))
    return Group(*parts)
