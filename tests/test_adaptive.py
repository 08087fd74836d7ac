"""Adaptive runs: the error of their decisions, what they ask, and what is said of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from evalq.adaptive import FIRST_ROUND, Rule, Watch, evaluate_adaptively, next_round
from evalq.compare import compare, load_run
from evalq.errors import ComparisonError
from evalq.evaluate import evaluate
from evalq.frontier import frontier
from evalq.gate.decide import gate
from evalq.gate.policy import load_policy
from evalq.plan import parse_plan
from evalq.report.render import render
from evalq.schema import Request, Response
from evalq.store import Journal
from evalq.tasks.bridge import BuiltTask, build
from tests.synthetic import change_info, write_run

MARGIN = 0.04


def decided(d: np.ndarray, margin: float = MARGIN) -> tuple[str, int]:
    """Run one stream through the decision code of a run: rounds, looks and all."""
    watch = Watch([[i] for i in range(len(d))], margin, 0.90)
    asked: list[int] = []
    while watch.open:
        asked += [i for unit in watch.take() for i in unit]
        watch.look([float(d[i]) for i in asked])
    return watch.decision, watch.used


def flips(rng: np.random.Generator, n: int, lost: float, gained: float) -> np.ndarray:
    u = rng.random(n)
    return np.where(u < lost, -1.0, np.where(u < lost + gained, 1.0, 0.0))


def test_a_loss_of_the_margin_passes_in_at_most_alpha() -> None:
    rng = np.random.default_rng(5)
    runs = 1200
    wrong = sum(decided(flips(rng, 800, 0.06, 0.02))[0] == "pass" for _ in range(runs))
    assert wrong / runs <= 0.05  # one-sided alpha of a 90 % interval


def test_a_loss_just_within_the_margin_fails_in_at_most_alpha() -> None:
    rng = np.random.default_rng(6)
    runs = 1200
    wrong = sum(decided(flips(rng, 800, 0.06, 0.02001))[0] == "fail" for _ in range(runs))
    assert wrong / runs <= 0.05


def test_what_is_plain_is_decided_early() -> None:
    rng = np.random.default_rng(7)
    broken = [decided(flips(rng, 1000, 0.5, 0.01)) for _ in range(50)]
    assert all(d == "fail" and used <= 4 * FIRST_ROUND for d, used in broken)
    fine = [decided(flips(rng, 1000, 0.005, 0.005)) for _ in range(50)]
    assert sum(d == "pass" and used < 400 for d, used in fine) > 45


def test_rounds() -> None:
    assert next_round(0, 10) == 10
    assert next_round(0, 1000) == FIRST_ROUND
    assert next_round(400, 1000) == 100
    assert next_round(990, 1000) == 10


class Scripted:
    """Answers by the number in the prompt; ``wrong`` says which items it gets wrong."""

    def __init__(self, wrong: set[int], die_after: int = -1) -> None:
        self.wrong, self.die_after, self.asked = wrong, die_after, 0
        self.settings: dict[str, Any] = {"engine": "scripted"}

    def supports(self, kind: str) -> bool:
        return True

    def plan(self, requests: list[Request]) -> list[list[int]]:
        return [list(range(i, min(i + 7, len(requests)))) for i in range(0, len(requests), 7)]

    def answer(self, requests: list[Request]) -> list[Response]:
        if self.die_after >= 0 and self.asked > self.die_after:
            raise KeyboardInterrupt
        self.asked += len(requests)
        return [
            Response(text="no" if int(r.context.split()[-1]) in self.wrong else "yes")
            for r in requests
        ]


@pytest.fixture
def tasks(tmp_path: Path) -> list[BuiltTask]:
    rows = [
        {"prompt": f"{s} {i}", "target": "yes", "slice": s, "cluster": f"{s}{i // 2}"}
        for s in ("good", "bad")
        for i in range(400)
    ]
    path = tmp_path / "w.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return build([], [path])


def rule(seed: int = 0) -> Rule:
    return Rule(lambda name: 0.10, 0.90, seed)


def test_a_run_stops_slices_and_resumes_to_the_same(tasks: list[BuiltTask], tmp_path: Path) -> None:
    wrong = {i for i in range(400) if i % 3 == 0}
    with Journal(tmp_path / "j.sqlite") as journal:
        parent = evaluate(Scripted(set()), "parent", "p", tasks, journal)
        engine = Scripted(wrong)
        records, stops = evaluate_adaptively(engine, "v", "h", tasks, journal, parent, rule())
    good, bad = (stops[f"workload/w/{s}"] for s in ("good", "bad"))
    assert good["planned"] == bad["planned"] == 400
    assert good["planned_units"] == 200
    assert bad["decision"] == "fail"
    assert good["decision"] == "fail"  # a third of the items is lost in both
    assert engine.asked == good["used"] + bad["used"] == len(records) < 200
    # Clusters are asked whole, items come back in the tasks' order.
    clusters = pd.Series([r.cluster for r in records]).value_counts()
    assert set(clusters) == {2}
    order = {item.item_id: i for i, item in enumerate(tasks[0].items)}
    assert [r.item_id for r in records] == sorted([r.item_id for r in records], key=order.get)
    for kill in (0, 20, 60):
        with Journal(tmp_path / f"k{kill}.sqlite") as journal:
            with pytest.raises(KeyboardInterrupt):
                evaluate_adaptively(Scripted(wrong, kill), "v", "h", tasks, journal, parent, rule())
            stored = len(journal)
            again = Scripted(wrong)
            assert evaluate_adaptively(again, "v", "h", tasks, journal, parent, rule()) == (
                records,
                stops,
            )
            assert 0 < stored == engine.asked - again.asked
    with Journal(tmp_path / "other.sqlite") as journal:
        other, _ = evaluate_adaptively(Scripted(wrong), "v", "h", tasks, journal, parent, rule(1))
    assert {r.item_id for r in other} != {r.item_id for r in records}


def test_a_variant_that_loses_nothing(tasks: list[BuiltTask], tmp_path: Path) -> None:
    with Journal(tmp_path / "j.sqlite") as journal:
        parent = evaluate(Scripted(set()), "parent", "p", tasks, journal)
        _, stops = evaluate_adaptively(Scripted(set()), "v", "h", tasks, journal, parent, rule())
    assert {s["decision"] for s in stops.values()} == {"pass"}
    assert all(s["used"] < 200 for s in stops.values())


def test_margins_of_slices() -> None:
    plan = parse_plan({"adaptive": {"enabled": True, "slices": {"math/*": 2}}})
    assert plan.stop_margin("math/x") == 0.02
    assert plan.stop_margin("reasoning") == 0.05
    assert parse_plan({"adaptive": {"margin_pp": 1}}).stop_margin("a") == 0.01
    plain = parse_plan({})
    assert parse_plan({"adaptive": {"margin_pp": 3}}).hash == plain.hash
    assert parse_plan({"adaptive": {"enabled": True}}).hash != plain.hash


VARIANTS = ("rtn-w8-g128", "rtn-w2-g128")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A stored run whose 2-bit variant was stopped after 30 items a slice."""
    path = write_run(tmp_path / "run", variants=VARIANTS, items=120)
    frame = pd.read_parquet(path / "items.parquet")
    broken = frame["variant"] == "rtn-w2-g128"
    frame = frame[~broken | (frame["item_id"].astype(int) < 30)]
    from tests.synthetic import change_items

    change_items(path, lambda _: frame)
    stops: dict[str, Any] = {}
    for variant, used in zip(VARIANTS, (120, 30), strict=True):
        stops[variant] = {
            name: {
                "planned": 120, "used": used, "planned_units": 120, "used_units": used,
                "margin": 0.05, "decision": "fail" if used == 30 else "",
            }
            for name in frame["slice"].unique()
        }  # fmt: skip
    return change_info(path, adaptive={"confidence": 0.9, "variants": stops})


def test_comparisons_take_the_anytime_interval(run: Path) -> None:
    opened = load_run(run)
    for variant, used in zip(VARIANTS, (120, 30), strict=True):
        found = compare(opened, variant)
        results = [*found.slices.values(), found.overall]
        assert all(r is not None and r.method.startswith("anytime") for r in results)
        leaf = found.slices["math/products"]
        assert (leaf.items, leaf.planned, leaf.size) == (used, 120, 120)
        assert leaf.accuracy - leaf.parent_accuracy == pytest.approx(leaf.delta)
        assert leaf.ci is not None
        assert leaf.ci[0] <= leaf.delta <= leaf.ci[1]
    assert compare(opened, "rtn-w2-g128").slices["math/products"].verdict(0.05).verdict == "fail"
    both = compare(opened, "rtn-w2-g128", "rtn-w8-g128")
    assert both.overall is not None
    assert both.overall.items == 30 * 9


def test_records_that_run_json_does_not_count_are_refused(run: Path) -> None:
    info = json.loads((run / "run.json").read_text())
    info["adaptive"]["variants"]["rtn-w2-g128"]["math/chains"]["used"] = 31
    change_info(run, adaptive=info["adaptive"])
    with pytest.raises(ComparisonError, match=r"run\.json counts 31"):
        compare(load_run(run), "rtn-w2-g128")
    del info["adaptive"]["variants"]["rtn-w2-g128"]
    change_info(run, adaptive=info["adaptive"])
    with pytest.raises(ComparisonError, match="no record of"):
        compare(load_run(run), "rtn-w2-g128")


def test_gate_and_report_say_that_it_was_adaptive(run: Path, tmp_path: Path) -> None:
    policy = tmp_path / "p.yaml"
    policy.write_text(
        "policy_version: 1\nmetrics: {accuracy: {margin_pp: 20}}\n"
        "slices: {default: {margin_pp: 10, min_items: 100, role: mandatory}}\n"
        "negative_control: optional\n"
    )
    opened = load_run(run)
    result = gate(opened, load_policy(policy))
    assert any("adaptive" in note for note in result.notes)
    (broken,) = [v for v in result.variants if v.variant == "rtn-w2-g128"]
    assert broken.verdict == "fail"
    check = next(c for c in broken.checks if c.slice == "math/products")
    assert check.role == "mandatory"  # 30 of 120 items: min_items is held against the 120
    assert any("adaptive: 30 of 120 items asked" in n for n in check.notes)
    assert all(c.items_needed is None for c in broken.checks if c.metric == "accuracy")
    found = frontier(opened)
    assert [p.variant for p in found.points] == ["parent", *VARIANTS]
    assert all(0 <= p.probability <= 1 for p in found.points)
    page = render(run).read_text(encoding="utf-8")
    assert "This run was adaptive" in page
    assert "Where slices stopped" in page
    assert "Every variant was asked the same items" not in page
    assert "Tango" not in page
    summary = json.loads((run / "report" / "summary.json").read_text())
    slices = summary["variants"][2]["slices"]
    assert (slices["math/products"]["items"], slices["math/products"]["planned"]) == (30, 120)
    assert summary["adaptive"]["variants"]["rtn-w2-g128"]["math/products"]["decision"] == "fail"
