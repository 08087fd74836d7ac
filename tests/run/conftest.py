"""A tiny parent on disk and plans over it: the whole job in seconds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.models.tiny import byte_level_tokenizer, module


@pytest.fixture(scope="session")
def parent_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("parent") / "tiny"
    tokenizer = byte_level_tokenizer()
    module("llama", tokenizer, length=256).bfloat16().save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def workload(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("workload") / "mine.jsonl"
    rows: list[dict[str, Any]] = [
        {
            "prompt": f"{i} plus {i} is",
            "target": str(2 * i),
            "slice": f"sums/{'a' if i % 2 else 'b'}",
        }
        for i in range(12)
    ]
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


@pytest.fixture(scope="session")
def choices(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("workload") / "choices.jsonl"
    rows = [
        {"prompt": f"The number {i} is", "choices": ["odd", "even"], "answer": (i + 1) % 2}
        for i in range(24)
    ]
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


@pytest.fixture
def plan_data(parent_directory: Path, choices: Path, tmp_path: Path) -> dict[str, Any]:
    return {
        "parent": str(parent_directory),
        "workloads": [str(choices)],
        "variants": [
            {"method": "rtn", "bits": 4, "group_size": 32},
            {"method": "gptq", "bits": 3, "group_size": 32},
        ],
        "calibration": {"samples": 4, "length": 64},
        "fidelity": {"windows": 4, "length": 64},
        "cost": {"repeats": 1, "prefill_tokens": 8, "decode_tokens": 2},
        "engine": {"threads": 1},
        "out": str(tmp_path / "run"),
    }
