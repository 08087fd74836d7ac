from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from evalq.cli.list import app, task_rows
from evalq.cli.workload import app as workload_app
from evalq.errors import PlanError, TaskError

RUNNER = CliRunner()


def test_suites() -> None:
    result = RUNNER.invoke(app, ["suites"])
    assert result.exit_code == 0
    assert "multilingual" in result.stdout
    rows = json.loads(RUNNER.invoke(app, ["suites", "--json"]).stdout)
    assert {"suite", "version", "tasks", "slices", "description"} == set(rows[0])


def test_tasks_by_slice() -> None:
    names = ["--suite", "multilingual", "--slice", "multilingual/sw"]
    rows = json.loads(RUNNER.invoke(app, ["tasks", "--json", *names]).stdout)
    assert [row["task"] for row in rows] == ["mgsm_direct_sw", "xcopa_sw"]
    assert len(task_rows(["math"])) == 2
    with pytest.raises(PlanError, match="Did you mean 'multilingual/sw'"):
        task_rows(["multilingual"], "multilingual/swa")


@pytest.mark.parametrize("what", ["methods", "formats", "scorers"])
def test_registries(what: str) -> None:
    rows = json.loads(RUNNER.invoke(app, [what, "--json"]).stdout)
    assert all(row["name"] and row["summary"] for row in rows)
    assert RUNNER.invoke(app, [what]).exit_code == 0


def test_data(tmp_path: Path) -> None:
    (tmp_path / "xcopa").mkdir()
    (tmp_path / "xcopa" / "test.sw.jsonl").write_text('{"idx": 0}\n')
    picks = ["--suite", "multilingual:*_sw", "--suite", "builtin-text"]
    arguments = ["data", *picks, "--data-dir", str(tmp_path)]
    rows = json.loads(RUNNER.invoke(app, [*arguments, "--json"]).stdout)
    assert [row["status"] for row in rows] == ["hub", "local", "shipped"]
    assert rows[0]["files"] == [str(tmp_path / "mgsm" / "mgsm_sw.tsv")]
    assert "1 datasets would come from the hub" in RUNNER.invoke(app, arguments).stdout


def test_listing_suites_imports_neither_torch_nor_lm_eval() -> None:
    code = (
        "import sys; from evalq.cli.list import suite_rows; suite_rows();"
        "print([m for m in ('torch', 'lm_eval', 'datasets', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "[]"


def test_workload_check(tmp_path: Path) -> None:
    path = tmp_path / "w.jsonl"
    path.write_text(
        '{"prompt": "a\\u001b[31m?", "target": "3", "slice": "x"}\n'
        '{"prompt": "c", "choices": ["d", "e"], "answer": 0}\n'
    )
    result = RUNNER.invoke(workload_app, [f"{path}:numeric"])
    assert result.exit_code == 0
    assert "a\\x1b[31m?" in result.stdout  # escaped: the terminal is not coloured
    assert "\x1b" not in result.stdout
    answer = json.loads(RUNNER.invoke(workload_app, [str(path), "--json"]).stdout)
    assert answer["items"] == 2
    assert [t["kind"] for t in answer["tasks"]] == ["free", "choices"]
    assert answer["tasks"][0]["slices"] == {"workload/w/x": 1}
    assert answer["tasks"][0]["prompts"][0]["prompt"] == "a\x1b[31m?"
    bad = RUNNER.invoke(workload_app, [str(tmp_path / "gone.jsonl")])
    assert isinstance(bad.exception, TaskError)
