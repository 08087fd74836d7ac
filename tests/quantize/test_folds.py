import copy

import pytest
import torch

from evalq.quantize.api import quantize
from evalq.quantize.awq import search_scales
from evalq.quantize.capture import capture_inputs
from evalq.quantize.folds import apply_fold, find_folds
from evalq.quantize.job import InputStatistics, Reading
from evalq.quantize.linear import decoder_layers, linears, split_experts
from evalq.quantize.trace import trace_layer
from evalq.schema import PerGroup, Scheme, WeightScheme
from tests.quantize.tiny import (
    log_probabilities,
    mean_kl,
    random_calibration,
    random_tokens,
    tiny,
    with_weights_of,
)

FOLDS = {
    "llama": 4,
    "mistral": 4,
    "qwen2": 4,
    "qwen3": 4,
    "gemma2": 4,
    "gemma3": 4,
    "phi3": 4,
    "gpt2": 3,
    "opt": 4,
    "gpt_neox": 3,
    "cohere": 3,
    "mixtral": 7,
    "qwen2_moe": 8,
}
"""Places a layer has, by reading its code: norms before linears, v to o, up to down of each expert.

A gelu lets no scale through, and Cohere's attention and MLP read one norm.
"""


def folds_of(model, index=0):
    _, layers = decoder_layers(model)
    tokens = random_tokens(1, 16)
    stream = capture_inputs(model, layers, tokens, 1, torch.device("cpu"))
    layer = layers[index]
    split_experts(layer)
    hidden, call = stream.hidden[0], stream.calls[0][index]
    trace = trace_layer(layer, hidden, call, [n for n, _ in linears(layer)])
    config = model.config
    head_dim = getattr(config, "head_dim", None) or 16
    return layer, find_folds(layer, trace, hidden, call, head_dim, 0)


@pytest.mark.parametrize("name", FOLDS)
def test_every_place_is_found_and_folding_changes_no_logit(name):
    model = tiny(name)
    tokens = random_tokens(2, 40, seed=5)
    before = log_probabilities(model, tokens)
    generator = torch.Generator().manual_seed(3)
    for index in range(2):
        layer, folds = folds_of(model, index)
        assert len(folds) == FOLDS[name]
        for fold in folds:
            scales = torch.ones(fold.channels)
            drawn = torch.exp(torch.randn(fold.channels, generator=generator) * 0.5)
            scales[fold.rows] = drawn[fold.rows]
            columns = apply_fold(layer, fold, scales)
            torch.testing.assert_close(columns, scales[fold.rows])
    after = log_probabilities(model, tokens)
    torch.testing.assert_close(after, before, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["mixtral", "qwen2_moe"])
def test_all_that_read_the_norm_before_a_mixture_take_up_its_scales(name):
    _, folds = folds_of(tiny(name))
    fold = next(f for f in folds if f.producer == "post_attention_layernorm")
    expected = {"mlp.gate", *(f"mlp.experts.{e}.gate_up_proj" for e in range(4))}
    if name == "qwen2_moe":
        expected |= {"mlp.shared_expert.gate_proj", "mlp.shared_expert.up_proj"}
        expected.add("mlp.shared_expert_gate")
    assert set(fold.consumers) == expected


def test_an_expert_that_no_token_reached_takes_up_the_same_scales():
    model = tiny("mixtral", num_experts_per_tok=1)
    with torch.no_grad():
        for layer in model.model.layers:
            # Between two others in every token: never the best.
            layer.mlp.gate.weight[3] = layer.mlp.gate.weight[:2].mean(0)
    _, folds = folds_of(model)
    fold = next(f for f in folds if f.producer == "post_attention_layernorm")
    assert "mlp.experts.3.gate_up_proj" in fold.consumers
    inside = {f.producer: f for f in folds if ".experts." in f.producer}
    assert len(inside) == 4
    unseen, proven = (inside[f"mlp.experts.{e}.gate_up_proj"] for e in (3, 0))
    assert unseen.consumers == ("mlp.experts.3.down_proj",)
    assert torch.equal(unseen.rows, proven.rows)


@pytest.mark.parametrize("name", ["mixtral", "qwen2_moe"])
@pytest.mark.parametrize("bits", [3, 4])
def test_scales_before_a_mixture_beat_rounding(name, bits):
    parent, tokens = tiny(name), random_tokens(8, 64, seed=9)
    scheme = Scheme(WeightScheme(bits, PerGroup(32), symmetric=False))
    made = quantize(parent, scheme, "awq", random_calibration(16))
    assert not any("takes up scales" in w for w in made.warnings)
    experts = [r for r in made.reports if r.name.endswith("gate_up_proj")]
    assert len(experts) == 8
    for index in range(2):
        strengths = {r.strength for r in experts if f".layers.{index}." in r.name}
        assert len(strengths) == 1
        assert strengths != {None}
        assert f"model.layers.{index}.mlp.gate.weight" in made.dense
    plain = quantize(parent, scheme, "rtn")
    ours = mean_kl(parent, with_weights_of(parent, made), tokens)
    assert ours < mean_kl(parent, with_weights_of(parent, plain), tokens)


def test_experts_count_by_the_tokens_that_they_saw():
    """Two experts that saw equal tokens are one weight with the rows of both; none counts none."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(400, 64, generator=generator)
    inputs[:, [5, 9]] *= 30
    weight = torch.randn(32, 64, generator=generator)
    scheme, rows = WeightScheme(3, PerGroup(32)), torch.arange(64)

    def reading(part, some):
        statistics = InputStatistics.empty(64, torch.device("cpu"))
        statistics.add(some)
        return Reading(part, statistics)

    whole = search_scales([reading(weight, inputs)], rows, 64, scheme)
    halves = [reading(weight[:16], inputs), reading(weight[16:], inputs)]
    unseen = reading(weight * 100, inputs[:0])
    split = search_scales([*halves, unseen], rows, 64, scheme)
    torch.testing.assert_close(split.scales, whole.scales)
    # A token's error is a mean over the experts that read it, not a sum.
    assert split.error == pytest.approx(whole.error / 2, rel=1e-3)


def test_experts_that_stay_as_they_are_keep_the_norm_as_it_is():
    parent = tiny("mixtral")
    scheme = Scheme(WeightScheme(8, PerGroup(32), symmetric=False))
    made = quantize(parent, scheme, "awq", random_calibration(), {"skip": "experts"})
    assert not any("experts" in name for name in (*made.layers, *made.dense))
    assert not any("post_attention" in name or "mlp" in name for name in made.dense)
    variant = with_weights_of(parent, made)
    assert mean_kl(parent, variant, random_tokens(4, 64, seed=9)) < 0.05


@pytest.mark.parametrize("name", ["llama", "gpt2", "mixtral", "gemma2"])
def test_looking_for_folds_changes_nothing(name):
    model = tiny(name)
    for layer in decoder_layers(model)[1]:
        split_experts(layer)
    before = copy.deepcopy(model.state_dict())
    folds_of(model)
    after = model.state_dict()
    assert all(torch.equal(before[k], after[k]) for k in before)


@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_a_norm_in_few_bits_is_made_up_for_in_the_columns(name):
    model = tiny(name)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "norm" in key:
                parameter.copy_(parameter.bfloat16())
    tokens = random_tokens(2, 40, seed=5)
    before = log_probabilities(model, tokens)
    layer, folds = folds_of(model)
    fold = folds[0]
    scales = torch.rand(fold.channels, generator=torch.Generator().manual_seed(0)) + 0.5
    columns = apply_fold(layer, fold, scales, torch.bfloat16)
    norm = layer.get_submodule(fold.producer).weight
    assert torch.equal(norm, norm.bfloat16().float())
    assert not torch.equal(columns, scales)
    torch.testing.assert_close(columns, scales, rtol=0.02, atol=0)
    torch.testing.assert_close(log_probabilities(model, tokens), before, rtol=0, atol=2e-3)
