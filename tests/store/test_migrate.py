"""Runs of older formats open; those of newer and of unknown ones say so."""

import json
from pathlib import Path
from typing import Any

import pytest

from evalq.compare import load_run
from evalq.errors import StoreError
from evalq.gate import gate, load_policy
from evalq.report.render import render
from evalq.run import resolve_plan, run_plan
from evalq.schema import FORMAT_VERSION
from evalq.store import RunDirectory
from tests.synthetic import change_info, write_run

V = "rtn-w4-g128"
CONFIG = {"model_type": "llama", "num_hidden_layers": 2, "num_attention_heads": 4,
          "hidden_size": 64, "vocab_size": 300, "quantization_config": {}}  # fmt: skip


def _version_1(path: Path) -> Path:
    """A run as version 1 wrote it: the parent's shape and the layers are in the artifact only."""
    write_run(path, variants=(V,), items=110)
    info = json.loads((path / "run.json").read_text())
    info["variants"][1]["path"] = "runs/elsewhere/artifacts/w4"
    change_info(path, format_version=1, variants=info["variants"])
    folder = path / "artifacts" / "w4"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    layers: list[dict[str, Any]] = [{"name": f"model.layers.{i}.q", "bits": 4 - i} for i in (0, 1)]
    (folder / "evalq-manifest.json").write_text(json.dumps({"layers": layers}))
    return path


def test_the_previous_version_opens(tmp_path: Path) -> None:
    path = _version_1(tmp_path / "r")
    before = (path / "run.json").read_bytes()
    run = load_run(path)
    assert run.info["format_version"] == FORMAT_VERSION
    assert run.info["parent"]["config"] == {
        key: CONFIG[key]
        for key in ("model_type", "num_hidden_layers", "num_attention_heads", "hidden_size")
    }
    assert [x["bits"] for x in run.variant_info(V)["layers"]] == [4, 3]
    assert (path / "run.json").read_bytes() == before


def test_the_previous_version_is_rendered_and_gated(tmp_path: Path) -> None:
    path = _version_1(tmp_path / "r")
    text = render(path, ()).read_text()
    assert f"Bits by layer: {V}" in text
    assert "Memory at context lengths" in text
    policy = tmp_path / "p.yaml"
    policy.write_text("policy_version: 1\nmetrics:\n  accuracy: {margin_pp: 30.0}\n")
    assert gate(load_run(path), load_policy(policy)).verdict == "pass"


def test_without_its_artifacts_it_opens_too(tmp_path: Path) -> None:
    path = change_info(write_run(tmp_path / "r", variants=(V,), items=5), format_version=1)
    run = load_run(path)
    assert "config" not in run.info["parent"]
    assert render(path, ()).is_file()


def test_a_finished_run_of_the_previous_version_is_not_run_again(tmp_path: Path) -> None:
    plan = resolve_plan({"parent": "builtin", "out": str(tmp_path / "r")})
    path = change_info(_version_1(tmp_path / "r"), plan_hash=plan.hash)
    before = (path / "run.json").read_bytes()
    assert run_plan(plan) == path
    assert (path / "run.json").read_bytes() == before


@pytest.mark.parametrize("version", [FORMAT_VERSION + 1, 99])
def test_a_newer_version_says_so(tmp_path: Path, version: int) -> None:
    path = change_info(write_run(tmp_path / "r", variants=(V,), items=2), format_version=version)
    with pytest.raises(StoreError, match=f"version {version}; this evalq reads up to") as caught:
        load_run(path)
    assert caught.value.hint == "Install a newer evalq."


def test_a_version_that_never_was_is_refused(tmp_path: Path) -> None:
    path = change_info(write_run(tmp_path / "r", variants=(V,), items=2), format_version=0)
    with pytest.raises(StoreError, match="version 0"):
        RunDirectory(path).read_info()
