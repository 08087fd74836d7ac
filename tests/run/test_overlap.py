"""A run never calibrates on what it evaluates without saying so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from evalq.errors import PlanError
from evalq.report.render import render
from evalq.run import resolve_plan, run_plan


def test_overlap_is_refused_and_allowed_overlap_is_reported(
    plan_data: dict[str, Any], choices: Path
) -> None:
    data = {**plan_data, "cost": {"enabled": False}, "control": {"enabled": False}}
    mixture = {f"workload:{choices}": 0.5, "auto": 0.5}
    data["calibration"] = {"samples": 4, "length": 64, "source": mixture}
    with pytest.raises(PlanError, match="24 of the 24 items"):
        run_plan(resolve_plan(data))
    assert not list(Path(data["out"]).glob("artifacts/*"))
    data["calibration"] = {**data["calibration"], "allow_overlap": True}
    path = run_plan(resolve_plan(data))
    info = json.loads((path / "run.json").read_text())
    said = [w for w in info["warnings"] if "24 of the 24 evaluated items" in w]
    assert len(said) == 1
    assert info["calibration"]["overlap"]["items"] == 24
    parts = info["variants"][2]["calibration"]["parts"]
    assert [(p["share"], p["windows"]) for p in parts] == [(0.5, 2), (0.5, 2)]
    # Said once of the run, and not again of each variant; each artifact carries it all the same.
    assert not any("24 of the 24" in w for row in info["variants"] for w in row["warnings"])
    manifest = Path(info["variants"][2]["path"]) / "evalq-manifest.json"
    assert any("24 of the 24" in w for w in json.loads(manifest.read_text())["warnings"])
    page = render(path).read_text(encoding="utf-8")
    assert "24 of the 24 evaluated items" in page
