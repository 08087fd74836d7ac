"""Every method on a tiny random model of every architecture."""

import copy

import pytest
import torch

from evalq.kernels.packing import QuantizedWeight
from evalq.quantize.api import METHODS, quantize
from evalq.schema import PerChannel, PerGroup, Scheme, WeightScheme
from tests.quantize.tiny import (
    ARCHITECTURES,
    mean_kl,
    random_calibration,
    random_tokens,
    tiny,
    with_weights_of,
)

LAYERS = {"phi3": 8, "gpt2": 8, "opt": 12, "gpt_neox": 8, "mixtral": 24, "qwen2_moe": 30}


@pytest.mark.parametrize("method", list(METHODS))
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_conformance(name, method):
    parent = tiny(name)
    before = copy.deepcopy(parent.state_dict())
    scheme = Scheme(WeightScheme(8, PerGroup(32), symmetric=False))
    if METHODS.get(method).smooths:
        scheme = Scheme(WeightScheme(8, PerChannel(), symmetric=True), activation_bits=8)
    quantized = quantize(parent, scheme, method, random_calibration())
    assert all(torch.equal(before[k], v) for k, v in parent.state_dict().items())
    assert len(quantized.layers) == LAYERS.get(name, 14)
    assert len(quantized.reports) == len(quantized.layers)
    assert all(isinstance(w, QuantizedWeight) for w in quantized.layers.values())
    # One scale a row is coarser than groups, and GPTQ gives up weights for outputs.
    limit = 0.04 if METHODS.get(method).smooths else 0.02
    assert all(0 < r.weight_error < limit for r in quantized.reports)
    assert (name == "gpt2") == bool(quantized.transposed)
    variant = with_weights_of(parent, quantized)
    kl = mean_kl(parent, variant, random_tokens(4, 64, seed=9))
    # A wrong name, orientation or fold would show here: it costs far more than 8 bits do.
    assert 0 < kl < 0.05
    unchanged = set(before) - {f"{n}.weight" for n in quantized.layers} - set(quantized.dense)
    stacked = tuple(f"{e}." for e in quantized.experts)
    for key in unchanged:
        if not (stacked and key.startswith(stacked)):
            assert torch.equal(variant.state_dict()[key], before[key]), key


@pytest.mark.parametrize("method", ["gptq", "awq", "awq+gptq"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "opt", "gpt_neox", "mixtral"])
@pytest.mark.parametrize("bits", [3, 4])
def test_methods_that_see_data_beat_rounding(name, method, bits):
    parent = tiny(name)
    tokens = random_tokens(8, 64, seed=9)
    scheme = Scheme(WeightScheme(bits, PerGroup(32), symmetric=False))
    plain = quantize(parent, scheme, "rtn")
    ours = quantize(parent, scheme, method, random_calibration(16))
    plain_kl = mean_kl(parent, with_weights_of(parent, plain), tokens)
    assert mean_kl(parent, with_weights_of(parent, ours), tokens) < plain_kl
