"""The page of a gate over releases, over gates that the gate itself wrote."""

import json
from pathlib import Path

import pandas as pd
import pytest

from evalq.compare import load_run
from evalq.errors import StoreError
from evalq.gate import gate, load_policy, write_outputs
from evalq.report.history import read_history
from evalq.report.history_page import render_history
from tests.report.test_render import HOSTILE, _Page
from tests.synthetic import change_info, write_run

V = "rtn-w4-g128"
POLICY = """policy_version: 1
metrics:
  accuracy: {margin_pp: 5.0}
slices:
  default: {margin_pp: 10.0, min_items: 50}
"""


def _release(path: Path, number: int, loss: float, policy: str = POLICY) -> Path:
    run = write_run(path / f"r{number}", number, (V,), 120, loss={V: loss})
    created = f"2026-0{9 - number}-01T00:00:00+00:00"
    change_info(run, name=f"release-{number}", created=created)
    file = path / f"policy-{number}.yaml"
    file.write_text(policy)
    write_outputs(gate(load_run(run), load_policy(file)), run / "gate")
    return run


def test_releases_come_in_the_order_of_their_dates(tmp_path: Path) -> None:
    for number, loss in ((1, 0.4), (2, 0.01), (3, 0.01)):
        _release(tmp_path, number, loss)
    found = read_history(tmp_path)
    assert [r.name for r in found] == ["release-3", "release-2", "release-1"]
    assert [r.verdict for r in found] == ["pass", "pass", "fail"]
    page = render_history(tmp_path)
    text = page.read_text()
    assert "The newest release, release-1: fail" in text
    assert "2 of 3 gated releases passed" in text
    assert "policy changed" not in text
    table = pd.read_csv(page.parent / "history.csv")
    overall = table[(table["slice"] == "overall") & (table["metric"] == "accuracy")]
    assert overall["verdict"].tolist() == ["pass", "pass", "fail"]
    assert overall["limit"].tolist() == [0.05] * 3
    # Rendering again finds the same releases: the page is none of them.
    assert render_history(tmp_path).read_text() == text


def test_a_change_of_policy_is_told(tmp_path: Path) -> None:
    _release(tmp_path, 2, 0.01)
    _release(tmp_path, 1, 0.01, POLICY.replace("5.0", "6.0"))
    assert "The policy changed with release-1" in render_history(tmp_path).read_text()


def test_a_gate_without_its_run_has_no_date(tmp_path: Path) -> None:
    run = _release(tmp_path, 1, 0.01)
    (run / "run.json").unlink()
    assert read_history(tmp_path)[0].created == ""
    assert "1 of 1 releases have no run.json" in render_history(tmp_path).read_text()


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"no gate\.json"):
        read_history(tmp_path)
    with pytest.raises(StoreError, match="no directory"):
        read_history(tmp_path / "absent")
    run = _release(tmp_path, 1, 0.01)
    path = run / "gate" / "gate.json"
    data = json.loads(path.read_text())
    path.write_text(json.dumps({**data, "format_version": 99}))
    with pytest.raises(StoreError, match="version 99"):
        read_history(tmp_path)
    for broken in ("{", "[]", json.dumps({**data, "variants": [1]})):
        path.write_text(broken)
        with pytest.raises(StoreError, match=r"no gate\.json of evalq"):
            read_history(tmp_path)


def test_hostile_gates_are_inert(tmp_path: Path) -> None:
    run = _release(tmp_path, 1, 0.4)
    path = run / "gate" / "gate.json"
    data = json.loads(path.read_text())
    data["run"] = HOSTILE[5]
    data["verdict"] = HOSTILE[0]
    data["policy"]["file"] = HOSTILE[1]
    for variant in data["variants"]:
        variant["variant"], variant["reasons"] = HOSTILE[2], [HOSTILE[1]]
        for check in variant["checks"]:
            check["slice"] = HOSTILE[1] + check["slice"]
    path.write_text(json.dumps(data))
    page = render_history(tmp_path)
    text = page.read_text()
    parser = _Page()
    parser.feed(text)
    assert parser.faults == []
    assert not parser.tags & {"img", "iframe"}
    assert "\u202e" not in text
    assert "=HYPERLINK" not in (page.parent / "history.csv").read_text()
