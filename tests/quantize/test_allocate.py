"""Allocations: against every other allocation, and through a whole quantization."""

import copy
import itertools

import pytest

from evalq.errors import PlanError, QuantizationError
from evalq.quantize.allocate import Unit, allocate, format_bits, parse_bits
from evalq.quantize.api import quantize
from evalq.quantize.mixed import mixed_precision, target_of_bytes
from evalq.quantize.sensitivity import measure_sensitivity
from evalq.schema import PerGroup, Scheme, WeightScheme
from tests.quantize.tiny import mean_kl, random_calibration, random_tokens, tiny

SCHEME = WeightScheme(3, PerGroup(32), symmetric=True)
UNITS = [
    Unit(("a.q", "a.k"), ((64, 64), (32, 64)), {2: 0.9, 3: 0.2, 4: 0.05}),
    Unit(("a.o",), ((64, 64),), {2: 0.5, 3: 0.11, 4: 0.03}),
    Unit(("a.up",), ((128, 64),), {2: 0.2, 3: 0.1, 4: 0.09}),
    Unit(("a.down",), ((64, 128),), {2: 2.0, 3: 0.3, 4: 0.01}),
]


@pytest.mark.parametrize("budget", [2.6, 2.9, 3.2, 3.6, 4.1, 9.0])
def test_no_other_allocation_within_the_budget_is_better(budget):
    found = allocate(UNITS, SCHEME, budget)
    total = sum(u.weights for u in UNITS)
    best = min(
        sum(u.divergence[w] for u, w in zip(UNITS, widths, strict=True))
        for widths in itertools.product((2, 3, 4), repeat=4)
        if sum(u.bits(SCHEME, w, 16) for u, w in zip(UNITS, widths, strict=True)) <= budget * total
    )
    assert found.optimal
    assert found.average <= budget
    assert found.divergence == pytest.approx(best)
    assert found.bits["a.q"] == found.bits["a.k"]


def test_a_budget_that_cannot_be_met_is_refused_with_the_least():
    with pytest.raises(QuantizationError, match=r"2\.5\d+"):
        allocate(UNITS, SCHEME, 2.1)
    assert min(allocate(UNITS, SCHEME, 9, lowest=4).bits.values()) == 4


def test_widths_survive_as_text():
    bits = {"model.layers.0.a": 3, "model.layers.1.b": 8}
    assert parse_bits(format_bits(bits)) == bits
    assert parse_bits("") == {}
    for text in ("a", "a=9", "=3", "a=x"):
        with pytest.raises(PlanError):
            parse_bits(text)


def test_sensitivity_falls_with_bits_and_layers_get_the_widths_asked_for():
    parent = tiny("llama")
    tokens = random_tokens(4, 32, seed=2)
    units = measure_sensitivity(parent, SCHEME, (2, 4, 8), tokens)
    assert [len(u.layers) for u in units] == [3, 1, 2, 1] * 2
    assert all(u.divergence[2] > u.divergence[4] > u.divergence[8] >= 0 for u in units)
    mixed = mixed_precision(parent, SCHEME, tokens, 4.0, widths=(2, 4, 8))
    made = quantize(
        parent, Scheme(SCHEME), "gptq", random_calibration(), {"layer_bits": mixed.layer_bits}
    )
    assert {n: w.scheme.bits for n, w in made.layers.items()} == dict(mixed.allocation.bits)
    assert len(set(mixed.allocation.bits.values())) > 1
    variant, narrow = copy.deepcopy(parent), copy.deepcopy(parent)
    made.apply_to(variant)
    quantize(parent, Scheme(WeightScheme(2, PerGroup(32))), "gptq", random_calibration()).apply_to(
        narrow
    )
    probe = random_tokens(4, 64, seed=9)
    assert mean_kl(parent, variant, probe) < mean_kl(parent, narrow, probe)


def test_the_divergence_of_a_unit_is_that_of_the_model_with_it_alone_rounded():
    from evalq.quantize.linear import set_weight
    from evalq.quantize.rtn import rtn_weight

    parent = tiny("llama")
    tokens = random_tokens(4, 32, seed=2)
    unit = measure_sensitivity(parent, SCHEME, (3,), tokens)[5]
    variant = copy.deepcopy(parent)
    for name in unit.layers:
        layer = variant.get_submodule(name)
        set_weight(
            layer, rtn_weight(layer.weight.data, SCHEME, layer.weight.dtype, "mse").dequantize()
        )
    assert unit.divergence[3] == pytest.approx(mean_kl(parent, variant, tokens), rel=1e-3)


def test_a_layer_that_there_is_none_of_is_named():
    with pytest.raises(PlanError, match=r"layers\.7"):
        quantize(
            tiny("llama"),
            Scheme(SCHEME),
            "rtn",
            options={"layer_bits": "model.layers.7.mlp.up_proj=4"},
        )


def test_bytes_become_bits():
    parent = tiny("llama")
    total = sum(p.numel() for p in parent.parameters()) * 2
    bits = target_of_bytes(parent, total, 16)
    assert bits == pytest.approx(16)
    with pytest.raises(QuantizationError, match="bytes cannot be reached"):
        target_of_bytes(parent, 100, 16)
