"""``evalq report``, ``compare`` and ``show``."""

import json
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

from evalq.cli.main import build_app
from evalq.errors import ComparisonError, PlanError, StoreError
from tests.synthetic import change_items, write_run

V = "rtn-w3-g128"
APP = build_app(("report", "compare", "show"))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "r", variants=(V,), items=30)


def _call(*words: object) -> str:
    result = CliRunner().invoke(APP, [str(w) for w in words])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout


def test_report_prints_the_path_or_the_summary(run: Path) -> None:
    path = Path(_call("report", run, "--figures", "none").strip())
    assert path == run / "report" / "index.html"
    assert not (run / "report" / "figures").exists()
    summary = json.loads(_call("report", run, "--figures", "none", "--json"))
    assert summary["variants"][0]["name"] == "parent"


def test_report_suggests_a_figure(run: Path) -> None:
    with pytest.raises(PlanError) as caught:
        _call("report", run, "--figures", "fronteer")
    assert "frontier" in caught.value.hint


def test_no_run_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no run directory"):
        _call("show", tmp_path)


def test_compare_lists_flips_with_both_answers(run: Path, tmp_path: Path) -> None:
    words = ("compare", run, "parent", V, "--slice", "multilingual", "--direction", "lost")
    text = _call(*words, "--limit", 2)
    assert "expected" in text
    assert "multilingual/" in text
    found = json.loads(_call(*words, "--limit", 3, "--json", "--csv", tmp_path / "f.csv"))
    assert len(found["flips"]) == 3
    assert {f["direction"] for f in found["flips"]} == {"lost"}
    assert all(f["slice"].startswith("multilingual/") for f in found["flips"])
    assert all(f["baseline_response"] == f["target"] for f in found["flips"])
    table = pd.read_csv(tmp_path / "f.csv")
    assert len(table) == found["flips_total"] == found["slices"]["multilingual"]["lost"]


def test_compare_suggests_a_slice(run: Path) -> None:
    with pytest.raises(ComparisonError) as caught:
        _call("compare", run, "parent", V, "--slice", "multilingua")
    assert "multilingual" in caught.value.hint


def test_show_has_the_verdict(run: Path) -> None:
    assert "Ship" in _call("show", run)
    assert json.loads(_call("show", run, "--json"))["recommended"]["variant"]


def test_the_terminal_gets_no_control_characters_of_others(run: Path) -> None:
    def change(frame: pd.DataFrame) -> pd.DataFrame:
        for column in ("prompt", "target", "response"):
            frame[column] = "\x1b[2J[bold]x[/bold]\u202e\x07"
        frame["slice"] = frame["slice"] + "\x1b]0;t\x07"
        return frame

    change_items(run, change)
    for words in (("show", run), ("compare", run, "parent", V)):
        text = _call(*words)
        assert not {"\x1b", "\x07", "\u202e"} & set(text)
    assert "[bold]" in _call("compare", run, "parent", V)
