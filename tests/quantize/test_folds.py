import copy

import pytest
import torch

from evalq.quantize.capture import capture_inputs, trace_layer
from evalq.quantize.folds import apply_fold, find_folds
from evalq.quantize.linear import decoder_layers, linears
from tests.quantize.tiny import log_probabilities, random_tokens, tiny

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
}
"""Places a layer has, by reading its code: norms before linears, v to o, up to down.

A gelu lets no scale through, and Cohere's attention and MLP read one norm.
"""


def folds_of(model, index=0):
    _, layers = decoder_layers(model)
    tokens = random_tokens(1, 16)
    stream = capture_inputs(model, layers, tokens, 1, torch.device("cpu"))
    layer = layers[index]
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
    torch.testing.assert_close(after, before, rtol=0, atol=2e-3)


@pytest.mark.parametrize("name", ["llama", "gpt2", "mixtral", "gemma2"])
def test_looking_for_folds_changes_nothing(name):
    model = tiny(name)
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
