"""Distillation lowers the divergence from the parent and leaves the format as it was."""

import copy

import pytest
import torch

from evalq.quantize.api import quantize
from evalq.quantize.distill import DistillSettings, distill
from evalq.quantize.head import Head, head_input
from evalq.schema import PerGroup, Scheme, WeightScheme
from tests.quantize.tiny import mean_kl, random_calibration, tiny


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "opt"])
def test_it_lowers_the_divergence_that_rounding_left(name):
    parent = tiny(name)
    scheme = Scheme(WeightScheme(2, PerGroup(32), symmetric=True))
    calibration = random_calibration(16)
    options = {"epochs": 6, "scale_rate": 5e-3}
    plain = quantize(parent, scheme, "gptq", calibration)
    trained = quantize(parent, scheme, "gptq+kd", calibration, options)
    losses = []
    for made in (plain, trained):
        variant = copy.deepcopy(parent)
        made.apply_to(variant)
        losses.append(mean_kl(parent, variant, calibration.tokens))
    assert losses[1] < 0.95 * losses[0]
    assert trained.details["distillation"]["steps"] == 6 * 4
    for layer, weight in trained.layers.items():
        assert torch.equal(weight.codes, plain.layers[layer].codes)
        assert weight.scales.dtype == plain.layers[layer].scales.dtype
    again = quantize(parent, scheme, "gptq+kd", calibration, options)
    assert all(torch.equal(again.layers[n].scales, w.scales) for n, w in trained.layers.items())


def test_codes_move_only_when_asked():
    parent = tiny("llama")
    scheme = Scheme(WeightScheme(2, PerGroup(32), symmetric=True))
    calibration = random_calibration(8)
    start = quantize(parent, scheme, "gptq", calibration)
    settings = DistillSettings(epochs=40, code_rate=0.03, products=torch.float32)
    found = distill(parent, start.layers, start.dense, calibration.tokens, settings)
    changed = [not torch.equal(found.layers[n].codes, w.codes) for n, w in start.layers.items()]
    assert any(changed)
    assert found.after < found.before


def test_the_heads_loss_and_gradient_are_those_of_autograd():
    parent = tiny("gemma2")
    tokens = random_calibration(4).tokens
    head = Head(parent)
    with torch.no_grad():
        target = head_input(parent, tokens).reshape(-1, 64)
    moved = target + 0.3 * torch.randn(target.shape, generator=torch.Generator().manual_seed(1))
    total, gradient = head.loss(target, moved, torch.float32)
    leaf = moved.clone().requires_grad_(True)
    cap = parent.config.final_logit_softcapping
    logits = [torch.tanh(parent.lm_head(h) / cap) * cap for h in (target, leaf)]
    theirs, ours = (x.log_softmax(-1) for x in logits)
    expected = (theirs.exp() * (theirs - ours)).sum()
    expected.backward()
    assert total == pytest.approx(float(expected.detach()), rel=1e-4)
    torch.testing.assert_close(gradient, leaf.grad, rtol=1e-3, atol=1e-5)
