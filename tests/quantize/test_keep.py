"""A share of the weights kept at higher precision: which layers, and that they are."""

import itertools
import json

import pytest
import torch
from transformers import AutoModelForCausalLM

from evalq.artifacts.make import make_artifact
from evalq.errors import PlanError, QuantizationError
from evalq.models.load import load_artifact
from evalq.plan import EnginePlan
from evalq.quantize.api import quantize
from evalq.quantize.mixed import keep_share
from evalq.schema import PerGroup, Scheme, WeightScheme
from tests.artifacts.helpers import saved_parent
from tests.quantize.tiny import mean_kl, random_calibration, random_tokens, tiny, with_weights_of

SCHEME = WeightScheme(3, PerGroup(32), symmetric=False)
TOKENS = random_tokens(4, 64)


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("share", [0.1, 0.25, 0.5])
def test_no_other_layers_within_the_share_save_more(share, bits):
    kept = keep_share(tiny(), SCHEME, TOKENS, share, bits)
    total = sum(u.weights for u in kept.units)

    def saved(units):
        return sum(u.divergence[3] - u.divergence[bits] for u in units)

    subsets = itertools.chain.from_iterable(
        itertools.combinations(kept.units, n) for n in range(len(kept.units) + 1)
    )
    fitting = [s for s in subsets if sum(u.weights for u in s) <= share * total]
    chosen = [u for u in kept.units if set(u.layers) <= set(kept.layers)]
    assert saved(chosen) == pytest.approx(max(saved(s) for s in fitting))
    assert sum(len(u.layers) for u in chosen) == len(kept.layers)
    assert kept.share == pytest.approx(sum(u.weights for u in chosen) / total)
    assert 0 < kept.share <= share


@pytest.mark.parametrize("name", ["llama", "gpt2", "mixtral"])
@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_kept_layers_have_their_bits_and_lower_the_divergence(name, method):
    parent, tokens = tiny(name), random_tokens(8, 64, seed=9)
    scheme, calibration = Scheme(SCHEME), random_calibration(16)
    plain = quantize(parent, scheme, method, calibration)
    eight = quantize(parent, scheme, method, calibration, {"keep": 0.3})
    layers = set(eight.details["kept"]["layers"])
    assert layers
    assert {n for n, w in eight.layers.items() if w.scheme.bits == 8} == layers
    assert {w.scheme.bits for n, w in eight.layers.items() if n not in layers} == {3}
    exact = quantize(parent, scheme, method, calibration, {"keep": 0.3, "keep_bits": 16})
    assert set(exact.layers) == set(plain.layers) - set(exact.details["kept"]["layers"])
    losses = [
        mean_kl(parent, with_weights_of(parent, made), tokens) for made in (plain, eight, exact)
    ]
    assert losses[1] < losses[0]
    assert losses[2] < losses[0]


def test_the_same_layers_are_kept_again_and_the_artifact_says_which(tmp_path):
    parent = saved_parent(tiny(), tmp_path / "parent")
    scheme = Scheme(WeightScheme(4, PerGroup(32)))
    for bits in (8, 16):
        made = [
            make_artifact(
                parent,
                scheme,
                "gptq",
                random_calibration(),
                {"keep": 0.2, "keep_bits": bits},
                0,
                tmp_path / f"{part}{bits}",
            )
            for part in "ab"
        ]
        assert made[0].hash == made[1].hash
        manifest = json.loads((made[0].path / "evalq-manifest.json").read_text())
        kept = manifest["kept"]
        assert kept["bits"] == bits
        assert 0 < kept["share"] <= 0.2
        assert manifest["options"]["keep"] == 0.2
        assert set(manifest["sensitivity"]) == {
            *kept["layers"],
            *(layer["name"] for layer in manifest["layers"]),
        }
        ours = load_artifact(made[0].path, EnginePlan(dtype="float32", device="cpu"))
        peer = AutoModelForCausalLM.from_pretrained(made[0].path, dtype=torch.float32)
        with torch.no_grad():
            difference = (peer(TOKENS).logits - ours.module(TOKENS).logits).abs().max()
        assert difference < 1e-4
        if bits == 16:
            for layer in kept["layers"]:
                weight = ours.module.get_submodule(layer).weight
                assert torch.equal(weight, parent.module.get_submodule(layer).weight)


def test_what_keeps_nothing_is_refused():
    with pytest.raises(QuantizationError, match="keeps nothing of 8 bits"):
        keep_share(tiny(), WeightScheme(8, PerGroup(32)), TOKENS, 0.1, 8)
    with pytest.raises(QuantizationError, match="keep_bits is 12"):
        keep_share(tiny(), SCHEME, TOKENS, 0.1, 12)
    with pytest.raises(QuantizationError, match="the smallest layers hold") as caught:
        keep_share(tiny(), SCHEME, TOKENS, 0.001, 8)
    assert "Keep at least" in caught.value.hint
    options = {"keep": 0.1, "layer_bits": "model.layers.0.mlp.up_proj=8"}
    with pytest.raises(PlanError, match="both set widths"):
        quantize(tiny(), Scheme(SCHEME), "gptq", random_calibration(), options)
