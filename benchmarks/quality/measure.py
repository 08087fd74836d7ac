"""Judge what peers left, each as soon as it is there.

    python -m benchmarks.quality.measure PARENT_DIR TEXTS OUT.jsonl DIR... [--watch SECONDS]

A DIR is judged once ``made.json`` is in it. With ``--watch``, directories that are not finished are
waited for; what is not there in time is left out.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks.quality import texts as stored
from benchmarks.quality.artifacts import made, tensors
from benchmarks.quality.evaluate import Judge
from benchmarks.quality.rows import append, load
from evalq.errors import EvalqError


def row_of(out: Path, judge: Judge, parent: str) -> dict[str, Any]:
    """The result line of one directory."""
    record = made(out)
    given = dict(record["settings"])
    bits, group, symmetric = (given.pop(k) for k in ("bits", "group", "symmetric"))
    found = judge.judge(judge.variant(tensors(out, record["tool"] == "auto-round")))
    settings = " ".join(f"{k}={v}" for k, v in given.items())
    row: dict[str, Any] = {
        "parent": parent,
        "scheme": f"w{bits}-g{group}-{'sym' if symmetric else 'asym'}",
        "tool": record["tool"],
        "label": f"{record['tool']} {record['version']} {settings}".strip(),
        "seconds": record["seconds"],
    }
    return row | {name: asdict(quality) for name, quality in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parent", type=Path)
    parser.add_argument("texts", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("directories", type=Path, nargs="+")
    parser.add_argument("--watch", type=float, default=0.0)
    given = parser.parse_args()
    texts = stored.read(given.texts)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    judge = Judge(load(given.parent, device), {"near": texts.near, "other": texts.other})
    waiting = list(given.directories)
    end = time.monotonic() + given.watch
    while waiting:
        for out in [d for d in waiting if (d / "made.json").is_file()]:
            waiting.remove(out)
            try:
                append(given.out, row_of(out, judge, str(texts.record["parent"])))
            except EvalqError as error:
                # One peer's unreadable file must not cost the others theirs.
                print(f"{out}: {error}")
        if time.monotonic() > end:
            break
        if waiting:
            time.sleep(1.0)
    for out in waiting:
        print(f"not there: {out}")


if __name__ == "__main__":
    main()
