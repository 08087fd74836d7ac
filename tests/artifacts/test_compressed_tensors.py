"""The same directory through transformers + compressed-tensors: same tensors, same logits."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from transformers import AutoModelForCausalLM, CompressedTensorsConfig

from evalq.artifacts.api import read, storage
from evalq.artifacts.compressed_tensors import CompressedTensors
from evalq.errors import ArtifactError, PlanError
from evalq.kernels.reference import quantize_activations
from evalq.schema import PerChannel, PerGroup, WeightScheme
from tests.artifacts.helpers import random_weight, tiny_llama, write

SCHEMES = [
    WeightScheme(bits, granularity, symmetric)
    for bits in (2, 3, 4, 8)
    for granularity in (PerGroup(32), PerChannel())
    for symmetric in (True, False)
]
TOKENS = torch.arange(1, 33)[None]


def dense_copy(module, layers, activation_bits=None):
    model = copy.deepcopy(module)
    dtype = module.dtype
    for name, weight in layers.items():
        part = model.get_submodule(name)
        part.weight.data = weight.dequantize(dtype)
        if activation_bits:
            part.register_forward_pre_hook(lambda _, args: (quantize_activations(args[0]),))
    return model


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_transformers_loads_the_same_weights_and_logits(scheme, tmp_path):
    module, layers = write(tmp_path / "a", CompressedTensors(), scheme)
    peer, info = AutoModelForCausalLM.from_pretrained(tmp_path / "a", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    with torch.no_grad():
        theirs = peer(TOKENS).logits
        ours = dense_copy(module, layers)(TOKENS).logits
    for name, weight in layers.items():
        assert torch.equal(peer.get_submodule(name).weight, weight.dequantize(torch.float32)), name
    assert torch.equal(theirs, ours)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("symmetric", [True, False])
def test_half_precision_scales_give_the_peers_bits(dtype, symmetric, tmp_path):
    scheme = WeightScheme(8, PerGroup(16), symmetric)
    module, layers = write(tmp_path / "a", CompressedTensors(), scheme, dtype)
    peer = AutoModelForCausalLM.from_pretrained(tmp_path / "a")
    assert peer.dtype == dtype
    with torch.no_grad():
        theirs = peer(TOKENS).logits
    for name, weight in layers.items():
        assert torch.equal(peer.get_submodule(name).weight, weight.dequantize(dtype)), name
    assert torch.equal(theirs, dense_copy(module, layers)(TOKENS).logits)


def test_w8a8_runs_with_rounded_activations(tmp_path):
    scheme = WeightScheme(8, PerChannel(), True)
    module, layers = write(tmp_path / "a", CompressedTensors(), scheme, activation_bits=8)
    settings = json.loads((tmp_path / "a/config.json").read_text())["quantization_config"]
    assert settings["format"] == "int-quantized"
    peer = AutoModelForCausalLM.from_pretrained(tmp_path / "a")
    with torch.no_grad():
        theirs = peer(TOKENS).logits
        ours = dense_copy(module, layers, 8)(TOKENS).logits
        plain = dense_copy(module, layers)(TOKENS).logits
    assert torch.allclose(theirs, ours, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(theirs, plain, rtol=1e-4, atol=1e-5)
    assert read(tmp_path / "a").activation_bits == dict.fromkeys(layers, 8)


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("symmetric", [True, False])
def test_read_gives_back_what_was_written(bits, symmetric, tmp_path):
    scheme = WeightScheme(bits, PerGroup(32), symmetric)
    module, layers = write(tmp_path / "a", CompressedTensors(), scheme, torch.bfloat16)
    stored = read(tmp_path / "a")
    assert stored.format == "compressed-tensors"
    assert set(stored.layers) == set(layers)
    for name, weight in layers.items():
        back = stored.layers[name]
        assert back.scheme == scheme
        assert torch.equal(back.codes, weight.codes)
        assert torch.equal(back.scales, weight.scales)
        assert symmetric or torch.equal(back.zeros, weight.zeros)
    rest = {k: v for k, v in module.state_dict().items() if k.removesuffix(".weight") not in layers}
    assert set(stored.dense) == set(rest)
    assert all(torch.equal(stored.dense[k], v) for k, v in rest.items())
    assert "quantization_config" not in stored.model_config


def test_storage_counts_every_byte(tmp_path):
    _, layers = write(
        tmp_path / "a", CompressedTensors(), WeightScheme(4, PerGroup(32), False), torch.bfloat16
    )
    found = storage(tmp_path / "a")
    weights = sum(w.codes.numel() for w in layers.values())
    other = 64 * 64 * 2 + 5 * 64
    assert found.parameters == weights + other
    assert found.quantized_parameters == weights
    per_layer = [
        w.codes.numel() // 2 + 2 * w.scales.numel() + w.zeros.numel() // 2 + 16
        for w in layers.values()
    ]
    assert found.linear_bits_per_weight == pytest.approx(8 * sum(per_layer) / weights)
    total = sum(per_layer) + 2 * other
    assert found.bits_per_weight == pytest.approx(8 * total / found.parameters)
    assert found.bytes_on_disk == (tmp_path / "a/model.safetensors").stat().st_size


def test_mixed_schemes_name_their_layers(tmp_path):
    from evalq.artifacts.write import Contents, StoredTypes, write_model

    module = tiny_llama()
    schemes = {
        "q_proj": WeightScheme(4, PerGroup(32)),
        "down_proj": WeightScheme(3, PerChannel()),
    }
    layers = {
        f"model.layers.{i}.{block}.{name}": random_weight(
            *module.get_submodule(f"model.layers.{i}.{block}.{name}").weight.shape, schemes[name]
        )
        for i in range(2)
        for block, name in (("self_attn", "q_proj"), ("mlp", "down_proj"))
    }
    (tmp_path / "a").mkdir()
    contents = Contents(module, None, layers, {}, None, StoredTypes(torch.float32))
    write_model(contents, CompressedTensors(), tmp_path / "a")
    peer = AutoModelForCausalLM.from_pretrained(tmp_path / "a")
    with torch.no_grad():
        assert torch.equal(peer(TOKENS).logits, dense_copy(module, layers)(TOKENS).logits)
    stored = read(tmp_path / "a")
    assert {n: w.scheme for n, w in stored.layers.items()} == {
        n: w.scheme for n, w in layers.items()
    }


def test_refuses_what_the_format_cannot_hold():
    encoder = CompressedTensors()
    with pytest.raises(PlanError, match="do not divide"):
        encoder.refuse("l", WeightScheme(4, PerGroup(40)), (8, 96), None)
    with pytest.raises(PlanError, match="activations of 8 bits"):
        encoder.refuse("l", WeightScheme(4, PerChannel()), (8, 96), 8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s["config_groups"]["group_0"]["weights"].update(type="float"), "float"),
        (lambda s: s["config_groups"]["group_0"]["weights"].update(num_bits=3), "words"),
        (lambda s: s["config_groups"]["group_0"].update(targets=["re:lm_head"]), "no config group"),
        (lambda s: s["config_groups"]["group_0"].update(format="nvfp4-pack-quantized"), "nvfp4"),
        (lambda s: s.update(transform_config={"config_groups": {"R1": {}}}), "transform"),
        (lambda s: s.update(quant_method="bitsandbytes"), "bitsandbytes"),
        (
            lambda s: s["config_groups"]["group_0"].update(
                input_activations={"num_bits": 8, "type": "int", "strategy": "tensor"}
            ),
            "are not run",
        ),
        (lambda s: s["config_groups"]["group_0"]["weights"].update(symmetric=False), "zero_point"),
        (lambda s: s["config_groups"]["group_0"]["weights"].update(group_size=16), "scales"),
    ],
)
def test_settings_that_do_not_fit_are_refused(change, message, tmp_path):
    write(tmp_path / "a", CompressedTensors(), WeightScheme(4, PerGroup(32)))
    path = tmp_path / "a/config.json"
    config = json.loads(path.read_text())
    change(config["quantization_config"])
    path.write_text(json.dumps(config))
    with pytest.raises(ArtifactError, match=message):
        read(tmp_path / "a")


def test_reads_what_compressed_tensors_itself_writes(tmp_path):
    """A model quantized and saved by the peer's own code."""
    from compressed_tensors.compressors import ModelCompressor
    from compressed_tensors.quantization import QuantizationConfig, apply_quantization_config

    model = tiny_llama()
    config = QuantizationConfig(
        config_groups={
            "g": {
                "targets": ["re:.*_proj"],
                "weights": {
                    "num_bits": 3,
                    "symmetric": False,
                    "strategy": "group",
                    "group_size": 32,
                },
            }
        },
        ignore=["lm_head"],
    )
    apply_quantization_config(model, config)
    generator = torch.Generator().manual_seed(1)
    for part in model.modules():
        if hasattr(part, "weight_scale"):
            shape = part.weight_scale.shape
            part.weight_scale.data = torch.rand(shape, generator=generator) * 0.01 + 0.01
            zeros = torch.randint(-4, 4, shape, generator=generator)
            part.weight_zero_point.data = zeros.to(part.weight_zero_point.dtype)
    compressor = ModelCompressor.from_pretrained_model(model)
    compressor.compress_model(model)
    model.save_pretrained(tmp_path / "peer")
    compressor.update_config(tmp_path / "peer")
    stored = read(tmp_path / "peer")
    peer = AutoModelForCausalLM.from_pretrained(
        tmp_path / "peer", quantization_config=CompressedTensorsConfig(dequantize=True)
    )
    assert len(stored.layers) == 14
    for name, weight in stored.layers.items():
        assert str(weight.scheme) == "w3-g32-asym"
        assert torch.equal(peer.get_submodule(name).weight, weight.dequantize(torch.float32))
