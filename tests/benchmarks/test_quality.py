"""benchmarks/quality: the judge against scipy, ratios against hand-made rows, windows."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from scipy.special import log_softmax
from scipy.stats import entropy
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.quality import texts
from benchmarks.quality.artifacts import directory_of, tensors
from benchmarks.quality.evaluate import Judge
from benchmarks.quality.ours import Ours, make, scheme_of
from benchmarks.quality.table import compare, markdown, rows_of, stored_bits


@pytest.fixture(scope="module")
def parent() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=96,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=64,
    )
    module = LlamaForCausalLM(config).eval()
    # Random models are nearly uniform; a wider head gives distributions that differ.
    module.lm_head.weight.data.mul_(20)
    return module


@pytest.fixture(scope="module")
def tokens() -> torch.Tensor:
    return torch.randint(0, 96, (12, 24), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def judge(parent: LlamaForCausalLM, tokens: torch.Tensor) -> Judge:
    return Judge(parent, {"near": tokens})


def test_the_parent_is_at_no_distance_from_itself(judge: Judge) -> None:
    found = judge.judge(judge.variant({}))["near"]
    assert found.kl == pytest.approx(0.0, abs=1e-9)
    assert found.top1 == 1.0
    assert found.perplexity_ratio == pytest.approx(1.0, abs=1e-6)


def test_the_judge_agrees_with_scipy(
    judge: Judge, parent: LlamaForCausalLM, tokens: torch.Tensor
) -> None:
    name = "model.layers.0.mlp.down_proj.weight"
    moved = parent.get_parameter(name).detach() * 3
    other = copy.deepcopy(parent)
    other.get_parameter(name).data.copy_(moved)
    with torch.no_grad():
        p = log_softmax(parent(tokens).logits.double().numpy(), axis=-1)
        q = log_softmax(other(tokens).logits.double().numpy(), axis=-1)
    found = judge.judge(judge.variant({name: moved}))["near"]
    kl = entropy(np.exp(p), np.exp(q), axis=-1)
    assert found.kl == pytest.approx(kl.mean(), rel=1e-4)
    assert found.kl_by_window == pytest.approx(list(kl.mean(1)), rel=1e-3, abs=2e-6)
    assert found.top1 == pytest.approx((p.argmax(-1) == q.argmax(-1)).mean())
    after = tokens[:, 1:, None].numpy()
    nll = [-np.take_along_axis(x[:, :-1], after, -1).mean() for x in (p, q)]
    assert found.perplexity_ratio == pytest.approx(math.exp(nll[1] - nll[0]), rel=1e-4)
    assert 0 < found.top1 < 1


def test_a_variant_of_another_shape_or_name_is_refused(judge: Judge) -> None:
    with pytest.raises(ValueError, match="not"):
        judge.variant({"model.norm.weight": torch.ones(7)})
    with pytest.raises(KeyError):
        judge.variant({"no.such.weight": torch.ones(7)})


def test_more_bits_are_nearer(parent: LlamaForCausalLM, tokens: torch.Tensor, judge: Judge) -> None:
    kl = []
    for bits in (2, 4, 8):
        recipe = Ours("gptq", {"refine": 1})
        made = make(parent, recipe, scheme_of(bits, 32, False), tokens)
        kl.append(judge.judge(judge.variant(made))["near"].kl)
    assert kl[0] > kl[1] > kl[2] > 0


def test_fake_weights_come_back_as_they_are(tmp_path: Path) -> None:
    inner = tmp_path / "model-w4g32"
    inner.mkdir()
    (inner / "config.json").write_text("{}")
    weight = torch.randn(3, 5)
    save_file({"a.weight": weight}, inner / "model.safetensors")
    assert directory_of(tmp_path) == inner
    assert torch.equal(tensors(tmp_path, fake=True)["a.weight"], weight)


def test_texts_of_the_built_in_parent_do_not_overlap(tmp_path: Path) -> None:
    place = Path(texts.__file__).parents[2] / "evalq" / "assets" / "builtin"
    record = texts.build("builtin", place, tmp_path / "t.safetensors", None)
    found = texts.read(tmp_path / "t.safetensors")
    assert found.calibration.shape == (128, 512)
    assert record["near"]["sha256"] == found.record["near"]["sha256"]
    windows = [tuple(w.tolist()) for t in (found.calibration, found.near, found.other) for w in t]
    assert len(set(windows)) == len(windows)


def _row(tool: str, scheme: str, label: str, near: list[float], other: list[float]) -> dict:
    parts = {}
    for name, kl in (("near", near), ("other", other)):
        mean = sum(kl) / len(kl)
        parts[name] = {"kl": mean, "perplexity_ratio": 1.0, "top1": 0.5, "kl_by_window": kl}
    return {"parent": "p", "scheme": scheme, "tool": tool, "label": label, "seconds": 1.0} | parts


def test_the_ratio_is_of_the_best_of_each_side_by_text(tmp_path: Path) -> None:
    rows = [
        _row("evalq", "w4-g64-asym", "gptq", [1.0, 3.0], [4.0, 4.0]),
        _row("evalq", "w4-g64-sym", "awq", [9.0, 9.0], [2.0, 2.0]),
        _row("peer", "w4-g64-asym", "x", [4.0, 4.0], [1.0, 1.0]),
        _row("peer", "w3-g64-asym", "x", [4.0, 4.0], [1.0, 1.0]),
    ]
    file = tmp_path / "rows.jsonl"
    # A line measured again replaces the first.
    stale = _row("peer", "w4-g64-asym", "x", [400.0, 4.0], [1.0, 1.0])
    file.write_text("\n".join(json.dumps(r) for r in [stale, *rows]))
    found = compare(rows_of([file]))
    assert [e["width"] for e in found] == ["w4"]
    assert found[0]["near"]["ratio"] == pytest.approx(0.5)
    assert found[0]["near"]["ours"] == "gptq"
    assert found[0]["near"]["interval"] == pytest.approx([0.25, 0.75])
    assert found[0]["other"]["ratio"] == pytest.approx(2.0)
    assert found[0]["other"]["ours"] == "awq"
    table = markdown(rows_of([file]))
    widths = {line.count("|") for line in table.split("\n\n")[0].splitlines()}
    assert len(widths) == 1


def test_stored_bits() -> None:
    assert stored_bits("w4-g64-sym") == 4.25
    assert stored_bits("w3-g128-asym") == 3 + 19 / 128
