"""GPTQ and AWQ files: worked values, an independent reader, and peers' variations."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from evalq.artifacts.api import FORMATS, read, storage
from evalq.artifacts.awq import Awq
from evalq.artifacts.gptq import Gptq, GptqV2
from evalq.errors import ArtifactError, PlanError
from evalq.kernels.packing import QuantizedWeight
from evalq.schema import PerChannel, PerGroup, WeightScheme
from tests.artifacts.helpers import random_weight, write


def positive_zeros(weight: QuantizedWeight) -> QuantizedWeight:
    zeros = weight.zeros.clamp_min(1)
    return QuantizedWeight(weight.codes, weight.scales, zeros, weight.scheme, weight.shape)


def change_settings(directory, **changes):
    path = directory / "config.json"
    config = json.loads(path.read_text())
    config["quantization_config"].update(changes)
    path.write_text(json.dumps(config))


def naive_gptq(tensors, layer, bits, plus):
    """Dense weight [out, in] with Python integers, straight from the words."""
    words = tensors[f"{layer}.qweight"].numpy().astype(np.int64) & 0xFFFFFFFF
    zeros = tensors[f"{layer}.qzeros"].numpy().astype(np.int64) & 0xFFFFFFFF
    scales = tensors[f"{layer}.scales"].float().numpy()
    index = tensors[f"{layer}.g_idx"].numpy()
    columns, rows = len(index), words.shape[1]

    def code(stream, j):
        total = sum(int(word) << (32 * k) for k, word in enumerate(stream))
        return (total >> (bits * j)) & ((1 << bits) - 1)

    out = np.zeros((rows, columns), dtype=np.float32)
    for o in range(rows):
        for i in range(columns):
            zero = code(zeros[index[i]], o) + plus
            out[o, i] = (code(words[:, o], i) - zero) * scales[index[i], o]
    return torch.from_numpy(out)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("encoder", [Gptq(), GptqV2()], ids=lambda e: e.name)
def test_gptq_against_a_naive_reader(bits, symmetric, encoder):
    weight = random_weight(32, 64, WeightScheme(bits, PerGroup(32), symmetric), torch.float16)
    if not symmetric and encoder.version == 1:
        weight = positive_zeros(weight)
    tensors = encoder.encode("l", weight, None)
    assert tensors["l.qweight"].shape == (64 * bits // 32, 32)
    assert tensors["l.qzeros"].shape == (2, 32 * bits // 32)
    assert tensors["l.scales"].shape == (2, 32)
    dense = naive_gptq(tensors, "l", bits, plus=2 - encoder.version)
    assert torch.equal(dense, weight.dequantize(torch.float32))


def test_worked_values():
    weight = random_weight(32, 32, WeightScheme(4, PerGroup(32)), torch.float16)
    assert set(Gptq().encode("l", weight, None)["l.qzeros"].flatten().tolist()) == {0x77777777}
    v2 = GptqV2().encode("l", weight, None)["l.qzeros"].flatten()
    assert {int(v) & 0xFFFFFFFF for v in v2} == {0x88888888}


@pytest.mark.parametrize("name", ["gptq", "gptq-v2", "awq"])
@pytest.mark.parametrize("granularity", [PerGroup(32), PerChannel()], ids=str)
def test_read_gives_back_what_was_written(name, granularity, tmp_path):
    scheme = WeightScheme(4, granularity)
    module, layers = write(tmp_path / "a", FORMATS.get(name)(), scheme, torch.float16)
    stored = read(tmp_path / "a")
    for layer, weight in layers.items():
        back = stored.layers[layer]
        assert back.scheme == scheme
        assert torch.equal(back.codes, weight.codes)
        assert torch.equal(back.scales, weight.scales)
        assert back.zeros is None
    assert set(stored.dense) == {
        k for k in module.state_dict() if k.removesuffix(".weight") not in layers
    }
    sizes = storage(tmp_path / "a")
    assert sizes.quantized_parameters == sum(w.codes.numel() for w in layers.values())
    assert 4 < sizes.linear_bits_per_weight < 6


def test_awq_asymmetric_against_a_naive_reader():
    weight = random_weight(16, 64, WeightScheme(4, PerGroup(32), False), torch.float16)
    tensors = Awq().encode("l", weight, None)
    order = [0, 2, 4, 6, 1, 3, 5, 7]
    dense = torch.zeros(16, 64)
    for i in range(64):
        for o in range(16):
            nibble = order.index(o % 8)
            q = (int(tensors["l.qweight"][i, o // 8]) >> (4 * nibble)) & 15
            z = (int(tensors["l.qzeros"][i // 32, o // 8]) >> (4 * nibble)) & 15
            dense[o, i] = (q - z) * float(tensors["l.scales"][i // 32, o])
    assert torch.equal(dense, weight.dequantize(torch.float32))


def test_v1_refuses_a_zero_of_0():
    weight = random_weight(32, 32, WeightScheme(4, PerGroup(32), False), torch.float16)
    zeros = torch.zeros_like(weight.zeros)
    weight = QuantizedWeight(weight.codes, weight.scales, zeros, weight.scheme, weight.shape)
    with pytest.raises(PlanError, match="stores z - 1"):
        Gptq().encode("l", weight, None)
    assert torch.equal(GptqV2().encode("l", weight, None)["l.qzeros"], torch.zeros(1, 4).int())


def test_v1_zeros_that_underflowed_are_not_guessed_at(tmp_path):
    write(tmp_path / "a", Gptq(), WeightScheme(4, PerGroup(32)), torch.float16)
    path = tmp_path / "a/model.safetensors"
    tensors = load_file(path)
    tensors["model.layers.1.mlp.up_proj.qzeros"].fill_(-1)
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(ArtifactError, match="up_proj has a v1 zero of 15"):
        read(tmp_path / "a")


def test_the_wrong_version_is_noticed(tmp_path):
    write(tmp_path / "a", Gptq(), WeightScheme(4, PerGroup(32)), torch.float16)
    change_settings(tmp_path / "a", checkpoint_format="gptq_v2")
    with pytest.raises(ArtifactError, match="zeros other than 8"):
        read(tmp_path / "a")


def test_scattered_columns_are_read_dequantized(tmp_path):
    """desc_act as gptqmodel writes it: g_idx in no order."""
    _, layers = write(tmp_path / "a", Gptq(), WeightScheme(4, PerGroup(32)), torch.float16)
    path = tmp_path / "a/model.safetensors"
    tensors = load_file(path)
    name = "model.layers.0.self_attn.q_proj"
    index = tensors[f"{name}.g_idx"]
    order = torch.randperm(len(index), generator=torch.Generator().manual_seed(0))
    tensors[f"{name}.g_idx"] = index[order].contiguous()
    save_file(tensors, path, metadata={"format": "pt"})
    change_settings(tmp_path / "a", desc_act=True)
    stored = read(tmp_path / "a")
    assert name not in stored.layers
    assert "scattered" in stored.notes[0]
    expected = naive_gptq(tensors, name, 4, plus=1).half()
    assert torch.equal(stored.dense[f"{name}.weight"], expected)
    assert len(stored.layers) == len(layers) - 1


def test_settings_beside_the_config_are_read(tmp_path):
    """Older GPTQ writers keep quantize_config.json and name the file by the scheme."""
    _, layers = write(tmp_path / "a", Gptq(), WeightScheme(4, PerGroup(32)), torch.float16)
    path = tmp_path / "a/config.json"
    config = json.loads(path.read_text())
    beside = config.pop("quantization_config")
    del beside["quant_method"], beside["checkpoint_format"]
    path.write_text(json.dumps(config))
    (tmp_path / "a/quantize_config.json").write_text(json.dumps(beside))
    (tmp_path / "a/model.safetensors").rename(tmp_path / "a/gptq_model-4bit-32g.safetensors")
    assert set(read(tmp_path / "a").layers) == set(layers)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("gptq", {"checkpoint_format": "marlin"}, "marlin"),
        ("gptq", {"bits": 8}, "hold 4 bits, its settings say 8"),
        ("gptq", {"pack_dtype": "int16"}, "int16"),
        ("awq", {"version": "gemv"}, "gemv"),
        ("awq", {"bits": 8}, "8 bits"),
        ("awq", {"quant_method": "gptq"}, "g_idx|settings|fit"),
    ],
)
def test_other_layouts_are_refused(name, changes, message, tmp_path):
    write(tmp_path / "a", FORMATS.get(name)(), WeightScheme(4, PerGroup(32)), torch.float16)
    change_settings(tmp_path / "a", **changes)
    with pytest.raises(ArtifactError, match=message):
        read(tmp_path / "a")


def test_what_the_formats_cannot_hold():
    five = WeightScheme(5, PerGroup(32))
    with pytest.raises(PlanError, match="no 5 bits"):
        Gptq().refuse("l", five, (32, 32), None)
    with pytest.raises(PlanError, match="4-bit"):
        Awq().refuse("l", five, (32, 32), None)
    four = WeightScheme(4, PerGroup(32))
    with pytest.raises(PlanError, match="multiples of 32"):
        Gptq().refuse("l", four, (40, 32), None)
    with pytest.raises(PlanError, match="one scheme"):
        Gptq().settings({"a": four, "b": WeightScheme(8)}, (), None)
    weight = random_weight(32, 32, four, torch.float32)
    with pytest.raises(PlanError, match="scale_dtype"):
        Gptq().encode("l", weight, None)


def test_layers_left_dense_are_excluded_by_name():
    settings = Gptq().settings(
        {"model.layers.0.mlp.up_proj": WeightScheme(4)},
        ("lm_head", "model.layers.0.mlp.down_proj"),
        None,
    )
    (rule,) = settings["dynamic"]
    assert re.match(rule.removeprefix("-:"), "model.layers.0.mlp.down_proj")
    assert not re.match(rule.removeprefix("-:"), "model.layers.0.mlp.up_proj")
    assert settings["lm_head"] is False


def test_scales_are_stored_as_float16(tmp_path):
    write(tmp_path / "a", Gptq(), WeightScheme(4, PerGroup(32)), torch.float16)
    with safe_open(tmp_path / "a/model.safetensors", framework="pt") as file:
        names = [n for n in file.keys() if n.endswith(".scales")]  # noqa: SIM118
        assert {file.get_tensor(n).dtype for n in names} == {torch.float16}
