"""Architectures whose checkpoints are not laid out like their modules."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPTNeoXConfig,
    MixtralConfig,
    Qwen3MoeConfig,
)

from evalq.artifacts.api import read
from evalq.artifacts.identity import hash_directory
from evalq.artifacts.make import make_artifact
from evalq.models.load import load_artifact
from evalq.plan import EnginePlan
from evalq.quantize.calibration import Calibration
from evalq.schema import PerChannel, PerGroup, Scheme, WeightScheme
from tests.artifacts.helpers import tiny_tokenizer

SMALL = {
    "vocab_size": 64,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
CONFIGS = {
    "mixtral": MixtralConfig(**SMALL, num_key_value_heads=2, num_local_experts=4),
    "qwen3_moe": Qwen3MoeConfig(
        **SMALL,
        num_key_value_heads=2,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=32,
        head_dim=16,
    ),
    "gpt_neox": GPTNeoXConfig(**SMALL),
    "gpt2": GPT2Config(
        vocab_size=64, n_embd=64, n_layer=2, n_head=4, n_positions=64, bos_token_id=0
    ),
}
TOKENS = torch.arange(1, 33)[None]
SEEN = torch.randint(1, 64, (8, 32), generator=torch.Generator().manual_seed(1))


def artifact(name, tmp_path, symmetric=True, method="rtn", options=None, bits=8, a8=False):
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(CONFIGS[name]).save_pretrained(tmp_path / "parent")
    tiny_tokenizer().save_pretrained(tmp_path / "parent")
    module = AutoModelForCausalLM.from_pretrained(tmp_path / "parent").eval()
    source = SimpleNamespace(path=tmp_path / "parent", kind="directory")
    parent = SimpleNamespace(
        name=name,
        hash=hash_directory(tmp_path / "parent"),
        module=module,
        tokenizer=tiny_tokenizer(),
        source=source,
    )
    scheme = Scheme(WeightScheme(bits, PerGroup(32), symmetric))
    if a8:
        scheme = Scheme(WeightScheme(8, PerChannel()), activation_bits=8)
    calibration = None if method == "rtn" else Calibration.from_tokens(SEEN, "random")
    made = make_artifact(parent, scheme, method, calibration, options or {}, 0, tmp_path / "out")
    return module, made


def logits(model):
    with torch.no_grad():
        return model(TOKENS).logits


@pytest.mark.parametrize("method", ["rtn", "awq"])
@pytest.mark.parametrize("name", CONFIGS)
def test_loaded_back_it_is_the_parent_but_for_rounding(name, method, tmp_path):
    module, made = artifact(name, tmp_path, method=method)
    ours = logits(load_artifact(made.path, EnginePlan(device="cpu")).module)
    theirs = logits(module)
    error = (ours - theirs).norm() / theirs.norm()
    assert 0 < error < 0.02


def assert_same_in_transformers(made):
    ours = logits(load_artifact(made.path, EnginePlan(device="cpu")).module)
    peer, info = AutoModelForCausalLM.from_pretrained(made.path, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    # transformers rounds the weights of experts to the dtype of the scales, float16.
    assert torch.allclose(logits(peer), ours, rtol=1e-3, atol=2e-4)
    assert made.manifest["engines"]["transformers"]["loads"]


@pytest.mark.parametrize("method", ["rtn", "awq"])
@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe", "gpt_neox"])
def test_transformers_gives_the_same_logits(name, method, tmp_path):
    _, made = artifact(name, tmp_path, method=method)
    assert_same_in_transformers(made)


def test_experts_have_the_names_and_rows_of_the_checkpoint(tmp_path):
    module, made = artifact("mixtral", tmp_path)
    stored = read(made.path)
    home = "model.layers.1.block_sparse_moe.experts"
    gate_up = module.model.layers[1].mlp.experts.gate_up_proj
    for expert in range(4):
        for name, rows in (("w1", slice(0, 96)), ("w3", slice(96, 192))):
            weight = stored.layers[f"{home}.{expert}.{name}"].dequantize()
            assert torch.allclose(weight, gate_up[expert, rows], atol=1e-3)
    assert not any("experts" in name for name in stored.dense)


@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe"])
def test_experts_with_8_bit_activations_are_evaluated_with_them(name, tmp_path):
    module, made = artifact(name, tmp_path, method="smoothquant", a8=True)
    rounded = load_artifact(made.path, EnginePlan(device="cpu")).module
    experts = rounded.model.layers[0].mlp.experts
    seen = []
    for part in (experts[0].gate_up_proj, experts[0].down_proj):
        part.register_forward_pre_hook(lambda _m, inputs: seen.append(inputs[0]))
    error = (logits(rounded) - logits(module)).norm() / logits(module).norm()
    assert 0 < error < 0.03
    assert len(seen) == 2
    for inputs in seen:
        for token in inputs:
            # Whole steps, of which the largest value is 127 or (below zero) 128.
            steps = [token / token.abs().max() * largest for largest in (127, 128)]
            assert min(float((s - s.round()).abs().max()) for s in steps) < 1e-2
    with pytest.raises(RuntimeError):
        AutoModelForCausalLM.from_pretrained(made.path)
    assert "packed experts only" in made.manifest["engines"]["transformers"]["why"]


@pytest.mark.parametrize("method", ["rtn", "awq"])
def test_experts_may_stay_as_they_are(method, tmp_path):
    module, made = artifact("mixtral", tmp_path, method=method, options={"skip": "experts"})
    stored = read(made.path)
    assert len(stored.layers) == 8
    loaded = load_artifact(made.path, EnginePlan(device="cpu")).module
    mine, theirs = (m.model.layers[1].mlp.experts.down_proj for m in (loaded, module))
    torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-4)
    error = (logits(loaded) - logits(module)).norm() / logits(module).norm()
    assert 0 < error < 0.02
    with pytest.raises(RuntimeError):
        AutoModelForCausalLM.from_pretrained(made.path)
    assert "takes all experts for quantized" in made.manifest["engines"]["transformers"]["why"]
    assert made.manifest["engines"]["vllm"]["loads"]


@pytest.mark.parametrize("narrow", ["experts", "attention"])
def test_transformers_reads_experts_of_another_width_than_the_rest(narrow, tmp_path):
    parts = ("q_proj", "k_proj", "v_proj", "o_proj")
    width = 8 if narrow == "experts" else 3
    named = [f"model.layers.{i}.self_attn.{p}={width}" for i in range(2) for p in parts]
    bits = 3 if narrow == "experts" else 8
    _, made = artifact("mixtral", tmp_path, bits=bits, options={"layer_bits": ",".join(named)})
    assert_same_in_transformers(made)


def test_experts_of_several_widths_are_refused_by_name(tmp_path):
    options = {"layer_bits": "model.layers.0.mlp.experts.1.down_proj=4"}
    _, made = artifact("mixtral", tmp_path, options=options)
    engines = made.manifest["engines"]
    assert "reads all experts by one scheme" in engines["transformers"]["why"]
    assert "layers.0.block_sparse_moe have different schemes" in engines["vllm"]["why"]


def test_a_part_of_the_experts_may_stay_as_it_is(tmp_path):
    options = {"skip": "gate_up_proj"}
    module, made = artifact("mixtral", tmp_path, method="awq", options=options)
    assert len(read(made.path).layers) == 16
    assert any("takes up no scales" in w for w in made.manifest["warnings"])
    loaded = load_artifact(made.path, EnginePlan(device="cpu")).module
    error = (logits(loaded) - logits(module)).norm() / logits(module).norm()
    assert 0 < error < 0.02


def test_what_transformers_does_not_load_is_recorded(tmp_path):
    _, experts = artifact("mixtral", tmp_path / "a", symmetric=False)
    with pytest.raises(RuntimeError):
        AutoModelForCausalLM.from_pretrained(experts.path)
    assert "zero points of experts" in experts.manifest["engines"]["transformers"]["why"]
    _, conv1d = artifact("gpt2", tmp_path / "b")
    _, info = AutoModelForCausalLM.from_pretrained(conv1d.path, output_loading_info=True)
    assert info["missing_keys"]
    assert "Conv1D" in conv1d.manifest["engines"]["transformers"]["why"]
