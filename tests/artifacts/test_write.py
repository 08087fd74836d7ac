"""Shards, tied weights and changed tensors, through transformers."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoModelForCausalLM

from evalq.artifacts import write as write_module
from evalq.artifacts.api import read, storage
from evalq.artifacts.compressed_tensors import CompressedTensors
from evalq.artifacts.write import Contents, StoredTypes, replacing, stored_types, write_model
from evalq.errors import ArtifactError, NonFiniteError, QuantizationError
from evalq.schema import PerGroup, WeightScheme
from tests.artifacts.helpers import random_layers, tiny_llama, tiny_tokenizer

SCHEME = WeightScheme(4, PerGroup(32))
TYPES = StoredTypes(torch.float32)


def contents(module, dense=None, layers=None, types=TYPES):
    layers = random_layers(module, SCHEME) if layers is None else layers
    return Contents(module, tiny_tokenizer(), layers, dense or {}, None, types)


def test_big_models_are_sharded(tmp_path, monkeypatch):
    module = tiny_llama()
    (tmp_path / "one").mkdir()
    write_model(contents(module), CompressedTensors(), tmp_path / "one")
    monkeypatch.setattr(write_module, "_SHARD_BYTES", 20_000)
    (tmp_path / "many").mkdir()
    write_model(contents(module), CompressedTensors(), tmp_path / "many")
    shards = sorted(p.name for p in (tmp_path / "many").glob("*.safetensors"))
    assert len(shards) > 2
    assert shards[0] == f"model-00001-of-{len(shards):05d}.safetensors"
    index = json.loads((tmp_path / "many/model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == set(shards)
    whole, parts = read(tmp_path / "one"), read(tmp_path / "many")
    assert set(whole.dense) == set(parts.dense)
    assert storage(tmp_path / "one").bits_per_weight == storage(tmp_path / "many").bits_per_weight
    peer = AutoModelForCausalLM.from_pretrained(tmp_path / "many")
    single = AutoModelForCausalLM.from_pretrained(tmp_path / "one")
    tokens = torch.arange(1, 17)[None]
    with torch.no_grad():
        assert torch.equal(peer(tokens).logits, single(tokens).logits)


def test_a_changed_head_is_tied_no_longer(tmp_path):
    module = tiny_llama(tied=True)
    head = torch.randn(64, 64, generator=torch.Generator().manual_seed(5))
    write_model(contents(module, {"lm_head.weight": head}), CompressedTensors(), tmp_path)
    peer = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(peer.lm_head.weight, head)
    assert torch.equal(peer.model.embed_tokens.weight, module.model.embed_tokens.weight)
    assert peer.config.tie_word_embeddings is False


def test_changed_norms_are_stored(tmp_path):
    module = tiny_llama()
    name = "model.layers.1.input_layernorm.weight"
    write_model(contents(module, {name: torch.full((64,), 3.0)}), CompressedTensors(), tmp_path)
    assert torch.equal(read(tmp_path).dense[name], torch.full((64,), 3.0))


def test_each_tensor_keeps_its_own_dtype(tmp_path):
    module = tiny_llama(torch.bfloat16)
    module.model.norm.weight.data = module.model.norm.weight.data.float()
    module.save_pretrained(tmp_path / "parent")
    types = stored_types(tmp_path / "parent", module)
    assert types.main == torch.bfloat16
    assert types.of("model.norm.weight") == torch.float32
    (tmp_path / "out").mkdir()
    write_model(contents(module.float(), types=types), CompressedTensors(), tmp_path / "out")
    dense = read(tmp_path / "out").dense
    assert dense["model.norm.weight"].dtype == torch.float32
    assert dense["lm_head.weight"].dtype == torch.bfloat16


def test_a_parent_that_is_no_directory_is_stored_in_half_precision(tmp_path):
    assert stored_types(tmp_path / "m.gguf", tiny_llama()).main == torch.float16
    assert stored_types(tmp_path / "m.gguf", tiny_llama(torch.bfloat16)).main == torch.bfloat16


def test_what_cannot_be_stored_is_refused(tmp_path):
    module = tiny_llama()
    with pytest.raises(QuantizationError, match="no tensor 'model"):
        write_model(
            contents(module, {"model.nothing": torch.ones(1)}), CompressedTensors(), tmp_path
        )
    layers = random_layers(module, SCHEME)
    layers["model.layers.7.mlp.up_proj"] = layers["model.layers.0.mlp.up_proj"]
    with pytest.raises(QuantizationError, match=r"no layer 'model.layers.7"):
        write_model(contents(module, layers=layers), CompressedTensors(), tmp_path)
    large = {"model.norm.weight": torch.full((64,), 1e6)}
    half = StoredTypes(torch.float16)
    with pytest.raises(NonFiniteError, match="norm"):
        write_model(contents(module, large, types=half), CompressedTensors(), tmp_path)


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(ArtifactError, match="cannot write"), replacing(tmp_path / "file/out"):
        pass


def test_replacing_is_all_or_nothing(tmp_path):
    def interrupted():
        with replacing(tmp_path / "out") as temporary:
            (temporary / "half").write_text("x")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(tmp_path.iterdir()) == []
    with replacing(tmp_path / "out") as temporary:
        (temporary / "whole").write_text("x")
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out/whole").read_text() == "x"
