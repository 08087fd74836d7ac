"""The verb report: a stored run becomes a page, figures, tables and summaries."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from evalq.compare import load_run
from evalq.report.exports import write_exports
from evalq.report.figures import FIGURES, Figure, save_figures
from evalq.report.flips import flips_of, pack_flips, with_texts
from evalq.report.frames import collect
from evalq.report.html import page
from evalq.report.summary import markdown, summary
from evalq.report.tables import tables
from evalq.report.text import csv_safe
from evalq.store.files import RunDirectory, atomic_write

__all__ = ["csv_text", "render", "write_csv"]

CSV_FLIPS = 20_000
"""Flips in ``flips.csv``; ``flips.parquet`` has all."""


def _write(path: Path, text: str) -> None:
    with atomic_write(path) as stream:
        stream.write(text.encode("utf-8", "replace"))


def csv_text(frame: pd.DataFrame) -> str:
    """A table as CSV, with texts that a spreadsheet would run defused."""
    columns = {}
    for name in frame.columns:
        values = frame[name]
        if not pd.api.types.is_numeric_dtype(values):
            values = pd.Series([csv_safe(v) for v in values.astype(object)], dtype=object)
        columns[str(csv_safe(str(name)))] = values.to_numpy()
    return pd.DataFrame(columns).to_csv(index=False, lineterminator="\n")


def write_csv(path: Path, frame: pd.DataFrame) -> None:
    """Write a table as CSV that no spreadsheet runs.

    Raises:
        StoreError: the disk is full or cannot be written.
    """
    _write(path, csv_text(frame))


def render(
    run: Path,
    figures: Sequence[Figure] = FIGURES,
    price_per_hour: float | None = None,
    style: str = "paper",
) -> Path:
    """Render a run directory and return the path of ``report/index.html``.

    Beside it are ``summary.json``, ``summary.md``, ``tables/*.csv``, ``tables/flips.parquet``,
    ``figures/*.png``, ``*.svg`` and ``*.pdf``, and ``exports/`` (a model card section, lm-eval's
    results). The same run gives the same bytes.

    Args:
        run: a run directory, finished or not.
        figures: which figures to draw.
        price_per_hour: dollars an hour of the machine that was measured; the plan's own if
            ``None``.
        style: of the figures: ``paper``, ``slide`` or ``dark``.

    Raises:
        StoreError: no run directory, or the disk is full or cannot be written.
        ComparisonError: variants that were not asked the same items.
    """
    opened = load_run(run)
    data = collect(opened, price_per_hour=price_per_hour)
    out = RunDirectory(opened.path).report
    flips = flips_of(data.comparisons, opened.parent)
    for name, frame in tables(data).items():
        write_csv(out / "tables" / f"{name}.csv", frame)
    if len(flips):
        whole = with_texts(opened, flips)
        write_csv(out / "tables" / "flips.csv", whole.head(CSV_FLIPS))
        with atomic_write(out / "tables" / "flips.parquet") as stream:
            whole.to_parquet(stream, index=False)
        del whole
    save_figures(data, out / "figures", figures, style)
    content = json.dumps(summary(data), indent=2, ensure_ascii=False, allow_nan=False)
    _write(out / "summary.json", content + "\n")
    _write(out / "summary.md", markdown(data))
    write_exports(data, out / "exports")
    path = out / "index.html"
    _write(path, page(data, pack_flips(opened, flips, data.recommendation.variant)))
    return path
