"""Scores of a finished run beside lm-eval's own (HFLM), on the same tasks and the same files.

    python -m benchmarks.lm_eval_agreement runs/demo gptq-w4-g128 [--limit 40]

lm-eval loads the parent's directory and the artifact's directory itself (transformers, with
compressed-tensors for the artifact), in float32, asks and scores; every item's score is then held
against the run's item records.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from lm_eval import evaluator
from lm_eval.models.huggingface import HFLM

from evalq.schema import ItemRecord
from evalq.store import read_table
from evalq.tasks import load_suite
from evalq.tasks.load import load_task


def tasks_of(info: dict) -> tuple[dict, dict]:
    tasks, wanted = {}, {}
    for suite in info["suites"]:
        if suite["name"] == "workload":
            continue
        listed = {t["task"]: t for t in suite["tasks"]}
        for entry in load_suite(suite["name"]).tasks:
            if entry.task in listed:
                data = Path(info["plan"]["data_dir"]) if info["plan"]["data_dir"] else None
                tasks[entry.task] = load_task(entry, data).task
                wanted[entry.task] = listed[entry.task]
    return tasks, wanted


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("variant")
    parser.add_argument("--limit", type=int, default=None)
    given = parser.parse_args()
    info = json.loads((given.run / "run.json").read_text())
    rows = read_table(given.run / "items.parquet", ItemRecord).to_pylist()
    for label in ("parent", given.variant):
        path = next(v["path"] for v in info["variants"] if v["name"] == label)
        tasks, wanted = tasks_of(info)
        lm = HFLM(pretrained=path, dtype="float32", batch_size=64, device="cpu")
        with torch.inference_mode():
            out = evaluator.evaluate(
                lm, {"tasks": tasks, "groups": {}, "group_map": {}}, limit=given.limit,
                bootstrap_iters=0,
            )  # fmt: skip
        ours = {(r["task"], r["item_id"]): r for r in rows if r["variant"] == label}
        total = same = 0
        for task, samples in out["samples"].items():
            metric, kept = wanted[task]["metric"], wanted[task]["filter"]
            theirs = [s for s in samples if s["filter"] == kept]
            equal = sum(float(s[metric]) == ours[task, str(s["doc_id"])]["score"] for s in theirs)
            total, same = total + len(theirs), same + equal
            mean = sum(float(s[metric]) for s in theirs) / len(theirs)
            mine = sum(ours[task, str(s["doc_id"])]["score"] for s in theirs) / len(theirs)
            print(
                f"{label:14s} {task:36s} lm-eval {mean:.4f} evalq {mine:.4f} "
                f"items {equal}/{len(theirs)}"
            )
        print(f"{label}: {same} of {total} item scores are equal", flush=True)


if __name__ == "__main__":
    main()
