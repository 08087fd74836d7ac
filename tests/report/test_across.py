"""Several runs in one report."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from evalq.cli.main import build_app
from evalq.compare import load_run, shared_items
from evalq.errors import ComparisonError, PlanError, StoreError
from evalq.report.across import across, answer, parse_memory
from evalq.report.across_page import render_across
from tests.report.test_render import HOSTILE, _Page
from tests.synthetic import change_info, change_items, write_run

V = ("rtn-w8-g128", "rtn-w3-g128")
LLAMA = {"model_type": "llama", "num_hidden_layers": 2, "num_attention_heads": 2,
         "hidden_size": 128, "max_position_embeddings": 2048}  # fmt: skip


def _two(path: Path, **config: Any) -> list[Path]:
    """Two runs of the same items; the second has a larger and better parent."""
    small = write_run(path / "small", 1, V, 40)
    large = write_run(path / "large", 2, V, 40)
    change_info(small, name="small")
    info = json.loads((large / "run.json").read_text())
    for entry in info["variants"]:
        entry["bytes"] *= 10
    change_info(large, name="large", variants=info["variants"])
    costs = pd.read_parquet(large / "costs.parquet")
    costs["bytes_on_disk"] *= 10
    costs.to_parquet(large / "costs.parquet", index=False)

    def better(frame: pd.DataFrame) -> pd.DataFrame:
        frame.loc[frame["variant"] == "parent", "score"] = 1.0
        return frame

    change_items(large, better)
    for run in (small, large) if config else ():
        parent = json.loads((run / "run.json").read_text())["parent"]
        change_info(run, parent={**parent, "config": config})
    return [small, large]


def test_variants_of_all_runs_stand_on_shared_items(tmp_path: Path) -> None:
    paths = _two(tmp_path)
    change_items(paths[1], lambda f: f[f["task"] != "t_math_chains"])
    runs = [load_run(p) for p in paths]
    shared = shared_items(runs)
    assert shared.scores.shape == (8 * 40, 6)
    assert shared.asked == (9 * 40, 8 * 40)
    for column, entrant in enumerate(shared.entrants):
        items = runs[entrant.run].items
        mine = items[(items["variant"] == entrant.variant) & (items["task"] != "t_math_chains")]
        assert shared.quality[column] == pytest.approx(mine["score"].mean())
    one = runs[0].items
    theirs = one[(one["variant"] == V[1]) & (one["slice"] == "multilingual/sw")]["score"]
    column = [e.label for e in shared.entrants].index(f"small · {V[1]}")
    rows = shared.rows("multilingual/sw")
    assert shared.scores[rows, column].tolist() == theirs.tolist()


def test_items_that_differ_are_not_shared(tmp_path: Path) -> None:
    paths = _two(tmp_path)

    def other(frame: pd.DataFrame) -> pd.DataFrame:
        frame["prompt_hash"] = "x" + frame["prompt_hash"]
        return frame

    change_items(paths[1], other)
    with pytest.raises(ComparisonError, match="no item in common"):
        shared_items([load_run(p) for p in paths])
    with pytest.raises(ComparisonError, match="several"):
        shared_items([load_run(paths[0])])


def test_the_best_that_fits_is_chosen(tmp_path: Path) -> None:
    runs = [load_run(p) for p in _two(tmp_path)]
    everything = across(runs, 1e9, 50)
    assert everything.chosen is not None
    assert everything.chosen.entrant.label == "large · parent"
    assert everything.chosen.need == 46_000_000
    little = across(runs, 5e6, 50)
    assert little.chosen is not None
    fits = [p for p in little.places if p.need <= 5e6]
    assert {p.entrant.run for p in fits} == {0}
    assert little.chosen.quality == max(p.quality for p in fits)
    assert "In 0.005 GB" in answer(little)
    nothing = across(runs, 1000.0, 50)
    assert nothing.chosen is None
    assert answer(nothing).startswith("Nothing fits")


def test_the_steps_are_the_best_at_each_size(tmp_path: Path) -> None:
    found = across([load_run(p) for p in _two(tmp_path)], None, 50)
    needs = [s.place.need for s in found.steps]
    qualities = [s.place.quality for s in found.steps]
    assert needs == sorted(needs)
    assert (np.diff(qualities) > 0).all()
    for place in found.places:
        reach = [s.place.quality for s in found.steps if s.place.need <= place.need]
        assert max(reach) >= place.quality
    last = found.steps[-1]
    assert last.gain is not None
    assert last.gain.delta == pytest.approx(qualities[-1] - qualities[-2])


def test_memory_counts_the_cache_where_every_parent_is_known(tmp_path: Path) -> None:
    runs = [load_run(p) for p in _two(tmp_path, **LLAMA)]
    found = across(runs, None, 20)
    assert found.context == 2048
    place = next(p for p in found.places if p.entrant.label == "small · parent")
    assert place.need - place.bytes == 2048 * 2 * 2 * 128 * 2


def test_a_rounded_cache_counts_its_own_bits(tmp_path: Path) -> None:
    paths = _two(tmp_path, **LLAMA)
    plan = json.loads((paths[0] / "run.json").read_text())["plan"]
    plan["variants"][0]["kv_bits"] = 4
    change_info(paths[0], plan=plan)
    found = across([load_run(p) for p in paths], None, 20)
    extra = {p.entrant.label: p.need - p.bytes for p in found.places}
    # The last 128 tokens in 16 bits, the others in 4 with 32 bits of scale and least value a 32.
    assert extra[f"small · {V[0]}"] == 2 * 2 * 128 * (128 * 16 + 1920 * 5) / 8
    assert extra[f"small · {V[1]}"] == extra[f"large · {V[0]}"] == 2048 * 2 * 2 * 128 * 2


def test_sizes_of_memory() -> None:
    assert parse_memory("24GB") == 24e9
    assert parse_memory("24 gib") == 24 * 2**30
    assert parse_memory("1000") == 1000
    for bad in ("", "lots", "0GB", "-1GB", "1e3GB"):
        with pytest.raises(PlanError, match="memory"):
            parse_memory(bad)


def test_the_page_and_its_files(tmp_path: Path) -> None:
    paths = _two(tmp_path)
    result = CliRunner().invoke(
        build_app(("report", "show")), ["report", *map(str, paths), "--memory", "5MB"]
    )
    assert result.exit_code == 0, result.output
    page = Path(result.output.splitlines()[-1])
    assert page == tmp_path / "comparison" / "index.html"
    text = page.read_text()
    assert "best that fits" in text
    summary = json.loads((page.parent / "comparison.json").read_text())
    assert summary["items"] == 9 * 40
    assert len(pd.read_csv(page.parent / "tables" / "variants.csv")) == 6
    with pytest.raises(StoreError, match="run directory"):
        render_across(paths, paths[0])


def test_hostile_names_are_inert(tmp_path: Path) -> None:
    paths = _two(tmp_path)
    change_info(paths[0], name=HOSTILE[1])
    change_info(paths[1], name=HOSTILE[5])

    def poison(frame: pd.DataFrame) -> pd.DataFrame:
        frame["slice"] = frame["slice"].replace({"math/chains": "math/" + HOSTILE[2]})
        return frame

    for path in paths:
        change_items(path, poison)
    text = render_across(paths, tmp_path / "out").read_text()
    parser = _Page()
    parser.feed(text)
    assert parser.faults == []
    assert not parser.tags & {"img", "iframe"}
    assert "\u202e" not in text


def test_options_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    run = write_run(tmp_path / "r", 0, V, 5)
    app = build_app(("report", "show"))
    for words in (
        ["report"],
        ["report", str(run), "--memory", "1GB"],
        ["report", str(run), "--history", str(tmp_path)],
        ["report", str(run), "--style", "papers"],
    ):
        assert isinstance(CliRunner().invoke(app, words).exception, PlanError)
