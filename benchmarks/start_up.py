"""From the first import to the first request: evalq beside lm-eval, on the same task and model.

    python -m benchmarks.start_up --repeats 3

Each is a process of its own: it imports what it needs, finds the built-in suite's task of long
multiplications (of ``suites/``), builds the prompts of eight documents, loads the built-in parent
and cuts the prompts into batches. lm-eval finds tasks with its ``TaskManager``.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time

EVALQ = """
from evalq.run.warm import import_engine
import_engine()  # as `evalq run` does
from evalq.tasks.bridge import build
from evalq.models.load import load_parent
from evalq.models.hf import TransformersEngine
from evalq.plan import EnginePlan
tasks = build(["builtin-math:builtin_products_long"], limit=8)
plan = EnginePlan(device="cpu")
engine = TransformersEngine(load_parent("builtin", plan), plan)
assert engine.plan([r for t in tasks for r in t.requests])
"""
LM_EVAL = """
import os
os.chdir("suites/builtin")  # which its files are named from
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from lm_eval.tasks import get_task_dict
manager = TaskManager(include_path=".")
task = get_task_dict(["builtin_products_long"], manager)["builtin_products_long"]
task.build_all_requests(limit=8)
assert task.instances
from evalq.models.sources import builtin_path
HFLM(pretrained=str(builtin_path()), device="cpu", dtype="float32", batch_size=8)
"""


def once(code: str) -> tuple[float, float]:
    """Seconds by the clock and of the processor."""
    before, began = os.times(), time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    after = os.times()
    spent = after.children_user + after.children_system
    return time.perf_counter() - began, spent - before.children_user - before.children_system


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    found: dict[str, list[tuple[float, float]]] = {"evalq": [], "lm-eval": []}
    for _ in range(given.repeats + 1):
        for name, code in (("evalq", EVALQ), ("lm-eval", LM_EVAL)):
            found[name].append(once(code))
    # The first of each fills the file cache.
    rows = {
        name: [statistics.median(column) for column in zip(*times[1:], strict=True)]
        for name, times in found.items()
    }
    ratio = [a / b for a, b in zip(rows["evalq"], rows["lm-eval"], strict=True)]
    print(json.dumps({"seconds: clock, processor": rows, "ratio": ratio}))


if __name__ == "__main__":
    main()
