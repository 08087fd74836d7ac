"""What other tools read: a section for a model card, and lm-eval's own layout of results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from evalq.report.frames import ReportData
from evalq.report.summary import variant_table
from evalq.report.text import markdown_safe, visible
from evalq.report.words import headline, limits
from evalq.store.files import atomic_write

__all__ = ["lm_eval_results", "model_card", "write_exports"]


def _task_means(data: ReportData, variant: str) -> list[Any]:
    """Mean score, standard error and count of each (task, metric, filter) of a variant.

    Rows of ``task``, ``task_version``, ``metric``, ``filter``, ``score``, ``error``, ``items``.
    """
    rows = data.run.items.iloc[data.run.rows[variant]]
    scored = rows[rows["score"].notna()]
    keys = ["task", "task_version", "metric", "filter"]
    found = scored.groupby(keys, observed=True)["score"].agg(["mean", "sem", "count"])
    found.columns = pd.Index(["score", "error", "items"])
    return list(found.reset_index().itertuples(index=False))


def model_card(data: ReportData, variant: str) -> str:
    """A section for the model card of a variant: ``model-index`` metadata and a table.

    Names are YAML scalars in the metadata and escaped in the Markdown.
    """
    results: list[dict[str, Any]] = [
        {
            "task": {"type": "text-generation"},
            "dataset": {"name": visible(str(row.task)), "type": visible(str(row.task))},
            "metrics": [
                {
                    "type": visible(str(row.metric)),
                    "value": round(float(row.score), 6),
                    "name": visible(f"{row.metric} ({row.filter})"),
                }
            ],
        }
        for row in _task_means(data, variant)
    ]
    index = {"model-index": [{"name": visible(variant), "results": results}]}
    text = yaml.safe_dump(index, sort_keys=False, allow_unicode=True)
    lines = ["---", text.rstrip(), "---", "", "## Evaluation against the parent", ""]
    lines += [markdown_safe(headline(data)), "", *variant_table(data), ""]
    lines += [f"- {markdown_safe(limit)}" for limit in limits(data)]
    return "\n".join(lines) + "\n"


def lm_eval_results(data: ReportData, variant: str) -> dict[str, Any]:
    """Scores of a variant in the layout of lm-eval's ``results.json``.

    Only what the item records hold: the primary metric of each task, with the standard error of a
    mean of independent items.
    """
    results: dict[str, dict[str, Any]] = {}
    samples: dict[str, dict[str, int]] = {}
    versions: dict[str, str] = {}
    for row in _task_means(data, variant):
        task = str(row.task)
        error = float(row.error) if row.items > 1 else "N/A"
        entry = results.setdefault(task, {"alias": task})
        entry[f"{row.metric},{row.filter}"] = float(row.score)
        entry[f"{row.metric}_stderr,{row.filter}"] = error
        samples[task] = {"original": int(row.items), "effective": int(row.items)}
        versions[task] = str(row.task_version)
    info = data.run.info
    return {
        "results": results,
        "versions": versions,
        "n-samples": samples,
        "config": {"model": "evalq", "model_args": variant, "limit": info["plan"].get("limit")},
        "git_hash": info.get("git_commit"),
        "model_name": variant,
    }


def write_exports(data: ReportData, directory: Path) -> None:
    """Write ``model_card.md`` of the recommended variant and ``lm_eval/*.json`` of all.

    Raises:
        StoreError: the disk is full or cannot be written.
    """
    if data.recommendation.variant in data.comparisons:
        with atomic_write(directory / "model_card.md") as stream:
            stream.write(model_card(data, data.recommendation.variant).encode("utf-8", "replace"))
    for number, name in enumerate(data.comparisons):
        content = json.dumps(lm_eval_results(data, name), indent=2, ensure_ascii=False)
        # Numbered: a label may hold what no file name can.
        with atomic_write(directory / "lm_eval" / f"results_{number:02d}.json") as stream:
            stream.write(content.encode("utf-8", "replace") + b"\n")
