import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats as scipy_stats
from statsmodels.stats.multitest import multipletests

from evalq.compare import compare, load_run
from evalq.compare.slices import OVERALL
from tests.synthetic import change_items, write_run

V = "rtn-w4-g128"


def _set_scores(path: Path, table: dict[tuple[str, str], list[float]]) -> None:
    """Scores of (variant, slice), in the order of the items."""

    def change(frame: pd.DataFrame) -> pd.DataFrame:
        for (variant, slice_), scores in table.items():
            chosen = (frame["variant"] == variant) & (frame["slice"] == slice_)
            frame.loc[chosen, "score"] = scores
        return frame

    change_items(path, change)


def test_a_small_table_by_hand(tmp_path: Path) -> None:
    """21 items, 7 lost, 1 gained: the table (1, 1, 7, 12) of Fagerland et al. 2014."""
    path = write_run(tmp_path / "r", variants=(V,), items=21, slices=("a/x",))
    parent = [1.0] * 8 + [0.0] * 13
    variant = [0.0] * 7 + [1.0] + [1.0] + [0.0] * 12
    _set_scores(path, {("parent", "a/x"): parent, (V, "a/x"): variant})
    result = compare(load_run(path), V, confidence=0.95)
    assert result.overall is not None
    for found in (result.overall, result.slices["a"], result.slices["a/x"]):
        assert (found.items, found.lost, found.gained) == (21, 7, 1)
        assert found.accuracy == pytest.approx(2 / 21)
        assert found.parent_accuracy == pytest.approx(8 / 21)
        assert found.delta == pytest.approx(-6 / 21)
        assert found.ci == pytest.approx((-0.517, -0.026), abs=5e-4)
        assert found.p_worse == pytest.approx(0.0703 / 2, abs=5e-5)
        assert found.p_two_sided_midp == pytest.approx(0.0391, abs=5e-5)
    assert result.slices["a/x"].leaf
    assert not result.slices["a"].leaf


def test_slices_nest_and_add_up(tmp_path: Path) -> None:
    run = load_run(write_run(tmp_path / "r", variants=(V,), items=40, seed=5))
    result = compare(run, V)
    frame = run.items
    assert set(result.slices) >= {"math", "math/products", "multilingual", "multilingual/sw"}
    for name, found in result.slices.items():
        inside = frame[(frame["slice"] == name) | frame["slice"].str.startswith(name + "/")]
        means = inside.groupby("variant", observed=True)["score"].mean()
        assert found.accuracy == pytest.approx(means[V])
        assert found.parent_accuracy == pytest.approx(means["parent"])
        assert found.items == len(inside) // 2
        assert found.delta == pytest.approx((found.gained - found.lost) / found.items)
    assert result.overall is not None
    assert result.overall.items == sum(s.items for s in result.leaves)


def test_names_that_only_start_alike_are_not_nested(tmp_path: Path) -> None:
    run = load_run(
        write_run(tmp_path / "r", variants=(V,), items=4, slices=("math", "mathematics"))
    )
    result = compare(run, V)
    assert result.slices["math"].items == 4


def test_p_values_are_scipys_and_holm_runs_over_the_leaves(tmp_path: Path) -> None:
    run = load_run(write_run(tmp_path / "r", variants=("rtn-w3-g128",), items=80, seed=2))
    result = compare(run, "rtn-w3-g128")
    leaves = result.leaves
    for leaf in leaves:
        discordant = leaf.lost + leaf.gained
        expected = 1.0
        if discordant:
            test = scipy_stats.binomtest(leaf.lost, discordant, 0.5, alternative="greater")
            expected = test.pvalue
        assert leaf.p_worse == pytest.approx(expected)
    adjusted = multipletests([x.p_worse for x in leaves], method="holm")[1]
    assert [x.p_holm for x in leaves] == pytest.approx(list(adjusted))
    assert all(s.p_holm is None for s in result.slices.values() if not s.leaf)


def test_shared_clusters_widen_the_interval(tmp_path: Path) -> None:
    path = write_run(tmp_path / "r", variants=("rtn-w3-g128",), items=60, slices=("a/x",), seed=1)
    alone = compare(load_run(path), "rtn-w3-g128").slices["a/x"]

    def change(frame: pd.DataFrame) -> pd.DataFrame:
        # Items that the variant lost are put together: the most dependent clusters there can be.
        wide = frame.pivot_table(index="item_id", columns="variant", values="score")
        d = (wide["rtn-w3-g128"] - wide["parent"]).sort_values(kind="stable")
        group = {item: str(i // 6) for i, item in enumerate(d.index)}
        frame["cluster"] = frame["item_id"].map(group)
        return frame

    change_items(path, change)
    shared = compare(load_run(path), "rtn-w3-g128").slices["a/x"]
    assert (alone.clusters, shared.clusters) == (60, 10)
    assert shared.delta == pytest.approx(alone.delta)
    assert alone.ci is not None
    assert shared.ci is not None
    assert shared.ci[1] - shared.ci[0] > 1.5 * (alone.ci[1] - alone.ci[0])
    assert shared.p_two_sided_midp is None


def test_graded_scores_give_the_t_interval(tmp_path: Path) -> None:
    path = write_run(tmp_path / "r", variants=(V,), items=30, slices=("a/x",))
    rng = np.random.default_rng(0)
    parent, variant = rng.random(30).round(3), rng.random(30).round(3)
    _set_scores(path, {("parent", "a/x"): list(parent), (V, "a/x"): list(variant)})
    found = compare(load_run(path), V).slices["a/x"]
    expected = scipy_stats.ttest_rel(variant, parent).confidence_interval(0.90)
    assert found.ci == pytest.approx((expected.low, expected.high), rel=1e-9)
    assert found.lost == int((variant < parent).sum())


def test_one_cluster_has_no_interval_and_says_so(tmp_path: Path) -> None:
    path = write_run(tmp_path / "r", variants=(V,), items=5, slices=("a/x",))

    def change(frame: pd.DataFrame) -> pd.DataFrame:
        frame["cluster"] = "all"
        return frame

    change_items(path, change)
    found = compare(load_run(path), V).slices["a/x"]
    assert found.ci is None
    assert found.p_worse is None
    assert found.warnings
    assert found.verdict(0.5).verdict == "inconclusive"


def test_verdicts(tmp_path: Path) -> None:
    run = load_run(write_run(tmp_path / "r", variants=("rtn-w2-g128",), items=200, slices=("a",)))
    found = compare(run, "rtn-w2-g128").slices["a"]
    assert found.verdict(0.02).verdict == "fail"
    assert found.verdict(0.99).verdict == "pass"
    assert found.verdict(0.99).detected_loss


def test_perplexity_is_weighted_by_tokens(tmp_path: Path) -> None:
    path = write_run(tmp_path / "r", variants=(V,), items=3, slices=("ppl/prose", "math"))
    nll = {"parent": [20.0, 300.0, 1.0], V: [22.0, 306.0, 1.5]}
    units = [10, 100, 5]

    def change(frame: pd.DataFrame) -> pd.DataFrame:
        for variant, values in nll.items():
            chosen = (frame["variant"] == variant) & (frame["slice"] == "ppl/prose")
            frame.loc[chosen, "nll"] = values
            frame.loc[chosen, "units"] = units
            frame.loc[chosen, "score"] = None
        return frame

    change_items(path, change)
    result = compare(load_run(path), V)
    assert "ppl" not in result.slices
    assert set(result.perplexity) == {OVERALL, "ppl", "ppl/prose"}
    found = result.perplexity["ppl/prose"]
    assert found.ratio == pytest.approx(math.exp(8.5 / 115))
    assert (found.items, found.units) == (3, 115)
    assert found.ci is not None
    assert found.ci[0] < found.ratio < found.ci[1]
    assert result.overall is not None
    assert result.overall.items == 3


def test_comparing_with_another_variant_turns_the_sign(tmp_path: Path) -> None:
    run = load_run(write_run(tmp_path / "r", variants=(V, "rtn-w2-g128"), items=50))
    one = compare(run, V, "rtn-w2-g128").overall
    other = compare(run, "rtn-w2-g128", V).overall
    assert one is not None
    assert other is not None
    assert one.delta == pytest.approx(-other.delta)
    assert one.lost == other.gained


def test_worst_is_the_leaf_that_lost_most(tmp_path: Path) -> None:
    loss = {V: {"a/x": 0.5, "a/y": 0.1}}
    run = load_run(
        write_run(tmp_path / "r", variants=(V,), items=90, slices=("a/x", "a/y"), loss=loss)
    )
    worst = compare(run, V).worst()
    assert worst is not None
    assert worst.slice == "a/x"
    assert compare(run, V).worst(min_items=91) is None
