"""``evalq gate``, ``evalq policy`` and ``evalq stats`` as typed."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from evalq.cli.main import main
from tests.gate.conftest import BAD, GOOD

Evalq = Callable[..., "Done"]


@dataclass
class Done:
    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def evalq(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Evalq:
    """The command line in this process: starting one takes longer than a gate."""

    def run(*arguments: str | Path, **environment: str) -> Done:
        for name in ("GITHUB_ACTIONS", "GITHUB_STEP_SUMMARY"):
            monkeypatch.delenv(name, raising=False)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(sys, "argv", ["evalq", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as exited:
            main()
        out, err = capsys.readouterr()
        return Done(int(exited.value.code or 0), out, err)

    return run


def test_gate(evalq: Evalq, run_dir: Path, policy_file: Path, tmp_path: Path) -> None:
    done = evalq("gate", run_dir, "--policy", policy_file, "--variant", GOOD, "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    assert "gate: pass" in done.stdout
    assert json.loads((tmp_path / "gate.json").read_text())["verdict"] == "pass"
    assert {p.name for p in tmp_path.iterdir()} >= {
        "junit.xml",
        "comment.md",
        "gl-code-quality.json",
    }


def test_gate_on_github(evalq: Evalq, run_dir: Path, policy_file: Path, tmp_path: Path) -> None:
    summary = tmp_path / "summary.md"
    done = evalq(
        "gate", run_dir, "--policy", policy_file, "--variant", BAD, "--out", tmp_path / "o",
        GITHUB_ACTIONS="true", GITHUB_STEP_SUMMARY=str(summary),
    )  # fmt: skip
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    table = next(i for i, line in enumerate(lines) if "gate: fail" in line)
    orders = [i for i, line in enumerate(lines) if line.startswith("::error")]
    assert orders
    assert min(orders) > table
    assert "evalq gate: fail" in summary.read_text(encoding="utf-8")


def test_gate_json_is_alone_on_stdout(
    evalq: Evalq, run_dir: Path, policy_file: Path, tmp_path: Path
) -> None:
    done = evalq("gate", run_dir, "--policy", policy_file, "--json", "--github", "--out", tmp_path)
    assert done.returncode == 1
    assert json.loads(done.stdout) == json.loads((tmp_path / "gate.json").read_text())
    assert "::error" in done.stderr


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("alpha: 0.05", "alpha: 0", "alpha"),
        ("margin_pp: 3.0", "margin_pp: -1", "margin_pp"),
        ("alpha: 0.05", "alhpa: 0.05", "Did you mean 'alpha'"),
        ("  math:", "  mahts:", "matches no slice"),
    ],
)
def test_bad_policies(
    evalq: Evalq, run_dir: Path, policy_file: Path, old: str, new: str, words: str, tmp_path: Path
) -> None:
    policy_file.write_text(policy_file.read_text().replace(old, new))
    done = evalq("gate", run_dir, "--policy", policy_file, "--out", tmp_path / "o")
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "o").exists()


def test_gate_without_a_run(evalq: Evalq, policy_file: Path, tmp_path: Path) -> None:
    done = evalq("gate", tmp_path / "none", "--policy", policy_file)
    assert done.returncode == 2
    assert "no run directory" in done.stderr


def test_policy_check_and_init(
    evalq: Evalq, run_dir: Path, policy_file: Path, tmp_path: Path
) -> None:
    assert evalq("policy", "check", policy_file).returncode == 0
    written = tmp_path / "new.yaml"
    assert evalq("policy", "init", run_dir, "--out", written).returncode == 0
    again = evalq("policy", "init", run_dir, "--out", written)
    assert again.returncode == 2
    assert "exists already" in again.stderr
    done = evalq("policy", "check", written, "--run", run_dir, "--json")
    assert done.returncode == 0
    assert all(m["reached"] for m in json.loads(done.stdout)["margins"])
    written.write_text(written.read_text().replace("  math:", "  maths/*:"))
    done = evalq("policy", "check", written, "--run", run_dir)
    assert done.returncode == 2
    assert "matches no slice" in done.stderr


def test_calculator(evalq: Evalq) -> None:
    done = evalq(
        *[
            "stats",
            "paired",
            "--lost",
            "60",
            "--gained",
            "20",
            "--items",
            "1000",
            "--margin-pp",
            "2",
            "--confidence",
            ".95",
        ],
        "--json",
    )
    answer = json.loads(done.stdout)
    assert set(answer) == {
        "delta", "ci", "p_worse", "p_two_sided_midp", "verdict", "detected_loss", "items_needed",
    }  # fmt: skip
    assert [round(x, 4) for x in answer["ci"]] == [-0.0584, -0.0231]
    assert (answer["verdict"], answer["detected_loss"]) == ("fail", True)
    done = evalq(*["stats", "power", "--flip-rate", ".13", "--margin-pp", "1", "--json"])
    assert json.loads(done.stdout)["items_needed"] == 8038
    assert set(json.loads(done.stdout)) == {"items_needed", "detectable_pp"}
    done = evalq(*["stats", "power", "--flip-rate", ".09", "--margin-pp", "1", "--items", "1392"])
    assert "2.00 pp" in done.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        "paired --lost 5 --gained 6 --items 10 --margin-pp 1",
        "paired --lost -1 --gained 6 --items 10 --margin-pp 1",
        "paired --lost 1 --gained 1 --items 0 --margin-pp 1",
        "paired --lost 1 --gained 1 --items 10 --margin-pp 0",
        "paired --lost 1 --gained 1 --items 10 --margin-pp nan",
        "paired --lost 1 --gained 1 --items 10 --margin-pp 1 --confidence 90",
        "power --flip-rate 0 --margin-pp 1",
        "power --flip-rate .1 --margin-pp 1 --true-loss-pp 1",
        "power --flip-rate .1 --margin-pp 1 --items 0",
    ],
)
def test_calculator_refuses(evalq: Evalq, arguments: str) -> None:
    done = evalq("stats", *arguments.split())
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith(("evalq: error:", "Usage"))


def test_monitor(evalq: Evalq, run_dir: Path) -> None:
    done = evalq("stats", "monitor", run_dir, "--variant", BAD, "--margin-pp", "2", "--json")
    broken = json.loads(done.stdout)
    assert broken["loss_at"] < 200
    assert broken["pass_at"] is None
    done = evalq("stats", "monitor", run_dir, "--variant", GOOD, "--margin-pp", "2", "--json")
    good = json.loads(done.stdout)
    assert good["loss_at"] is None
    assert good["pass_at"] < good["units"] == 2000
    assert "not shown" in evalq("stats", "monitor", run_dir, "--variant", GOOD).stdout
    assert evalq("stats", "monitor", run_dir, "--variant", "none").returncode == 2
