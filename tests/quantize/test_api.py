import itertools

import pytest
import torch

from evalq.errors import NonFiniteError, PlanError, QuantizationError
from evalq.quantize.api import quantize
from evalq.quantize.calibration import Calibration
from evalq.schema import BITS, PerChannel, PerGroup, Scheme, WeightScheme
from tests.quantize.tiny import (
    mean_kl,
    random_calibration,
    random_tokens,
    tiny,
    with_weights_of,
)

W4 = Scheme(WeightScheme(4, PerGroup(32)))


@pytest.mark.parametrize("granularity", [PerChannel(), PerGroup(32), PerGroup(64)])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("method", ["rtn", "gptq", "awq+gptq"])
def test_more_bits_are_closer(granularity, symmetric, method):
    parent = tiny()
    tokens = random_tokens(4, 64, seed=9)
    kls = []
    for bits in BITS:
        scheme = Scheme(WeightScheme(bits, granularity, symmetric))
        variant = with_weights_of(parent, quantize(parent, scheme, method, random_calibration()))
        kls.append(mean_kl(parent, variant, tokens))
    assert all(a > b for a, b in itertools.pairwise(kls)), kls
    assert kls[-1] < 0.02


@pytest.mark.parametrize("method", ["rtn", "gptq", "awq", "awq+gptq"])
def test_the_same_recipe_gives_the_same_bits(method):
    first, second = (quantize(tiny(), W4, method, random_calibration(), seed=5) for _ in range(2))
    for name, weight in first.layers.items():
        assert torch.equal(weight.codes, second.layers[name].codes)
        assert torch.equal(weight.scales, second.layers[name].scales)
    assert all(torch.equal(v, second.dense[k]) for k, v in first.dense.items())


def test_the_batch_size_does_not_matter_much():
    parent = tiny()
    tokens = random_tokens(4, 64, seed=9)
    kls = []
    for batch_tokens in (64, 192, 4096):
        options = {"batch_tokens": batch_tokens}
        variant = quantize(parent, W4, "gptq", random_calibration(7), options)
        kls.append(mean_kl(parent, with_weights_of(parent, variant), tokens))
    assert max(kls) < 1.1 * min(kls)


def test_what_is_recorded():
    calibration = random_calibration()
    seen = []
    out = quantize(tiny(), W4, "gptq", calibration, {"damping": 0.02}, 3, lambda *a: seen.append(a))
    assert out.options["damping"] == 0.02
    assert out.options["act_order"] is True
    assert out.calibration == calibration.record()
    assert (out.method, out.scheme, out.seed) == ("gptq", W4, 3)
    assert out.seconds > 0
    assert [s[1] for s in seen] == [0, 0.5, 1.0]
    report = out.reports[0]
    assert report.name == "model.layers.0.self_attn.q_proj"
    assert report.tokens == 8 * 64
    assert report.damping == 0.02
    assert 0 < report.output_error < 1


@pytest.mark.parametrize(
    ("parent", "expected"),
    [(torch.float32, torch.float16), (torch.float16, torch.float16), (torch.bfloat16,) * 2],
)
def test_the_dtype_of_scales_follows_the_parent(parent, expected):
    out = quantize(tiny().to(parent), W4, "awq", random_calibration())
    assert {w.scales.dtype for w in out.layers.values()} == {expected}
    assert {t.dtype for t in out.dense.values()} == {parent}


def test_the_head_is_left_unless_asked_for():
    parent = tiny()
    assert "lm_head" not in quantize(parent, W4, "rtn").layers
    for method in ("rtn", "gptq", "awq"):
        out = quantize(parent, W4, method, random_calibration(), {"quantize_head": True})
        assert out.layers["lm_head"].shape == (97, 64)
        assert mean_kl(parent, with_weights_of(parent, out), random_tokens(2, 64)) < 0.5


def test_the_head_gets_the_hessian_of_what_it_reads():
    parent = tiny()
    out = quantize(parent, W4, "gptq", random_calibration(), {"quantize_head": True})
    variant = with_weights_of(parent, out)
    variant.lm_head.weight.data.copy_(parent.lm_head.weight)
    with torch.no_grad():
        inputs = variant.model(random_calibration().tokens).last_hidden_state.reshape(-1, 64)
    difference = out.layers["lm_head"].dequantize() - parent.lm_head.weight.data
    expected = (inputs @ difference.T).norm() / (inputs @ parent.lm_head.weight.data.T).norm()
    assert out.reports[-1].output_error == pytest.approx(float(expected), rel=1e-2)


def test_tied_embeddings_keep_their_head(monkeypatch):
    # Refused before any layer is worked on.
    monkeypatch.setattr("evalq.quantize.api.quantize_decoder_layer", None)
    with pytest.raises(QuantizationError, match="shares its weight"):
        quantize(tiny(tie_word_embeddings=True), W4, "rtn", None, {"quantize_head": True})


def test_layers_can_be_left_out():
    out = quantize(tiny(), W4, "gptq", random_calibration(), {"skip": "layers.0., o_proj"})
    assert len(out.layers) == 6
    assert not any("layers.0." in name or "o_proj" in name for name in out.layers)
    with pytest.raises(QuantizationError, match="no layer is left"):
        quantize(tiny(), W4, "rtn", None, {"skip": "layers"})


def test_groups_that_do_not_divide_are_refused_before_any_work():
    with pytest.raises(QuantizationError, match="groups of 128 do not divide the 64 columns") as e:
        quantize(tiny(), Scheme(WeightScheme(4, PerGroup(128))), "rtn")
    assert "64 or 32 or 16 fit" in e.value.hint


def test_methods_and_calibration_that_are_missing():
    with pytest.raises(PlanError, match="unknown method 'gtpq'") as caught:
        quantize(tiny(), W4, "gtpq")
    assert "gptq" in caught.value.hint
    with pytest.raises(PlanError, match="needs calibration"):
        quantize(tiny(), W4, "gptq")


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("method", ["rtn", "gptq", "awq"])
def test_a_broken_weight_is_named(bad, method):
    parent = tiny()
    parent.model.layers[1].mlp.up_proj.weight.data[3, 4] = bad
    with pytest.raises(NonFiniteError, match=r"model\.layers\.1\.mlp\.up_proj\.weight"):
        quantize(parent, W4, method, random_calibration())


def test_a_broken_activation_is_named():
    parent = tiny()
    parent.model.layers[1].mlp.up_proj.weight.data.fill_(1e30)
    with pytest.raises(NonFiniteError, match=r"model\.layers\.1\.mlp"):
        quantize(parent, W4, "gptq", random_calibration(), {"scale_dtype": "float32"})
    embedding = tiny()
    embedding.model.embed_tokens.weight.data[7] = float("nan")
    tokens = torch.full((2, 32), 7)
    with pytest.raises(NonFiniteError, match="first decoder layer"):
        quantize(embedding, W4, "gptq", Calibration.from_tokens(tokens, "x"))


def test_a_layer_that_no_token_reaches():
    parent = tiny()
    parent.model.layers[0].extra = torch.nn.Linear(64, 64)
    parent.model.layers[1].extra = torch.nn.Linear(64, 64)
    with pytest.raises(QuantizationError, match=r"no calibration token reached .*extra") as caught:
        quantize(parent, W4, "gptq", random_calibration())
    assert "skip" in caught.value.hint


def test_an_expert_that_saw_too_little_is_reported():
    parent = tiny("mixtral")
    router = parent.model.layers[0].mlp.gate
    router.weight.data[2] = 0
    router.weight.data[3] = router.weight.data[1] * -1
    calibration = random_calibration(1, 16)
    out = quantize(parent, W4, "gptq", calibration)
    assert any("calibration tokens reached this expert" in w for w in out.warnings)


def test_experts_that_saw_too_little_are_not_listed_without_end():
    parent = tiny("mixtral", num_local_experts=16)
    out = quantize(parent, W4, "gptq", random_calibration(1, 16))
    named = [w for w in out.warnings if "reached this expert" in w]
    assert len(named) == 8
    (more,) = [w for w in out.warnings if "more expert layers saw too few" in w]
    starved = sum(r.tokens < 16 for r in out.reports if ".experts." in r.name)
    assert more.startswith(f"{starved - 8} more")


def test_tokens_of_another_vocabulary():
    tokens = torch.full((2, 32), 97)
    with pytest.raises(QuantizationError, match="token 97 is outside"):
        quantize(tiny(), W4, "gptq", Calibration.from_tokens(tokens, "x"))


def test_a_model_without_decoder_layers():
    with pytest.raises(QuantizationError, match="no decoder layers"):
        quantize(torch.nn.Linear(4, 4), W4, "rtn")  # type: ignore[arg-type]


def test_small_gates_stay_and_are_named():
    out = quantize(tiny("qwen2_moe"), W4, "rtn")
    assert any("shared_expert_gate has 1 outputs" in w for w in out.warnings)
