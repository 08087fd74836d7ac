"""--text: a run compares distributions on the user's prose too, and says how far the parent is from
itself on it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from evalq.compare import fidelity_by_text, fidelity_result, load_run
from evalq.errors import PlanError
from evalq.gate.evidence import fidelity_frame
from evalq.models.load import load_artifact, load_parent
from evalq.report.render import render
from evalq.run import resolve_plan, run_plan
from evalq.tasks.bridge import build

HOSTILE = "<script>alert(1)</script>"


def test_a_text_that_nothing_can_be_compared_on(plan_data: dict[str, Any], tmp_path: Path) -> None:
    plan_data["fidelity"] = {"enabled": False, "texts": [{"file": "a.txt"}]}
    with pytest.raises(PlanError, match="fidelity is off"):
        run_plan(resolve_plan(plan_data))
    plan_data["fidelity"] = {"texts": [{"file": "a.txt"}]}
    plan_data["variants"] = [{"endpoint": {"url": "http://127.0.0.1:9/v1", "model": "m"}}]
    with pytest.raises(PlanError, match="have to be local"):
        run_plan(resolve_plan(plan_data))


def test_prose_of_the_users(plan_data: dict[str, Any], tmp_path: Path) -> None:
    one = tmp_path / "one.txt"
    one.write_text("Tofauti ni ndogo sana, lakini ipo. " * 12)
    many = tmp_path / "many.txt"
    many.write_text("\f".join(f"Document number {i} says {i * i}." for i in range(6)))
    plan_data["variants"] = plan_data["variants"][:1]
    plan_data["cost"] = {"enabled": False}
    plan_data["fidelity"] |= {
        "texts": [
            {"file": str(one), "name": HOSTILE, "language": "sw"},
            {"file": str(many)},
        ]
    }
    path = run_plan(resolve_plan(plan_data))
    run = load_run(path)
    recorded = run.info["fidelity"]["texts"]
    assert [(t["name"], t["slices"]) for t in recorded] == [
        (HOSTILE, ["prose/sw"]),
        ("many", ["prose"]),
    ]
    frame = run.fidelity
    label = run.variants[1]
    found = fidelity_by_text(run)
    held_out = next(t for t, s in found if s == "")
    assert list(found) == [(held_out, ""), (HOSTILE, "prose/sw"), ("many", "prose")]
    for (text, _), (control, variant) in found.items():
        assert (control.variant, variant.variant) == ("parent@control", label)
        own = frame[(frame["variant"] == label) & (frame["text"] == text)]
        kl = own["kl"].to_numpy()
        assert variant.tokens == control.tokens == len(kl) > 0
        assert variant.kl_mean == kl.mean()
        assert (variant.kl_median, variant.kl_p95, variant.kl_p99) == tuple(
            np.quantile(kl, (0.5, 0.95, 0.99))
        )
        assert variant.kl_max == kl.max()
        assert variant.top1_agreement == own["top1"].mean()
        assert control.kl_mean < variant.kl_mean
        # The user's text of one document has its windows as clusters.
        assert variant.kl_ci is not None or text == held_out
    page = render(path).read_text(encoding="utf-8")
    assert "By text" in page
    assert HOSTILE not in page
    assert "(noise floor)" in page
    table = pd.read_csv(path / "report" / "tables" / "fidelity_by_text.csv")
    assert len(table) == 6
    summary = json.loads((path / "report" / "summary.json").read_text())
    texts = summary["variants"][1]["fidelity"]["texts"]
    assert [(t["text"], t["slice"]) for t in texts] == [(HOSTILE, "prose/sw"), ("many", "prose")]
    assert texts[0]["noise_floor"]["kl_mean"] < texts[0]["kl_mean"]


def test_what_is_evaluated_is_a_text_slice_by_slice(plan_data: dict[str, Any]) -> None:
    plan_data["variants"] = plan_data["variants"][:1]
    plan_data["cost"] = {"enabled": False}
    plan_data["fidelity"] |= {"tasks": True, "length": 96}
    plan = resolve_plan(plan_data)
    plain = resolve_plan({**plan_data, "fidelity": {**plan_data["fidelity"], "tasks": False}})
    assert plan.hash != plain.hash
    run = load_run(run_plan(plan))
    items = run.items[run.items["variant"] == "parent"]
    frame = run.fidelity[run.fidelity["text"] == "tasks"]
    assert set(frame["slice"]) == set(items["slice"])
    assert set(frame["document"]) <= set(items["cluster"])
    found = fidelity_by_text(run)
    assert {s for t, s in found if t == "tasks"} == set(items["slice"])
    # It counts in its slices, and in no figure of the whole.
    rest = run.fidelity[run.fidelity["text"] != "tasks"]
    whole = fidelity_result(run, run.variants[1])
    assert whole is not None
    assert whole.kl_mean == rest[rest["variant"] == run.variants[1]]["kl"].mean()
    gated = fidelity_frame(run, run.variants[1])
    assert set(gated["text"]) == set(rest["text"])
    assert not fidelity_frame(run, run.variants[1], items["slice"].iloc[0]).empty
    # One item by transformers itself, in float64.
    label = run.variants[1]
    item = items[items["prompt"].str.len() < 60].iloc[0]
    own = frame[(frame["variant"] == label) & (frame["document"] == item["cluster"])]
    parent = load_parent(plan.parent, plan.engine)
    path = next(v["path"] for v in run.info["variants"] if v["name"] == label)
    variant = load_artifact(Path(path), plan.engine)
    delimiter = {b.name: b.delimiter for b in build(plan.suites, plan.workloads)}[item["task"]]
    ids = parent.tokenizer(item["prompt"] + delimiter + item["target"])["input_ids"][-96:]
    with torch.inference_mode():
        p, q = (
            m.module.double()(input_ids=torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
            for m in (parent, variant)
        )
    kl = (p.exp() * (p - q)).sum(-1)
    assert len(own) == len(ids) - 1
    assert own["kl"].mean() == pytest.approx(float(kl.mean()), rel=1e-3, abs=1e-7)
