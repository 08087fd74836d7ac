"""Rotations: orthogonal, merged without a trace in the logits, refused where they cannot be."""

import copy

import pytest
import torch

from evalq.errors import QuantizationError
from evalq.quantize.api import quantize
from evalq.quantize.hadamard import has_hadamard, rotation_matrix
from evalq.quantize.rotate import rotated
from evalq.schema import PerChannel, PerGroup, Scheme, WeightScheme
from tests.quantize.tiny import mean_kl, random_calibration, random_tokens, tiny


@pytest.mark.parametrize("order", [1, 2, 4, 12, 20, 28, 36, 44, 60, 64, 192, 576, 1536])
def test_hadamard_matrices_are_orthogonal_with_entries_of_one_size(order):
    matrix = rotation_matrix(order, 3)
    assert has_hadamard(order)
    assert torch.allclose(matrix @ matrix.T, torch.eye(order).double(), atol=1e-12)
    assert torch.allclose(matrix.abs(), torch.full_like(matrix, order**-0.5))


@pytest.mark.parametrize("order", [9, 18, 172])
def test_orders_without_a_known_hadamard_matrix_are_orthogonal_too(order):
    matrix = rotation_matrix(order, 3)
    assert not has_hadamard(order)
    assert torch.allclose(matrix @ matrix.T, torch.eye(order).double(), atol=1e-12)


@pytest.mark.parametrize("name", ["llama", "mistral", "qwen2", "qwen3", "phi3"])
def test_logits_stay_and_weights_are_mixed(name):
    parent = tiny(name)
    before = copy.deepcopy(parent.state_dict())
    turned = rotated(parent, 16, 0)
    assert all(torch.equal(before[k], v) for k, v in parent.state_dict().items())
    tokens = random_tokens(2, 32, seed=5)
    with torch.no_grad():
        expected, given = parent(tokens).logits, turned(tokens).logits
    assert float((expected - given).abs().max()) < 1e-3 * float(expected.abs().max())
    for key in ("model.layers.0.self_attn.o_proj.weight", "model.layers.1.mlp.down_proj.weight"):
        assert not torch.allclose(before[key], turned.state_dict()[key], atol=1e-3)


def test_values_of_each_head_are_turned():
    parent = tiny("llama")
    turned, only_stream = rotated(parent, 16, 0), rotated(parent, 0, 0)
    name = "model.layers.0.self_attn.v_proj.weight"
    one, two = turned.state_dict()[name], only_stream.state_dict()[name]
    assert not torch.allclose(one, two, atol=1e-3)
    # Turning rows within a head keeps the sum of squares over the head.
    sums = [w.reshape(2, 16, -1).square().sum((1, 2)) for w in (one, two)]
    torch.testing.assert_close(sums[0], sums[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("gpt2", "subtracts the mean"),
        ("opt", "subtracts the mean"),
        ("gpt_neox", "subtracts the mean"),
        ("cohere", "subtracts the mean"),
        ("gemma2", "residual stream"),
        ("gemma3", "residual stream"),
        ("mixtral", "mixture of experts"),
    ],
)
def test_architectures_that_cannot_be_turned_are_refused_with_the_reason(name, why):
    with pytest.raises(QuantizationError, match=why):
        quantize(
            tiny(name), Scheme(WeightScheme(4, PerGroup(32))), "rtn", options={"rotate": "hadamard"}
        )


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("method", ["rtn", "gptq", "awq+gptq"])
def test_a_rotated_variant_answers_like_its_parent(method, tied):
    parent = tiny("llama", tie_word_embeddings=tied)
    scheme = Scheme(WeightScheme(8, PerGroup(32), symmetric=False))
    made = quantize(parent, scheme, method, random_calibration(), {"rotate": "hadamard"})
    variant = copy.deepcopy(parent)
    made.apply_to(variant)
    assert 0 < mean_kl(parent, variant, random_tokens(4, 64, seed=9)) < 0.05
    head = variant.get_output_embeddings().weight
    assert head is not variant.get_input_embeddings().weight


def test_outlier_channels_cost_less_when_turned():
    parent = tiny("llama")
    with torch.no_grad():
        for layer in parent.model.layers:
            layer.mlp.down_proj.weight[:2] *= 8
            layer.self_attn.o_proj.weight[:2] *= 8
    scheme = Scheme(WeightScheme(3, PerChannel(), symmetric=True))
    tokens = random_tokens(4, 64, seed=9)
    losses = {}
    for rotate in ("none", "hadamard"):
        variant = copy.deepcopy(parent)
        quantize(parent, scheme, "rtn", options={"rotate": rotate}).apply_to(variant)
        losses[rotate] = mean_kl(parent, variant, tokens)
    assert losses["hadamard"] < losses["none"]
