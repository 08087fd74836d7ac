"""Fidelity against float64 arithmetic on whole logits, which is not how the verb takes it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import log_softmax
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

from evalq.errors import NonFiniteError, TaskError
from evalq.fidelity import compare_to_parent, cut_windows, run_parent
from evalq.texts import Document, TextSource

SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": 97,
}


def model(module: Any) -> Any:
    return SimpleNamespace(
        module=module.eval(),
        device=torch.device("cpu"),
        dtype=torch.float32,
        name="m",
        kv_bits=None,
    )


def llama(seed: int) -> Any:
    torch.manual_seed(seed)
    module = LlamaForCausalLM(LlamaConfig(**SMALL))
    with torch.no_grad():  # sharper than the initialization's near-uniform distributions
        module.lm_head.weight.mul_(20)
    return model(module)


def letters(text: str) -> dict[str, list[int]]:
    return {"input_ids": [ord(c) % 97 for c in text]}


SOURCE = TextSource(
    "t",
    (
        Document("the quick brown fox jumps over the lazy dog", "d0", "prose"),
        Document("habari ya asubuhi", "d1", "multilingual/sw"),
        Document("x", "d2", "prose"),
        Document("a second document that is a bit longer than the first one was", "d3", "prose"),
    ),
)


def by_hand(parent: Any, variant: Any, windows: Any) -> list[tuple[float, bool, float, float]]:
    rows = []
    for window in windows:
        ids = torch.tensor([window.ids])
        with torch.no_grad():
            p = log_softmax(parent.module(ids).logits[0].double().numpy(), axis=-1)
            q = log_softmax(variant.module(ids).logits[0].double().numpy(), axis=-1)
        for t in range(len(window.ids) - 1):
            follow = window.ids[t + 1]
            kl = float(np.sum(np.exp(p[t]) * (p[t] - q[t])))
            rows.append((kl, p[t].argmax() == q[t].argmax(), -p[t][follow], -q[t][follow]))
    return rows


def gpt2(seed: int) -> Any:
    torch.manual_seed(seed)
    return model(GPT2LMHeadModel(GPT2Config(vocab_size=97, n_embd=32, n_layer=2, n_head=2)))


def gemma2(seed: int) -> Any:
    torch.manual_seed(seed)
    module = Gemma2ForCausalLM(
        Gemma2Config(**SMALL, head_dim=16, final_logit_softcapping=5.0, sliding_window=16)
    )
    with torch.no_grad():
        module.lm_head.weight.mul_(20)
    return model(module)


@pytest.mark.parametrize("make", [llama, gpt2, gemma2])
def test_equals_float64_on_whole_logits(make: Any) -> None:
    parent, variant = make(0), make(1)
    windows = cut_windows(SOURCE, letters, length=24, count=99)
    kept = run_parent(parent, "t", windows, batch=3)
    assert kept.mode == "hidden"
    records = compare_to_parent("v", variant, kept, batch=2)
    expected = by_hand(parent, variant, windows)
    assert len(records) == len(expected) == sum(len(w.ids) - 1 for w in windows)
    for record, (kl, top1, nll_p, nll_q) in zip(records, expected, strict=True):
        assert record.kl == pytest.approx(kl, rel=1e-3, abs=1e-5)
        assert record.top1 == top1
        assert record.nll_parent == pytest.approx(nll_p, abs=1e-4)
        assert record.nll_variant == pytest.approx(nll_q, abs=1e-4)
    assert [(r.document, r.position) for r in records] == [
        (w.document, t + 1) for w in windows for t in range(len(w.ids) - 1)
    ]


def test_logits_are_kept_whole_where_the_head_does_not_give_them() -> None:
    class Scaled(LlamaForCausalLM):
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            out = super().forward(*args, **kwargs)
            out.logits = out.logits * 0.25
            return out

    torch.manual_seed(0)
    parent = model(Scaled(LlamaConfig(**SMALL)))
    variant = llama(1)
    windows = cut_windows(SOURCE, letters, length=24, count=99)
    kept = run_parent(parent, "t", windows)
    assert kept.mode == "logits"
    records = compare_to_parent("v", variant, kept)
    expected = by_hand(parent, variant, windows)
    assert [r.kl for r in records] == pytest.approx([e[0] for e in expected], rel=1e-3, abs=1e-5)


def test_the_parent_against_itself_is_zero() -> None:
    parent = llama(0)
    windows = cut_windows(SOURCE, letters, length=24, count=99)
    records = compare_to_parent("v", parent, run_parent(parent, "t", windows, batch=1), batch=4)
    assert max(r.kl for r in records) < 1e-6
    assert min(r.kl for r in records) >= 0
    assert all(r.top1 for r in records)


def test_a_nan_is_an_error_and_no_number() -> None:
    parent, variant = llama(0), llama(1)
    with torch.no_grad():
        variant.module.lm_head.weight[3, 3] = float("nan")
    windows = cut_windows(SOURCE, letters, length=24, count=99)
    with pytest.raises(NonFiniteError, match="broken: a logit is NaN"):
        compare_to_parent("broken", variant, run_parent(parent, "t", windows))


def test_windows_cover_all_slices_and_never_span_documents() -> None:
    windows = cut_windows(SOURCE, letters, length=24, count=2)
    assert {w.slice for w in windows} == {"prose", "multilingual/sw"}
    everything = cut_windows(SOURCE, letters, length=24, count=99)
    assert "d2" not in {w.document for w in everything}, "one token predicts nothing"
    assert sum(len(w.ids) for w in everything if w.document == "d3") == len(
        SOURCE.documents[3].text
    )
    with pytest.raises(TaskError, match="no text"):
        cut_windows(TextSource("e", (Document("", "d"),)), letters, 8, 8)


def test_of_short_items_more_than_windows_are_taken_within_the_same_tokens():
    class Words:
        def __call__(self, text):
            return {"input_ids": [len(word) for word in text.split()]}

    short = TextSource("tasks", tuple(Document("a bb ccc", f"d{i}", "s") for i in range(50)))
    assert len(cut_windows(short, Words(), 10, 3, named=True, ends=True)) == 10
    assert len(cut_windows(short, Words(), 100, 3, named=True, ends=True)) == 12
    long = TextSource("tasks", (Document("a " * 30 + "bb ccc", "d", "s"),))
    (window,) = cut_windows(long, Words(), 4, 3, named=True, ends=True)
    assert window.ids == (1, 1, 2, 3)
