"""``evalq quantize``, on a tiny parent."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from evalq.cli.main import build_app
from evalq.errors import ArtifactError, EvalqError, PlanError, QuantizationError
from tests.artifacts.helpers import tiny_llama, tiny_tokenizer

SMALL = ("--samples", "4", "--length", "16", "--group-size", "32", "--quiet")


@pytest.fixture(scope="module")
def parent(tmp_path_factory):
    directory = tmp_path_factory.mktemp("parent") / "tiny"
    tiny_llama(torch.bfloat16).save_pretrained(directory)
    tiny_tokenizer().save_pretrained(directory)
    text = directory.parent / "text.txt"
    text.write_text(" ".join(f"w{1 + (7 * i) % 63}" for i in range(400)))
    return directory


def run(parent, *arguments):
    text = str(parent.parent / "text.txt")
    words = ["quantize", str(parent), *arguments, "--calibration", text, *SMALL]
    return CliRunner().invoke(build_app(("quantize", "artifacts")), words)


def test_an_artifact_is_made_and_found_again(parent, tmp_path):
    out = tmp_path / "out"
    first = run(parent, "--method", "gptq", "--bits", "4", "--out", str(out), "--json")
    assert first.exit_code == 0, first.output
    manifest = json.loads(first.stdout)
    assert manifest["method"] == "gptq"
    assert manifest["scheme"]["text"] == "w4-g32"
    assert manifest["calibration"]["samples"] == 4
    assert manifest["engines"]["transformers"]["loads"]
    assert AutoModelForCausalLM.from_pretrained(out).dtype == torch.bfloat16
    again = run(parent, "--method", "gptq", "--bits", "4", "--out", str(out))
    assert "already there" in again.stdout
    assert manifest["content_hash"] in again.stdout


def test_formats_and_options(parent, tmp_path):
    made = run(
        *(parent, "--method", "rtn", "--bits", "4", "--asym", "--format", "gptq-v2"),
        *("--option", "clip=mse", "--out", str(tmp_path / "a"), "--json"),
    )
    assert made.exit_code == 0, made.output
    manifest = json.loads(made.stdout)
    assert manifest["format"] == "gptq-v2"
    assert manifest["options"]["clip"] == "mse"
    assert manifest["options"]["scale_dtype"] == "float16"
    assert manifest["scheme"]["symmetric"] is False


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("--bits", "9"), PlanError, "9 bits"),
        (("--method", "gtpq"), PlanError, "gtpq"),
        (("--format", "gguf"), PlanError, "gguf"),
        (("--option", "clip=best", "--method", "rtn"), PlanError, "best"),
        (("--option", "clop=mse", "--method", "rtn"), PlanError, "clop"),
        (("--option", "clip"), PlanError, "NAME=VALUE"),
        (("--method", "rtn", "--format", "awq", "--bits", "3"), PlanError, "4-bit"),
        (("--method", "rtn", "--activation-bits", "8"), PlanError, "activations of 8 bits"),
        (("--method", "rtn", "--group-size", "40"), QuantizationError, "do not divide"),
        (("--method", "rtn", "--group-size", "0"), PlanError, "group size 0"),
        (("--method", "rtn", "--group-size", "big"), PlanError, "no number"),
    ],
)
def test_bad_input_is_refused_and_nothing_is_left(parent, tmp_path, arguments, error, message):
    # The last of a repeated flag counts.
    text = str(parent.parent / "text.txt")
    words = ["quantize", str(parent), "--out", str(tmp_path / "out"), "--calibration", text]
    result = CliRunner().invoke(build_app(("quantize",)), [*words, *SMALL, *arguments])
    assert isinstance(result.exception, error), result.output
    assert isinstance(result.exception, EvalqError)
    assert message in str(result.exception)
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_holds_something_else(parent, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    result = run(parent, "--method", "rtn", "--out", str(tmp_path))
    assert isinstance(result.exception, ArtifactError)
    assert "not made by evalq" in str(result.exception)


def test_streamed_from_disk(parent, tmp_path):
    plain = run(parent, "--method", "gptq", "--out", str(tmp_path / "a"), "--json")
    streamed = run(parent, "--method", "gptq", "--out", str(tmp_path / "b"), "--stream", "--json")
    assert streamed.exit_code == 0, streamed.output
    hashes = {json.loads(r.stdout)["content_hash"] for r in (plain, streamed)}
    assert len(hashes) == 1
    for more in (("--method", "gptq+kd"), ("--option", "rotate=hadamard")):
        refused = run(parent, *more, "--out", str(tmp_path / "c"), "--stream")
        assert isinstance(refused.exception, PlanError)
        assert "needs the whole parent" in str(refused.exception)


def test_eight_bit_activations(parent, tmp_path):
    text = str(parent.parent / "text.txt")
    words = ["quantize", str(parent), "--method", "smoothquant", "--bits", "8", "--quiet"]
    words += ["--activation-bits", "8", "--calibration", text, "--samples", "4", "--length", "16"]
    result = CliRunner().invoke(build_app(("quantize",)), [*words, "--out", str(tmp_path / "a")])
    assert result.exit_code == 0, result.output
    assert "peak memory" in result.stdout
    manifest = json.loads((tmp_path / "a" / "evalq-manifest.json").read_text())
    assert manifest["scheme"]["text"] == "w8-channel-a8"


def test_a_mixture_and_items_that_are_evaluated(parent, tmp_path):
    items = tmp_path / "items.jsonl"
    rows = [
        {"prompt": " ".join(f"w{1 + (i * k) % 63}" for k in range(1, 40)), "target": f"w{i}"}
        for i in range(1, 20)
    ]
    items.write_text("\n".join(json.dumps(row) for row in rows))
    mixture = f"{parent.parent / 'text.txt'}=0.5,workload:{items}=0.5"
    words = ["quantize", str(parent), "--calibration", mixture, *SMALL, "--evaluated", str(items)]
    out = ["--out", str(tmp_path / "out"), "--method", "gptq"]
    app = build_app(("quantize",))
    refused = CliRunner().invoke(app, [*words, *out])
    assert isinstance(refused.exception, PlanError)
    assert "19 of the 19 items" in str(refused.exception)
    assert not (tmp_path / "out").exists()
    made = CliRunner().invoke(app, [*words, *out, "--allow-overlap"])
    assert made.exit_code == 0, made.output
    assert "warning: The calibration text holds 19 of the 19" in made.stdout
    manifest = json.loads((tmp_path / "out" / "evalq-manifest.json").read_text())
    assert [p["windows"] for p in manifest["calibration"]["parts"]] == [2, 2]


@pytest.mark.parametrize("fault", ["no text", "nan"])
def test_faults_leave_nothing_behind(parent, tmp_path, fault):
    words = ["--out", str(tmp_path / "new" / "out"), "--method", "gptq"]
    where, text = parent, parent.parent / "text.txt"
    if fault == "no text":
        text = parent.parent / "empty.txt"
        text.write_text(" \n")
    else:
        where = parent.parent / "broken"
        model = tiny_llama(torch.bfloat16)
        with torch.no_grad():
            model.model.layers[1].mlp.down_proj.weight[0, 0] = float("nan")
        model.save_pretrained(where)
        tiny_tokenizer().save_pretrained(where)
    command = ["quantize", str(where), "--calibration", str(text), *SMALL, *words]
    result = CliRunner().invoke(build_app(("quantize",)), command)
    assert isinstance(result.exception, EvalqError)
    expected = (
        "holds no text" if fault == "no text" else "layers.1.mlp.down_proj.weight holds 1 NaN"
    )
    assert expected in str(result.exception)
    assert list(tmp_path.iterdir()) == []


def test_experts_that_saw_too_few_tokens_are_printed(parent, tmp_path):
    from tests.quantize.tiny import tiny

    where = tmp_path / "moe"
    tiny("mixtral", vocab_size=64).save_pretrained(where)
    tiny_tokenizer().save_pretrained(where)
    text = str(parent.parent / "text.txt")
    words = ["quantize", str(where), "--calibration", text, *SMALL, "--option", "minimum_tokens=60"]
    result = CliRunner().invoke(
        build_app(("quantize",)), [*words, "--method", "gptq", "--out", str(tmp_path / "out")]
    )
    assert result.exit_code == 0, result.output
    assert "calibration tokens reached this expert" in result.stdout
