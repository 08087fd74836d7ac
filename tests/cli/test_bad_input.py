"""Bad input: a message that says what is wrong and what to do, exit code 2, and no traceback."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest

from evalq.cli.main import VERBS, main
from tests.models.tiny import byte_level_tokenizer, module


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bad") / "tiny"
    tokenizer = byte_level_tokenizer()
    module("llama", tokenizer, length=256).bfloat16().save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture
def items(tmp_path: Path) -> Path:
    path = tmp_path / "items.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"{i}", "target": "x"}) + "\n" for i in range(4)))
    return path


def refused(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> str:
    """Run the command line; it has to exit with 2. Returns what it said on standard error."""
    monkeypatch.setattr(sys, "argv", ["evalq", *words])
    with pytest.raises(SystemExit) as left:
        main()
    said = capsys.readouterr().err
    assert left.value.code == 2, said
    assert "Traceback" not in said
    return said


def test_bad_input(
    parent: Path,
    items: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    truncated = tmp_path / "truncated"
    shutil.copytree(parent, truncated)
    weights = truncated / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    pickled = tmp_path / "pickled"
    shutil.copytree(parent, pickled)
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"prompt": "a", "target": "b"}\n{"prompt": \n')
    plan = tmp_path / "plan.yaml"
    plan.write_text("calibraton: {samples: 3}\n")
    code = tmp_path / "code.jsonl"
    code.write_text('{"prompt": "a", "target": "assert f()", "scorer": "code"}\n')
    task = tmp_path / "task.yaml"
    task.write_text("task: t\ndoc_to_text: !function own.f\n")
    out = ["--out", str(tmp_path / "out")]
    small = ["--workload", str(items), *out]
    cases = [
        (["--parent", "/no/such/model", *small], ["no such parent", "/no/such/model"]),
        (["--parent", str(bare), *small], [str(bare), "config.json"]),
        (["--parent", str(truncated), *small], ["model.safetensors", "truncated"]),
        (["--parent", str(pickled), *small], ["pickled", "save_pretrained"]),
        ([str(plan), *small], ["calibraton", "Did you mean 'calibration'?"]),
        (["--parent", str(parent), "--variant", "rtn:9", *small], ["9 bits", "2, 3, 4"]),
        (["--parent", str(parent), "--variant", "rtn:4:g0", *small], ["group size 0"]),
        (["--parent", str(parent), "--variant", "rtn:4:g48", *small], ["48"]),
        (["--parent", str(parent), "--variant", "gtpq:4", *small], ["gtpq", "gptq"]),
        (["--parent", str(parent), "--workload", str(empty), *out], ["empty.jsonl"]),
        (["--parent", str(parent), "--workload", str(broken), *out], ["broken.jsonl", "2"]),
        (
            ["--parent", str(parent), "--variant", "rtn:4", "--variant", "rtn:4", *small],
            ["two variants are named", "'name'"],
        ),
        (["--parent", str(parent), "--suite", "builtin-mat", *out], ["builtin-math"]),
        (["--parent", "/nothing", "--workload", str(code), *out], ["--allow-code", "line 1"]),
        (["--parent", "/nothing", "--workload", str(task), *out], ["--allow-code", "own.f"]),
        (["--parent", str(parent), "--limit", "0", *small], ["limit"]),
        (["--parent", str(parent), "--no-such-flag"], ["--no-such-flag"]),
    ]
    for words, expected in cases:
        said = refused(["run", "-q", *words], monkeypatch, capsys)
        for word in expected:
            assert word in said, (words, said)
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").glob("*.parquet"))


def test_a_directory_that_holds_another_plans_run(
    parent: Path,
    items: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "run"
    out.mkdir()
    (out / "run.json").write_text(json.dumps({"format_version": 1, "plan_hash": "other"}))
    (out / "items.parquet").write_bytes(b"")
    words = ["run", "-q", "--parent", str(parent), "--workload", str(items), "--out", str(out)]
    said = refused(words, monkeypatch, capsys)
    assert "holds another plan's run" in said
    assert "--out" in said


def test_every_verb_has_help_with_an_example(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for verb in VERBS:
        monkeypatch.setattr(sys, "argv", ["evalq", verb, "--help"])
        with pytest.raises(SystemExit) as left:
            main()
        assert left.value.code in (0, None)
        said = capsys.readouterr().out
        assert "Usage: evalq" in said
