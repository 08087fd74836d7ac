"""SmoothQuant on tiny models with the outlier channels that make 8-bit activations hard."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoModelForCausalLM

from evalq.artifacts.make import make_artifact
from evalq.errors import QuantizationError
from evalq.kernels.tokens import round_tokens
from evalq.models.load import load_artifact
from evalq.plan import EnginePlan, VariantPlan, parse_variant
from evalq.quantize.api import quantize
from evalq.quantize.job import InputStatistics, Reading
from evalq.quantize.smooth import joint_error, search_smoothing
from evalq.schema import PerChannel, PerGroup, Scheme, WeightScheme
from tests.artifacts.helpers import saved_parent
from tests.quantize.tiny import mean_kl, random_calibration, random_tokens, tiny, with_weights_of

W8 = WeightScheme(8, PerChannel())
W8A8 = Scheme(W8, activation_bits=8)


def with_outliers(name: str = "llama"):
    """A tiny model some of whose norms let a few channels through a hundred times too large."""
    model = tiny(name)
    layers = model.transformer.h if name == "gpt2" else model.model.layers
    with torch.no_grad():
        for layer in layers:
            norms = [p for n, p in layer.named_parameters() if "n" in n and p.ndim == 1]
            readers = [layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj]
            norms[0][[3, 17]] *= 100
            for reader in readers:
                reader.weight[:, [3, 17]] /= 100
            norms[1][[5, 40]] *= 100
            for reader in (layer.mlp.gate_proj, layer.mlp.up_proj):
                reader.weight[:, [5, 40]] /= 100
    return model


def rounding_inputs(model, names):
    """The model with the inputs of the named layers rounded as compressed-tensors does."""
    for name in names:
        model.get_submodule(name).register_forward_pre_hook(
            lambda _m, inputs: (round_tokens(inputs[0], 8), *inputs[1:])
        )
    return model


def reading(weight, inputs):
    """All tokens of ``inputs`` kept."""
    statistics = InputStatistics.empty(inputs.shape[1], torch.device("cpu"), 1)
    statistics.add(inputs)
    return Reading(weight, statistics)


@pytest.mark.parametrize("method", ["smoothquant", "smoothquant+gptq"])
def test_smoothing_lowers_the_kl_with_activations_quantized(method):
    parent, tokens = with_outliers(), random_tokens(4, 64, seed=9)
    kls = {}
    for name in ("rtn", method):
        made = quantize(parent, W8A8, name, random_calibration())
        variant = rounding_inputs(with_weights_of(parent, made), made.layers)
        kls[name] = mean_kl(parent, variant, tokens)
    assert kls[method] < 0.2 * kls["rtn"], kls


def test_the_float_model_is_not_changed_by_smoothing():
    """Scales are folded: with weights of 8 bits and float activations almost nothing is lost."""
    parent, tokens = with_outliers(), random_tokens(4, 64, seed=9)
    made = quantize(parent, W8A8, "smoothquant", random_calibration())
    assert made.dense
    plain = quantize(parent, W8A8, "rtn")
    reference = mean_kl(parent, with_weights_of(parent, plain), tokens)
    assert mean_kl(parent, with_weights_of(parent, made), tokens) < 4 * reference + 1e-4
    strengths = [r.strength for r in made.reports]
    assert any(s is not None and s >= 0 for s in strengths)


def test_the_search_takes_the_least_error_and_never_loses_to_no_scaling():
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(64, 32, generator=generator)
    inputs[:, 4] *= 200
    weight = torch.randn(48, 32, generator=generator)
    rows, largest = torch.arange(32), inputs.abs().amax(0)
    found = search_smoothing([reading(weight, inputs)], rows, 32, W8, grid=11)
    assert found.error < 0.3 * found.plain_error
    errors = []
    for step in range(11):
        a = step / 10
        scales = largest**a / weight.abs().amax(0) ** (1 - a)
        # The formula of the paper, with nothing of ours in it.
        errors.append(joint_error(inputs, weight, scales, W8, 8))
    assert found.error == pytest.approx(min(errors), rel=0.02)
    smooth = torch.ones(64, 32)
    even = search_smoothing([reading(torch.ones(4, 32), smooth)], rows, 32, W8)
    assert even.error <= even.plain_error


def test_the_joint_error_is_that_of_rounded_products():
    generator = torch.Generator().manual_seed(1)
    x, w = torch.randn(5, 16, generator=generator), torch.randn(3, 16, generator=generator)
    step = w.abs().amax(1, keepdim=True) / 127.5
    rounded = (w / step).round().clamp(-128, 127) * step
    scale = x.abs().amax(1, keepdim=True) / 127.5
    tokens = (x / scale).round().clamp(-128, 127) * scale
    expected = (tokens @ rounded.T - x @ w.T).pow(2).sum() / 5
    assert joint_error(x, w, torch.ones(16), W8, 8) == pytest.approx(float(expected), rel=1e-4)


def test_channels_that_no_token_uses_keep_their_scale():
    inputs = torch.randn(16, 8, generator=torch.Generator().manual_seed(2))
    inputs[:, 3] = 0
    weight = torch.randn(4, 8, generator=torch.Generator().manual_seed(3))
    found = search_smoothing([reading(weight, inputs)], torch.arange(8), 8, W8)
    assert found.scales[3] == 1
    assert torch.isfinite(found.scales).all()
    assert (found.scales > 0).all()


def test_kept_tokens_do_not_depend_on_the_batches():
    tokens = torch.arange(40.0).reshape(20, 2)
    kept = []
    for size in (3, 7, 20):
        statistics = InputStatistics.empty(2, torch.device("cpu"), 4)
        for part in torch.split(tokens, size):
            statistics.add(part)
        kept.append(torch.cat(statistics.kept))
        assert torch.equal(statistics.largest, torch.tensor([38.0, 39.0]))
    assert all(torch.equal(k, tokens[::4]) for k in kept)


def test_the_artifact_loads_in_transformers_with_the_same_logits(tmp_path):
    parent = saved_parent(with_outliers(), tmp_path / "parent")
    made = make_artifact(parent, W8A8, "smoothquant", random_calibration(), {}, 0, tmp_path / "a")
    assert made.manifest["engines"]["transformers"]["loads"]
    config = json.loads((made.path / "config.json").read_text())
    group = config["quantization_config"]["config_groups"]["group_0"]
    assert group["input_activations"]["strategy"] == "token"
    peer = AutoModelForCausalLM.from_pretrained(made.path, dtype=torch.float32)
    ours = load_artifact(made.path, EnginePlan(dtype="float32", device="cpu"))
    tokens = random_tokens(2, 32, seed=4)
    with torch.no_grad():
        difference = (peer(tokens).logits - ours.module(tokens).logits).abs().max()
        plain = (parent.module(tokens).logits - ours.module(tokens).logits).abs().max()
    assert difference < 1e-4
    assert plain > 10 * difference


def test_it_is_for_quantized_activations_only():
    with pytest.raises(QuantizationError, match="activations of 8 bits") as caught:
        quantize(tiny(), Scheme(W8), "smoothquant", random_calibration())
    assert "--activation-bits 8" in caught.value.hint
    four = Scheme(WeightScheme(4, PerGroup(32)), activation_bits=8)
    with pytest.raises(QuantizationError, match="does not make 4 bits"):
        quantize(tiny(), four, "smoothquant", random_calibration())


def test_a_variant_on_the_command_line():
    variant = VariantPlan.model_validate(parse_variant("smoothquant:8:a8"))
    assert variant.scheme == W8A8
    assert variant.label == "smoothquant-w8-channel-a8"
