"""Learned rounding lowers a decoder layer's error, keeps the format, and never makes it worse."""

import copy

import pytest
import torch

from evalq.kernels.packing import QuantizedWeight
from evalq.quantize.api import quantize
from evalq.quantize.learned import _Learned
from evalq.quantize.rtn import rtn_weight
from evalq.schema import PerGroup, Scheme, WeightScheme
from tests.quantize.tiny import mean_kl, random_calibration, tiny


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "opt", "mixtral"])
@pytest.mark.parametrize("symmetric", [True, False])
def test_it_lowers_the_divergence_that_rounding_left(name, symmetric):
    parent = tiny(name)
    scheme = Scheme(WeightScheme(2, PerGroup(32), symmetric=symmetric))
    calibration = random_calibration(16)
    plain = quantize(parent, scheme, "gptq", calibration)
    options = {"rounding_steps": 60}
    trained = quantize(parent, scheme, "gptq+signround", calibration, options)
    losses = []
    for made in (plain, trained):
        variant = copy.deepcopy(parent)
        made.apply_to(variant)
        losses.append(mean_kl(parent, variant, calibration.tokens))
    assert losses[1] < losses[0]
    errors = trained.details["learned_rounding"]
    assert errors
    assert all(e["after"] <= e["before"] for e in errors.values())
    assert any(e["after"] < 0.98 * e["before"] for e in errors.values())
    for layer, weight in trained.layers.items():
        assert weight.scales.dtype == plain.layers[layer].scales.dtype
        assert weight.scheme == plain.layers[layer].scheme
    again = quantize(parent, scheme, "gptq+signround", calibration, options)
    for layer, weight in trained.layers.items():
        assert torch.equal(weight.codes, again.layers[layer].codes)
        assert torch.equal(weight.scales, again.layers[layer].scales)


def learned(bits: int = 3, symmetric: bool = False) -> tuple[torch.Tensor, QuantizedWeight]:
    weight = torch.randn(8, 64, generator=torch.Generator().manual_seed(3))
    scheme = WeightScheme(bits, PerGroup(32), symmetric)
    return weight, rtn_weight(weight, scheme, torch.float32, "mse")


@pytest.mark.parametrize("symmetric", [True, False])
def test_untrained_it_is_what_it_was_given(symmetric):
    weight, start = learned(symmetric=symmetric)
    module = _Learned(torch.nn.Linear(64, 8, bias=False), weight, start)
    result = module.result()
    assert torch.equal(result.codes, start.codes)
    assert torch.equal(result.scales, start.scales)
    inputs = torch.randn(5, 64)
    expected = inputs @ start.dequantize().T
    torch.testing.assert_close(module(inputs), expected, rtol=1e-5, atol=1e-5)


def test_gradients_are_those_of_a_straight_through_estimate():
    weight, start = learned()
    module = _Learned(torch.nn.Linear(64, 8, bias=False), weight, start)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        module.offset.uniform_(-0.4, 0.4, generator=generator)
        module.growth.uniform_(-0.1, 0.1, generator=generator)
    inputs = torch.randn(5, 64, generator=generator)
    module(inputs).square().sum().backward()

    offset = module.offset.detach().clone().requires_grad_(True)
    growth = module.growth.detach().clone().requires_grad_(True)
    grown = torch.exp(growth).unsqueeze(-1)
    unrounded = (module.place - module.zeros) / grown + module.zeros + offset
    # What autograd makes of it when rounding passes gradients on and clamping cuts them off.
    through = unrounded.clamp(-0.5, module.top + 0.5)
    codes = through + (unrounded.round().clamp(0, module.top) - through).detach()
    values = ((codes - module.zeros) * module.start * grown).reshape(8, 64)
    (inputs @ values.T).square().sum().backward()
    torch.testing.assert_close(module.offset.grad, offset.grad, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(module.growth.grad, growth.grad, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("bits", [3, 4])
def test_an_expert_with_fewer_tokens_than_inputs_keeps_what_gptq_left(bits):
    parent = tiny("mixtral", num_local_experts=8)
    scheme = Scheme(WeightScheme(bits, PerGroup(32), symmetric=False))
    calibration = random_calibration(4)
    plain = quantize(parent, scheme, "gptq", calibration)
    trained = quantize(parent, scheme, "gptq+signround", calibration, {"rounding_steps": 30})
    inputs = {"gate_up_proj": 64, "down_proj": 128}
    first = [r for r in trained.reports if ".layers.0." in r.name]
    few = {r.name for r in first if r.tokens < inputs.get(r.name.rpartition(".")[2], 0)}
    assert few
    assert len(few) < 16
    for report in first:
        codes = (made.layers[report.name].codes for made in (plain, trained))
        assert torch.equal(*codes) == (report.name in few), report
    assert any("its rounding was not learned" in warning for warning in trained.warnings)
