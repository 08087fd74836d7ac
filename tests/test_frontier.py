import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from evalq.compare import compare, load_run
from evalq.compare.runs import Run
from evalq.errors import ComparisonError
from evalq.frontier import frontier, recommend, variant_costs
from evalq.plan import RecommendPlan
from tests.synthetic import change_info, change_items, write_run

SMALL = ("rtn-w8-g128", "rtn-w4-g128", "rtn-w2-g128")


def _recommend(run: Run, **plan: float) -> object:
    comparisons = [compare(run, v) for v in run.variants]
    return recommend(run, comparisons, RecommendPlan.model_validate(plan))


def test_the_frontier_by_brute_force(tmp_path: Path) -> None:
    run = load_run(write_run(tmp_path / "r", items=30, seed=4))
    found = frontier(run, resamples=50)
    points = found.points
    assert [p.variant for p in points] == list(run.variants)
    for p in points:
        beaten = any(
            q.cost <= p.cost
            and q.quality >= p.quality
            and (q.cost, q.quality) != (p.cost, p.quality)
            for q in points
        )
        assert p.on_frontier == (not beaten)
        assert 0 <= p.probability <= 1


def test_the_probability_by_an_own_bootstrap(tmp_path: Path) -> None:
    run = load_run(write_run(tmp_path / "r", variants=SMALL, items=40, slices=("a",), seed=7))
    found = {p.variant: p for p in frontier(run, resamples=4000).points}
    wide = run.items.pivot_table(index="item_id", columns="variant", values="score", observed=True)
    rng = np.random.default_rng(99)
    order = sorted(run.variants, key=lambda v: found[v].cost)
    hits = dict.fromkeys(order, 0)
    for _ in range(4000):
        means = wide.to_numpy()[rng.integers(0, len(wide), len(wide))].mean(axis=0).round(12)
        best = -1.0
        for name in order:
            value = means[list(wide.columns).index(name)]
            hits[name] += value > best
            best = max(best, value)
    for name in order:
        assert found[name].probability == pytest.approx(hits[name] / 4000, abs=0.04)


def test_the_seed_alone_decides(tmp_path: Path) -> None:
    run = load_run(write_run(tmp_path / "r", variants=SMALL, items=30))
    assert frontier(run, seed=1, resamples=100) == frontier(run, seed=1, resamples=100)


def test_dequantized_variants_have_no_place_on_a_speed_axis(tmp_path: Path) -> None:
    found = frontier(load_run(write_run(tmp_path / "r", variants=SMALL, items=5)), "decode")
    assert [p.variant for p in found.points] == ["parent"]
    assert all("dequantized" in found.left_out[v] for v in SMALL)


def test_on_a_speed_axis_faster_is_better(tmp_path: Path) -> None:
    path = write_run(tmp_path / "r", variants=SMALL, items=40, loss=dict.fromkeys(SMALL, 0.0))
    costs = pd.read_parquet(path / "costs.parquet")
    costs["execution"] = "packed:cpu"
    costs["decode_tokens_per_second"] = costs["variant"].map(
        {"parent": 100.0, "rtn-w8-g128": 150.0, "rtn-w4-g128": 300.0, "rtn-w2-g128": 90.0}
    )
    costs.to_parquet(path / "costs.parquet", index=False)
    found = {p.variant: p for p in frontier(load_run(path), "decode", resamples=20).points}
    assert found["rtn-w4-g128"].on_frontier
    assert found["rtn-w4-g128"].cost == 300.0
    assert not found["rtn-w2-g128"].on_frontier
    assert not found["parent"].on_frontier


def test_costs_fall_back_to_the_sizes_in_run_json(tmp_path: Path) -> None:
    path = write_run(tmp_path / "r", variants=SMALL, items=5)
    run = load_run(path)
    measured = variant_costs(run)
    bare = Run(run.path, run.info, run.items, run.fidelity, run.costs.iloc[:0])
    known = variant_costs(bare)
    assert known["rtn-w4-g128"].bytes == measured["rtn-w4-g128"].bytes
    assert known["rtn-w4-g128"].decode is None


def test_the_smallest_variant_within_the_margins(tmp_path: Path) -> None:
    loss = {"rtn-w8-g128": 0.0, "rtn-w4-g128": 0.0, "rtn-w2-g128": 0.6}
    run = load_run(
        write_run(tmp_path / "r", variants=SMALL, items=400, slices=("a", "b"), loss=loss)
    )
    found = _recommend(run)
    assert found.variant == "rtn-w4-g128"
    assert 0.6 < found.saving < 0.75
    assert "rtn-w2-g128" in found.why
    assert "loses more than 2 pp" in found.why


def test_one_bad_slice_is_enough(tmp_path: Path) -> None:
    slices = ("a/1", "a/2", "a/3", "a/4", "a/5", "a/6", "a/7", "a/8", "b/rare")
    loss = {"rtn-w8-g128": 0.0, "rtn-w4-g128": {"b/rare": 0.12}, "rtn-w2-g128": 0.9}
    run = load_run(write_run(tmp_path / "r", variants=SMALL, items=200, slices=slices, loss=loss))
    found = _recommend(run)
    assert found.variant == "rtn-w8-g128"
    candidate = next(c for c in found.candidates if c.variant == "rtn-w4-g128")
    assert [r.split()[0] for r in candidate.reasons] == ["b", "b/rare"]


def test_slices_of_few_items_are_advisory_and_named(tmp_path: Path) -> None:
    loss = {"rtn-w8-g128": 0.0, "rtn-w4-g128": {"b": 1.0}}
    path = write_run(
        tmp_path / "r", variants=SMALL[:2], items=1500, slices=("a", "b"), loss=loss, seed=3
    )
    change_items(path, lambda f: f[(f["slice"] == "a") | (f["item_id"].astype(int) < 6)])
    found = _recommend(load_run(path))
    assert found.variant == "rtn-w4-g128"
    assert "Too few items to judge (under 100): b." in found.why


def test_few_items_cannot_show_it_so_the_parent_stays(tmp_path: Path) -> None:
    run = load_run(write_run(tmp_path / "r", variants=SMALL, items=20, slices=("a",)))
    found = _recommend(run)
    assert found.variant == "parent"
    assert found.saving == 0
    assert "No smaller variant is shown" in found.why
    assert "rtn-w8-g128" in found.why


def test_of_equal_sizes_the_better_one(tmp_path: Path) -> None:
    variants = ("rtn-w4-g128", "gptq-w4-g128", "awq-w4-g128")
    loss = {"rtn-w4-g128": 0.004, "gptq-w4-g128": 0.02, "awq-w4-g128": 0.0}
    run = load_run(
        write_run(tmp_path / "r", variants=variants, items=900, slices=("a",), loss=loss)
    )
    assert _recommend(run).variant == "awq-w4-g128"


def test_rounded_caches_over_the_chosen_weights_are_judged_in_words(tmp_path: Path) -> None:
    """They are as large on disk, so that no sentence on smaller variants would name them."""
    names = ("gptq-w8-g128", "gptq-w2-g128", "rtn-w4-g128")
    loss = {"gptq-w8-g128": 0.0, "gptq-w2-g128": 0.5, "rtn-w4-g128": 0.9}
    path = write_run(tmp_path / "r", variants=names, items=400, slices=("a", "b"), loss=loss)
    info = json.loads((path / "run.json").read_text())
    for entry in info["variants"][1:3]:
        entry["bytes"] = info["variants"][0]["bytes"]
    for variant, bits in zip(info["plan"]["variants"], (8, 2, 4), strict=True):
        variant["kv_bits"] = bits
    change_info(path, variants=info["variants"], plan=info["plan"])
    costs = pd.read_parquet(path / "costs.parquet")
    costs[~costs["variant"].isin(names[:2])].to_parquet(path / "costs.parquet", index=False)
    found = _recommend(load_run(path))
    assert found.variant == "parent"
    assert (
        "With a smaller KV cache, the same weights are shown to stay within 2 pp overall and 5 pp "
        "a slice as gptq-w8-g128; not as gptq-w2-g128: overall it loses more than 2 pp" in found.why
    )
    assert found.why.count("rtn-w4-g128") == 1  # other weights: a smaller variant, not a cache


def test_a_recommendation_needs_the_parent_as_baseline(tmp_path: Path) -> None:
    run = load_run(write_run(tmp_path / "r", variants=SMALL, items=5))
    with pytest.raises(ComparisonError, match="against the parent"):
        recommend(run, [compare(run, SMALL[0], SMALL[1])])


def test_a_run_without_items_recommends_the_parent(tmp_path: Path) -> None:
    path = write_run(tmp_path / "r", variants=SMALL, items=5)
    change_items(path, lambda f: f.iloc[:0])
    run = load_run(path)
    assert frontier(run).points == ()
    assert recommend(run, []).variant == "parent"
