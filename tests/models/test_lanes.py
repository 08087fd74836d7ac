"""Rows that take one prompt after another give what each prompt gives alone."""

from __future__ import annotations

import pytest
import torch

from evalq.errors import EvalqError, KernelError
from evalq.models import hf
from evalq.models.decoding import Stops, generate
from evalq.models.encode import Encoder, Prompt
from evalq.models.forward import Forward
from evalq.models.hf import TransformersEngine
from evalq.models.lanes import Lanes
from evalq.models.prefix import Prompts
from evalq.plan import EnginePlan
from evalq.schema import Request
from tests.models.hflm import Reference, answers
from tests.models.tiny import TEXT, byte_level_tokenizer, loaded


def requests(count: int = 40, shots: str = "") -> list[Request]:
    """Prompts of many lengths that stop at many."""
    stops = ("\n", "z", "e ", "<|pad|>")
    return [
        Request(
            "generate_until",
            shots + TEXT[q % 4][: 5 + 7 * q % 50],
            until=stops[: q % 5],
            max_tokens=24,
        )
        for q in range(count)
    ]


@pytest.fixture
def few_rows(monkeypatch):
    """Room for 4 rows of 128 tokens of the tiny models (a token keeps 512 bytes; GPT-2 1,024)."""
    monkeypatch.setattr(hf, "_KEPT_BYTES", 4 * 128 * 512)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("shots", ["", "Question: one? Answer: two.\n" * 2])
def test_texts_are_hflms_however_often_rows_are_refilled(kind, shots, few_rows):
    model = loaded(kind, byte_level_tokenizer())
    ends = model.tokenizer.eos_token_id
    with torch.no_grad():
        # A bias towards the end token: rows end early, at different steps.
        model.module.get_output_embeddings().weight[ends] *= 4
    asked = requests(shots=shots)
    engine = TransformersEngine(model, EnginePlan())
    fills = []
    real = Lanes.fill
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Lanes, "fill", lambda s, r, p: (fills.append(list(r)), real(s, r, p))[1])
        ours = answers(engine, asked)
    assert [r.text for r in ours] == Reference(model).generate(asked)
    assert not engine.events
    assert len(fills) > 4
    assert any(0 < len(rows) < 4 for rows in fills)
    assert len({r.tokens_out for r in ours}) > 3


def test_the_same_batch_gives_the_same_bits_and_a_smaller_room_the_same_texts(monkeypatch):
    model = loaded("llama", byte_level_tokenizer())
    asked = requests()
    wide = answers(TransformersEngine(model, EnginePlan()), asked)
    monkeypatch.setattr(hf, "_KEPT_BYTES", 2 * 128 * 512)
    narrow = TransformersEngine(model, EnginePlan())
    assert narrow.settings != TransformersEngine(model, EnginePlan(batch_tokens=64)).settings
    first = answers(narrow, asked)
    again = answers(TransformersEngine(model, EnginePlan()), asked)
    assert [(r.text, r.tokens_out) for r in first] == [(r.text, r.tokens_out) for r in again]
    assert [r.text for r in first] == [r.text for r in wide]


def test_a_step_over_lanes_has_the_logits_of_a_whole_pass():
    """Against one pass over each row's whole text, in float64."""
    model = loaded("llama", byte_level_tokenizer())
    forward = Forward(model.module, 4096, 4096)
    rows = [[5, 6, 7], [9] * 40, [11, 12], [13] * 17]
    lanes = Lanes(forward, Prompts(forward, rows), 4, 64)
    lanes.fill([0, 1], rows[:2])
    lanes.fill([3, 2], rows[2:])
    texts = [rows[0], rows[1], rows[3], rows[2]]
    exact = loaded("llama", byte_level_tokenizer()).module.double()
    for token in (21, 22, 23):
        texts = [[*text, token + i] for i, text in enumerate(texts)]
        logits = lanes.step([text[-1] for text in texts])
        for row, text in zip(logits, texts, strict=True):
            with torch.no_grad():
                whole = exact(input_ids=torch.tensor([text])).logits[0, -1]
            assert float((row.double() - whole).norm() / whole.norm()) < 1e-5


def test_what_an_earlier_prompt_left_is_not_read():
    model = loaded("llama", byte_level_tokenizer())
    forward = Forward(model.module, 4096, 4096)
    lanes = Lanes(forward, Prompts(forward, [[5] * 30, [6, 7]]), 2, 64)
    lanes.fill([0, 1], [[5] * 30, [6, 7]])
    clean = lanes.step([8, 8])[1].clone()
    for layer in lanes._layers:
        layer.states[0][0] = float("nan")
        layer.states[1][0] = float("inf")
    lanes.fill([0], [[6, 7]])
    after = lanes.step([8, None])[0]
    assert torch.allclose(after, clean, atol=1e-5)


def test_lanes_that_compute_something_else_are_not_used(monkeypatch):
    model = loaded("llama", byte_level_tokenizer())
    asked = requests()
    expected = [r.text for r in answers(TransformersEngine(model, EnginePlan()), asked)]
    real = Forward.step_at
    monkeypatch.setattr(Forward, "step_at", lambda *a: real(*a) * 1.1)
    engine = TransformersEngine(model, EnginePlan())
    assert [r.text for r in answers(engine, asked)] == expected
    assert len(engine.events) == 1
    assert "other logits" in engine.events[0]
    forward = Forward(model.module, 4096, 4096)
    prompt = Prompt((5, 6, 7), 4, False)
    with pytest.raises(KernelError, match="other logits"):
        generate(
            forward, Encoder(model.tokenizer, 128), [prompt], [Stops((), 0.0, 0)], frozenset(),
            lanes=1,
        )  # fmt: skip


def test_a_model_that_computes_nan_is_no_fault_of_the_lanes():
    model = loaded("llama", byte_level_tokenizer())
    with torch.no_grad():
        model.module.get_output_embeddings().weight[3] = float("nan")
    engine = TransformersEngine(model, EnginePlan())
    answers(engine, requests(4))
    assert not engine.events


def test_out_of_memory_takes_fewer_rows_and_loses_nothing(monkeypatch):
    model = loaded("llama", byte_level_tokenizer())
    asked = requests()
    expected = [r.text for r in answers(TransformersEngine(model, EnginePlan()), asked)]
    real, least = hf.generate, 3

    def small(*given, lanes=None, **more):
        if lanes > least:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")
        return real(*given, lanes=lanes, **more)

    monkeypatch.setattr(hf, "generate", small)
    engine = TransformersEngine(model, EnginePlan())
    assert [r.text for r in answers(engine, asked)] == expected
    assert engine.events[0] == "out of memory with 40 requests at once: halved"
    least = 0
    with pytest.raises(EvalqError, match="one request alone"):
        answers(TransformersEngine(model, EnginePlan()), asked)


def test_each_batch_decides_for_itself_as_a_resumed_run_would(monkeypatch):
    model = loaded("llama", byte_level_tokenizer())
    engine = TransformersEngine(model, EnginePlan())
    real = Forward.step_at
    monkeypatch.setattr(Forward, "step_at", lambda *a: real(*a) * 1.1)
    for _ in range(2):
        engine.answer(requests(4))
    assert len(engine.events) == 1
    seen = []
    monkeypatch.setattr(Forward, "step_at", lambda *a: (seen.append(1), real(*a))[1])
    engine.answer(requests(4))
    assert len(seen) > 1
