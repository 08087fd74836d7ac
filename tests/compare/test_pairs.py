from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from evalq.compare import load_run, pair
from evalq.errors import ComparisonError
from tests.synthetic import change_info, change_items, write_run

V = "rtn-w4-g128"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_run(tmp_path / "r", variants=(V,), items=6, slices=("math/products", "math/b"))


def _at(frame: pd.DataFrame, variant: str, item: str) -> pd.Series:
    return (
        (frame["variant"] == variant)
        & (frame["item_id"] == item)
        & (frame["task"] == "t_math_products")
    )


def test_pairs_hold_the_same_item_on_both_sides_whatever_the_order(path: Path) -> None:
    change_items(path, lambda f: f.sample(frac=1.0, random_state=3))
    run = load_run(path)
    pairs = pair(run, V)
    frame = pairs.frame
    assert len(frame) == 12
    ours = run.items.iloc[frame["variant_row"]]
    theirs = run.items.iloc[frame["baseline_row"]]
    assert set(ours["variant"]) == {V}
    assert set(theirs["variant"]) == {"parent"}
    for column in ("task", "item_id", "prompt", "target"):
        assert list(ours[column]) == list(theirs[column])
    assert np.array_equal(frame["variant_score"], ours["score"].to_numpy())
    assert np.array_equal(frame["baseline_score"], theirs["score"].to_numpy())


@pytest.mark.parametrize(
    ("column", "words"), [("prompt_hash", "prompts differ"), ("target_hash", "targets differ")]
)
def test_other_prompts_or_targets_are_refused(path: Path, column: str, words: str) -> None:
    def change(frame: pd.DataFrame) -> pd.DataFrame:
        frame.loc[_at(frame, V, "4"), column] = "f" * 64
        return frame

    change_items(path, change)
    with pytest.raises(ComparisonError, match=words) as caught:
        pair(load_run(path), V)
    assert "'t_math_products'" in caught.value.message
    assert "item '4'" in caught.value.message
    assert "1 of 12" in caught.value.message


@pytest.mark.parametrize("side", ["parent", V])
def test_an_item_on_one_side_only_is_refused(path: Path, side: str) -> None:
    change_items(path, lambda f: f[~_at(f, side, "2")])
    with pytest.raises(ComparisonError, match="has no record of task 't_math_products', item '2'"):
        pair(load_run(path), V)


def test_an_unfinished_run_says_that_it_resumes(path: Path) -> None:
    change_items(path, lambda f: f[~_at(f, V, "2")])
    change_info(path, status="running")
    with pytest.raises(ComparisonError) as caught:
        pair(load_run(path), V)
    assert "again" in caught.value.hint


def test_an_item_twice_is_refused(path: Path) -> None:
    change_items(path, lambda f: pd.concat([f, f[_at(f, V, "1")]]))
    with pytest.raises(ComparisonError, match="item '1' more than once"):
        pair(load_run(path), V)


def test_a_missing_score_is_refused(path: Path) -> None:
    def change(frame: pd.DataFrame) -> pd.DataFrame:
        frame.loc[_at(frame, V, "3"), "score"] = None
        return frame

    change_items(path, change)
    with pytest.raises(ComparisonError, match="only one side has a score"):
        pair(load_run(path), V)


def test_an_item_with_neither_score_nor_likelihood_is_refused(path: Path) -> None:
    def change(frame: pd.DataFrame) -> pd.DataFrame:
        frame.loc[frame["item_id"] == "3", "score"] = None
        return frame

    change_items(path, change)
    with pytest.raises(ComparisonError, match="no score"):
        pair(load_run(path), V)


def test_other_metrics_are_refused(path: Path) -> None:
    def change(frame: pd.DataFrame) -> pd.DataFrame:
        frame.loc[frame["variant"] == V, "metric"] = "f1"
        return frame

    change_items(path, change)
    with pytest.raises(ComparisonError, match="metrics differ"):
        pair(load_run(path), V)


def test_the_same_item_id_in_two_tasks_and_filters_is_not_mixed_up(path: Path) -> None:
    def change(frame: pd.DataFrame) -> pd.DataFrame:
        more = frame.copy()
        more["filter"] = "flexible"
        more["score"] = 1.0
        return pd.concat([frame, more])

    change_items(path, change)
    pairs = pair(load_run(path), V)
    assert len(pairs.frame) == 24
    flexible = pairs.frame[pairs.frame["filter"] == "flexible"]
    assert (flexible["variant_score"] == 1).all()
