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
