"""The main job on a tiny parent: what is stored, and that a broken run ends like a whole one."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from evalq.errors import EvalqError, PlanError, StoreError
from evalq.kernels import native
from evalq.models.base import ModelSource
from evalq.plan import VariantPlan
from evalq.run import resolve_plan, run_plan, session
from evalq.run.rows import Made, variant_row
from evalq.run.session import CONTROL, PARENT
from evalq.schema import CostRecord, FidelityRecord, ItemRecord
from evalq.store import read_table


def run(data: dict[str, Any], progress: Any = None) -> Path:
    return run_plan(resolve_plan(data), progress, "evalq run")


class DyingError(Exception):
    pass


class Dying:
    """Progress that raises at its n-th call: an interruption at a known place."""

    def __init__(self, at: int) -> None:
        self.left = at

    def _step(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise DyingError

    def start(self, stage: str, total: int, unit: str) -> None:
        self._step()

    def advance(self, steps: int = 1, detail: str = "") -> None:
        self._step()

    def note(self, message: str) -> None:
        self._step()


def test_a_run_directory_holds_it_all(plan_data: dict[str, Any]) -> None:
    path = run(plan_data)
    labels = [PARENT, "rtn-w4-g32", "gptq-w3-g32"]
    info = json.loads((path / "run.json").read_text())
    assert info["status"] == "done"
    assert [v["name"] for v in info["variants"]] == labels
    assert info["control"]["variant"] == CONTROL
    assert info["variants"][2]["calibration"]["samples"] == 4
    assert info["variants"][0]["calibration"] is None
    items = read_table(path / "items.parquet", ItemRecord).to_pylist()
    assert {r["variant"] for r in items} == {*labels, CONTROL}
    assert all(sum(r["variant"] == v for r in items) == 24 for v in (*labels, CONTROL))
    by_hash = {r["variant"]: r["variant_hash"] for r in items}
    assert by_hash[CONTROL] == by_hash[PARENT] == info["parent"]["hash"]
    assert by_hash["rtn-w4-g32"] == info["variants"][1]["hash"] != by_hash["gptq-w3-g32"]
    fidelity = read_table(path / "fidelity.parquet", FidelityRecord).to_pylist()
    count = info["fidelity"]["tokens"]
    assert all(sum(r["variant"] == v for r in fidelity) == count for v in (*labels[1:], CONTROL))
    mean = {
        v: sum(r["kl"] for r in fidelity if r["variant"] == v) / count
        for v in (CONTROL, *labels[1:])
    }
    assert mean[CONTROL] < mean["rtn-w4-g32"] < mean["gptq-w3-g32"]
    assert info["control"]["dtype"] == "bfloat16"
    costs = read_table(path / "costs.parquet", CostRecord).to_pylist()
    assert [r["variant"] for r in costs] == labels
    assert costs[1]["bytes_on_disk"] < costs[0]["bytes_on_disk"]
    if native.why_not() is None:
        assert [r["execution"] for r in costs] == ["dense", "packed:native", "packed:native"]
    assert set(info["costs"]["loops"]) == set(labels)
    assert {r["dtype"] for r in costs} == {info["costs"]["dtype"]}
    for made in info["variants"][1:]:
        assert Path(made["path"]).name.endswith(made["hash"][:12])


def test_the_control_of_a_float32_parent_is_computed_in_another_precision(
    plan_data: dict[str, Any], parent_directory: Path, tmp_path: Path
) -> None:
    """In float32 once more it would be the parent bit for bit, and show no noise."""
    whole = tmp_path / "whole"
    AutoModelForCausalLM.from_pretrained(parent_directory).float().save_pretrained(whole)
    AutoTokenizer.from_pretrained(parent_directory).save_pretrained(whole)
    plan_data |= {"parent": str(whole), "variants": plan_data["variants"][:1]}
    path = run(plan_data | {"cost": {"enabled": False}})
    info = json.loads((path / "run.json").read_text())
    assert info["parent"]["dtype"] == "float32"
    assert "in bfloat16 instead of float32, with half the batch" in info["control"]["what"]
    records = read_table(path / "fidelity.parquet", FidelityRecord).to_pylist()
    noise = [r["kl"] for r in records if r["variant"] == CONTROL]
    assert sum(kl > 0 for kl in noise) > len(noise) / 2


@pytest.mark.parametrize(
    ("running", "stored", "other"),
    [
        ("float32", "bfloat16", "bfloat16"),
        ("float32", "float16", "float16"),
        ("float32", "float32", "bfloat16"),
        ("float32", "float64", "bfloat16"),
        ("bfloat16", "bfloat16", "float32"),
        ("float16", "float32", "float32"),
    ],
)
def test_the_control_never_runs_in_the_precision_of_the_parent(
    running: str, stored: str, other: str
) -> None:
    assert session._other_precision(running, stored) == other


def test_interrupted_anywhere_it_ends_with_the_same_items(
    plan_data: dict[str, Any], tmp_path: Path
) -> None:
    whole = run({**plan_data, "out": str(tmp_path / "whole")})
    for at in (1, 6, 14, 25):
        broken = {**plan_data, "out": str(tmp_path / f"broken{at}")}
        with pytest.raises(DyingError):
            run(broken, Dying(at))
        info = json.loads((Path(broken["out"]) / "run.json").read_text())
        assert info["status"] == "running"
        path = run(broken)
        for name in ("items.parquet", "fidelity.parquet"):
            assert (path / name).read_bytes() == (whole / name).read_bytes(), (at, name)


def test_a_finished_run_is_not_measured_again(plan_data: dict[str, Any]) -> None:
    path = run(plan_data)
    before = {p: p.stat().st_mtime_ns for p in path.rglob("*") if p.is_file()}
    assert run(plan_data) == path
    after = {p: p.stat().st_mtime_ns for p in path.rglob("*") if p.is_file()}
    assert {p.name for p in after if before.get(p) != after[p]} <= {"run.lock"}


def test_an_artifact_of_ones_own_is_measured_by_its_content(
    plan_data: dict[str, Any], tmp_path: Path
) -> None:
    first = run(plan_data)
    info = json.loads((first / "run.json").read_text())
    shipped = info["variants"][1]["path"]
    again = {
        **plan_data,
        "variants": [{"name": "shipped", "artifact": shipped}],
        "out": str(tmp_path / "again"),
    }
    second = run(again)

    def scores(path: Path, label: str) -> list[Any]:
        rows = read_table(path / "items.parquet", ItemRecord).to_pylist()
        return [(r["item_id"], r["score"], r["metrics"]) for r in rows if r["variant"] == label]

    assert scores(second, "shipped") == scores(first, "rtn-w4-g32")


def test_killed_before_anything_was_measured(plan_data: dict[str, Any]) -> None:
    out = Path(plan_data["out"])
    out.mkdir()
    for left in ("run.lock", ".run.json.123.tmp"):
        (out / left).write_text("")
    assert (run(plan_data) / "items.parquet").exists()


def test_what_is_refused(plan_data: dict[str, Any], tmp_path: Path) -> None:
    run(plan_data)
    with pytest.raises(StoreError, match="another plan's run"):
        run({**plan_data, "seed": 7})
    stranger = tmp_path / "stranger"
    stranger.mkdir()
    (stranger / "thesis.tex").write_text("x")
    with pytest.raises(StoreError, match="holds no evalq run"):
        run({**plan_data, "out": str(stranger)})
    with pytest.raises(StoreError, match="is a file"):
        run({**plan_data, "out": str(stranger / "thesis.tex")})
    assert (stranger / "thesis.tex").read_text() == "x"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"variants": [{"method": "gtpq", "bits": 4}]}, "unknown method 'gtpq'"),
        ({"variants": [{"method": "rtn", "bits": 4, "options": {"clipp": 1}}]}, "clipp"),
        ({"parent": "/no/such/model"}, "no such parent"),
        ({"suites": ["mathh"]}, "mathh"),
        ({"workloads": ["/no/such/items.jsonl"]}, "items.jsonl"),
        ({"calibration": {"source": "/no/such/text"}}, "/no/such/text"),
        ({"variants": [{"artifact": "/no/such/artifact"}]}, "/no/such/artifact"),
        ({"engine": {"device": "cuda:7"}}, "cuda:7"),
    ],
)
def test_bad_input_is_named(plan_data: dict[str, Any], change: dict[str, Any], words: str) -> None:
    with pytest.raises(EvalqError) as caught:
        run({**plan_data, **change})
    assert words in str(caught.value)
    assert caught.value.exit_code == 2


def test_a_width_that_a_method_does_not_make(
    plan_data: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from dataclasses import replace

    from evalq.quantize.config import METHODS

    limited = replace(METHODS.get("awq"), bits=(3, 4, 8))
    monkeypatch.setitem(METHODS._targets, "awq", limited)
    with pytest.raises(PlanError, match="awq makes no 5 bits") as caught:
        run({**plan_data, "variants": [{"method": "awq", "bits": 5}]})
    assert "3, 4, 8" in caught.value.hint


def test_a_rounded_cache_does_not_repeat_what_is_noted_of_the_parent() -> None:
    source = ModelSource(Path("p.gguf"), "gguf", ("It was quantized before.",), 100, 4.5, 10)
    model = SimpleNamespace(source=source, hash="h", execution="dense")
    row = variant_row(Made(VariantPlan(kv_bits=4), None), model)  # type: ignore[arg-type]
    assert row["warnings"] == [
        "the KV cache is rounded to 4 bits in the evaluation; its speed is not measured, and its "
        "memory is modelled"
    ]
    assert (row["bytes"], row["kv_bits"]) == (100, 4)


def test_a_rounded_cache_is_a_variant_of_its_own(plan_data: dict[str, Any]) -> None:
    four = {"method": "rtn", "bits": 4, "group_size": 32}
    plan_data["variants"] = [four, {**four, "kv_bits": 2}, {"kv_bits": 2}]
    path = run(plan_data)
    info = json.loads((path / "run.json").read_text())
    labels = [PARENT, "rtn-w4-g32", "rtn-w4-g32-kv2", "parent-kv2"]
    assert [v["name"] for v in info["variants"]] == labels
    assert len({v["hash"] for v in info["variants"]}) == 4
    _, plain, rounded, own = info["variants"]
    assert plain["path"] == rounded["path"], "one artifact serves both"
    assert rounded["bytes"] == plain["bytes"]
    assert own["scheme"] == "bfloat16-kv2"
    assert any("not measured" in w for w in rounded["warnings"])
    costs = read_table(path / "costs.parquet", CostRecord).to_pylist()
    assert {r["variant"] for r in costs} == {PARENT, "rtn-w4-g32"}
    items = read_table(path / "items.parquet", ItemRecord).to_pylist()
    assert {r["variant"] for r in items} == {*labels, CONTROL}
    assert {r["variant_hash"] for r in items if r["variant"] == "parent-kv2"} == {own["hash"]}
