"""Operating characteristics as a table and as a plot."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from evalq.report.text import markdown_safe, visible
from evalq.store.files import atomic_write

if TYPE_CHECKING:
    from evalq.audit.operate import Characteristics

__all__ = ["characteristics", "write_characteristics"]

_OTHERS = ("PARENT-LIKE", "MIXED", "UNLISTED", "NOT_COMPARABLE", "UNDERPOWERED")


def characteristics(table: Characteristics) -> list[dict[str, Any]]:
    """A row an endpoint: how often each verdict, and the tokens it took (median, 90 %)."""
    rows = []
    for name in dict.fromkeys(a["endpoint"] for a in table.audits):
        mine = [a for a in table.audits if a["endpoint"] == name]
        counts: dict[str, int] = {}
        for audit in mine:
            counts[audit["verdict"]] = counts.get(audit["verdict"], 0) + 1
        tokens = [a["tokens"] for a in mine]
        shares = [a["share"] for a in mine if a["share"] is not None]
        rows.append(
            {
                "endpoint": name,
                "audits": len(mine),
                "verdicts": counts,
                "tokens_median": float(np.median(tokens)),
                "tokens_p90": float(np.quantile(tokens, 0.9)),
                "shares": shares,
            }
        )
    return rows


def _null_line(table: Characteristics) -> str:
    from evalq.audit.operate import ACCUSES, upper

    count = len(table.null)
    hits = sum(a["kind"] in ACCUSES for a in table.null)
    kinds = sorted({a["kind"] for a in table.null})
    told = ", ".join(f"{k} {sum(a['kind'] == k for a in table.null)}" for k in kinds)
    return (
        f"null: {table.null[0]['endpoint']}, left out of the calibration; {count:,} audits "
        f"resampled by prompt from recorded answers: {hits} accuse at alpha "
        f"{table.settings.alpha:g} (upper 95 % bound {upper(hits, count):.4f}); {told}"
    )


def _columns(table: Characteristics) -> list[str]:
    seen = {a["verdict"] for a in table.audits}
    return ["PARENT-LIKE", *table.names[1:], *(o for o in _OTHERS[1:] if o in seen)]


def write_characteristics(out: Path, table: Characteristics) -> list[str]:
    """Write ``characteristics.json``, ``.md`` and a plot (PNG, SVG); lines for the terminal."""
    rows = characteristics(table)
    columns = _columns(table)
    lines = [
        "| served | audits | "
        + " | ".join(markdown_safe(c) for c in columns)
        + " | tokens: median "
        "| 90 % |",
        "| --- | ---: |" + " ---: |" * (len(columns) + 2),
    ]
    for row in rows:
        cells = [str(row["verdicts"].get(c, 0) or "·") for c in columns]
        lines.append(
            f"| {markdown_safe(row['endpoint'])} | {row['audits']} | {' | '.join(cells)} | "
            f"{row['tokens_median']:,.0f} | {row['tokens_p90']:,.0f} |"
        )
    notes = _share_lines(rows)
    if table.null:
        notes.append(_null_line(table))
    data = {
        "format": 1,
        "settings": asdict(table.settings),
        "names": list(table.names),
        "rows": rows,
        "null": _null_counts(table),
    }
    with atomic_write(out / "characteristics.json") as stream:
        stream.write(json.dumps(data, indent=1).encode())
    with atomic_write(out / "characteristics.md") as stream:
        stream.write("\n".join([*lines, "", *notes, ""]).encode())
    _plot(out, rows, columns)
    return [*lines, *notes]


def _null_counts(table: Characteristics) -> dict[str, int]:
    kinds = sorted({str(a["kind"]) for a in table.null})
    return {k: sum(a["kind"] == k for a in table.null) for k in kinds}


def _share_lines(rows: list[dict[str, Any]]) -> list[str]:
    out = []
    for row in rows:
        if not row["endpoint"].startswith("mix ") or not row["shares"]:
            continue
        truth = float(row["endpoint"].split()[1])
        hits = sum(low <= truth <= high for _, low, high in row["shares"])
        out.append(
            f"{visible(row['endpoint'])}: named MIXED {len(row['shares'])} of {row['audits']} "
            f"times; the 95 % interval covers the share {hits} times"
        )
    return out


def _plot(out: Path, rows: list[dict[str, Any]], columns: list[str]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    grid = np.array([[r["verdicts"].get(c, 0) / r["audits"] for c in columns] for r in rows])
    size = (2.6 + 0.75 * len(columns), 1.8 + 0.38 * len(rows))
    figure, axes = plt.subplots(figsize=size, layout="constrained")
    axes.imshow(grid, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    axes.set_xticks(range(len(columns)), [_label(c) for c in columns], rotation=40, ha="right")
    axes.set_yticks(range(len(rows)), [_label(r["endpoint"]) for r in rows])
    axes.set_xlabel("verdict")
    axes.set_ylabel("served")
    for i, row in enumerate(rows):
        for j, column in enumerate(columns):
            count = row["verdicts"].get(column, 0)
            if count:
                ink = "white" if grid[i, j] > 0.55 else "black"
                axes.text(j, i, str(count), ha="center", va="center", color=ink, fontsize=9)
    for suffix in ("png", "svg"):
        figure.savefig(out / f"confusion.{suffix}", dpi=150)
    plt.close(figure)


def _label(name: str) -> str:
    """Matplotlib reads dollars as mathematics."""
    return visible(name).replace("$", r"\$")
