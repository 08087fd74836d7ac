"""What a run says of its speed, and what it keeps of what happened on the way."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from evalq.compare import load_run
from evalq.models.forward import Forward
from evalq.progress import NullProgress
from evalq.run import pace, resolve_plan, run_plan
from evalq.run.pace import Pace


def test_the_rest_takes_as_long_as_what_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([100.0, 400.0])
    monkeypatch.setattr(pace.time, "perf_counter", lambda: next(clock))
    told = Pace(4, began=0.0)
    said = told.told("parent", 1000, 50.0)
    assert said.startswith("parent: 1,000 items in 50 s (20.0 items/s); ")
    assert said.endswith("1 of 4 models asked, about 5 min for the others")
    assert told.told("rtn-w4", 10, 0.0).endswith("2 of 4 models asked, about 7 min for the others")
    told.asked = 3
    assert told.told("x", 1, 1.0).endswith("4 of 4 models asked")


class Notes(NullProgress):
    def __init__(self) -> None:
        self.said: list[str] = []

    def note(self, message: str) -> None:
        self.said.append(message)


def test_events_of_the_engine_are_in_the_run(
    plan_data: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lanes that compute something else are left, and the run says so of every model."""
    workload = tmp_path / "sums.jsonl"
    rows = [{"prompt": f"{i} plus {i} is", "target": str(2 * i), "max_tokens": 8} for i in range(9)]
    workload.write_text("".join(json.dumps(row) + "\n" for row in rows))
    plan_data |= {"cost": {"enabled": False}, "workloads": [str(workload)]}
    real = Forward.step_at
    monkeypatch.setattr(Forward, "step_at", lambda *a: real(*a) * 1.1)
    notes = Notes()
    run = load_run(run_plan(resolve_plan(plan_data), notes))
    labels = list(run.variants)
    told = [w for w in run.info["warnings"] if "over lanes gives other logits" in w]
    assert {w.partition(":")[0] for w in told} == {*labels, run.control}
    asked = [n for n in notes.said if "models asked" in n]
    assert len(asked) == len(labels) + 1
    assert f"{len(labels) + 1} of {len(labels) + 1}" in asked[-1]
