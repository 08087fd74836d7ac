from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from evalq import stats
from evalq.compare import Run, load_run
from evalq.gate import gate, parse_policy
from evalq.gate.advise import draft_policy, policy_problems, resolutions
from tests.gate.conftest import FAIR, GOOD, POLICY, edit_items
from tests.synthetic import write_run


def test_problems(run: Run) -> None:
    assert policy_problems(parse_policy(POLICY, "P.yaml"), run) == []
    text = POLICY.replace("  math:", "  maths:").replace("reasoning]", "resoning]")
    problems = policy_problems(parse_policy(text, "P.yaml"), run)
    assert [p.split(": ")[0] for p in problems] == ["P.yaml:10", "P.yaml:12"]
    bare = replace(run, fidelity=run.fidelity.iloc[:0])
    assert any("negative control" in p for p in policy_problems(parse_policy(POLICY), bare))


def test_margins_out_of_reach(run: Run) -> None:
    tight = parse_policy(POLICY.replace("margin_pp: 3.0", "margin_pp: 0.1"), "P.yaml")
    found = {r.slice: r for r in resolutions(tight, run, FAIR)}
    math = found["math"]
    assert not math.reached
    assert math.line == 10
    assert math.needed == stats.items_needed(math.flip_rate, 0.001)
    assert math.needed > math.items == 800
    assert found["multilingual"].reached


def test_a_draft_is_a_policy_that_its_run_resolves(run: Run) -> None:
    text = draft_policy(run)
    loaded = parse_policy(text)
    assert policy_problems(loaded, run) == []
    found = resolutions(loaded, run)
    assert found
    assert all(r.reached for r in found)
    assert gate(run, loaded, GOOD).verdict == "pass"
    assert loaded.policy.require == ["math", "multilingual", "reasoning"]
    assert loaded.policy.negative_control == "required"


def test_a_draft_with_odd_slices(tmp_path: Path) -> None:
    odd = ["2024", "on", 'say "x": {y}', "é漢/ü", "#a", "a b"]
    path = write_run(tmp_path / "r", variants=(GOOD,), items=120, slices=odd, loss={GOOD: 0.0})
    run = load_run(path)
    loaded = parse_policy(draft_policy(run))
    assert set(odd) | {"default", "é漢"} == set(loaded.policy.slices)
    assert policy_problems(loaded, run) == []


def test_a_draft_of_a_small_run_without_control(tmp_path: Path) -> None:
    path = write_run(tmp_path / "r", variants=(GOOD,), items=20, slices=("math/x",))
    (path / "fidelity.parquet").unlink()
    info = (path / "run.json").read_text().replace('"enabled": true', '"enabled": false')
    (path / "run.json").write_text(info)
    loaded = parse_policy(draft_policy(load_run(path)))
    assert loaded.policy.negative_control == "optional"
    assert loaded.policy.require == []
    assert loaded.policy.slices["math"].asked == "advisory"


@pytest.mark.parametrize("each", [1, 8])
def test_clusters_need_more_items(tmp_path: Path, each: int) -> None:
    path = write_run(tmp_path / "r", variants=(FAIR,), items=800, slices=("math/x",),
                     loss={FAIR: 0.05})  # fmt: skip
    edit_items(
        path,
        cluster=lambda old: [f"d{i // each}" for i in range(800)] * 2,
        score=lambda old: [1.0] * 800 + [float(i // 8 % 20 != 0) for i in range(800)],
    )
    loaded = parse_policy("policy_version: 1\nslices: {math: {margin_pp: 2}}")
    (found,) = resolutions(loaded, load_run(path), FAIR)
    independent = stats.items_needed(found.flip_rate, 0.02)
    assert found.needed == pytest.approx(independent * each, rel=0.15)
