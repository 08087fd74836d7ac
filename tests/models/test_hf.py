"""The engine against lm-eval's HFLM, and against itself in other batches."""

from __future__ import annotations

import random

import pytest
import torch

from evalq.errors import EvalqError, ParentError, PlanError, TaskError
from evalq.models import hf
from evalq.models.hf import TransformersEngine
from evalq.plan import EnginePlan
from evalq.schema import Request, canonical_json
from tests.models.hflm import Reference, answers
from tests.models.tiny import TEXT, byte_level_tokenizer, loaded

LOGPROB_TOLERANCE = 1e-3
BATCH_TOLERANCE = 1e-4
"""Float32 sums in another order: what an item's log-probability may move with its batch."""

KINDS = ("llama", "gpt2", "mistral")
SHOTS = "Question: one? Answer: two.\n" * 3


@pytest.fixture(scope="module", params=[(k, b) for k in KINDS for b in (False, True)], ids=str)
def model(request):
    kind, bos = request.param
    return loaded(kind, byte_level_tokenizer(bos=bos))


def choices(count: int = 14) -> list[Request]:
    requests = []
    for q in range(count):
        context = (SHOTS if q % 2 else "") + TEXT[q % 4][: 10 + 3 * q] + " " * (q % 3)
        requests += [
            Request("loglikelihood", context, c) for c in (" yes", " no, never", " perhaps", "x")
        ]
    return requests


def generations(count: int = 12, limit: int = 20) -> list[Request]:
    stops = ("\n", "z", "e ", "<|pad|>")
    return [
        Request(
            "generate_until",
            (SHOTS if q % 2 else "") + TEXT[q % 4][: 10 + 3 * q],
            until=stops[: q % 5],
            max_tokens=limit + q % 2,
        )
        for q in range(count)
    ]


def best(values, size=4):
    groups = [values[i : i + size] for i in range(0, len(values), size)]
    return [max(range(len(g)), key=g.__getitem__) for g in groups]


def test_loglikelihoods_and_choices_are_hflms(model):
    requests = choices()
    ours = answers(TransformersEngine(model, EnginePlan(batch_tokens=600)), requests)
    theirs = Reference(model, batch_size=4).loglikelihood(requests)
    for mine, (value, greedy) in zip(ours, theirs, strict=True):
        assert mine.logprob == pytest.approx(value, abs=LOGPROB_TOLERANCE)
        assert mine.greedy == greedy
    assert best([r.logprob for r in ours]) == best([v for v, _ in theirs])


def test_corner_cases_of_the_split_are_hflms(model):
    bos = model.tokenizer.bos_token or model.tokenizer.eos_token
    requests = [
        Request("loglikelihood", "", "abc"),
        Request("loglikelihood", "", bos + "abc"),
        Request("loglikelihood", bos + "Question", " yes"),
        Request("loglikelihood", "long " * 200, " tail end"),
        Request("loglikelihood", "a" * 100 + " \n ", "b" * 90),
        Request("loglikelihood", "Ünïcödé 😀", "é"),
    ]
    ours = answers(TransformersEngine(model, EnginePlan()), requests)
    theirs = Reference(model).loglikelihood(requests)
    for mine, (value, greedy) in zip(ours, theirs, strict=True):
        assert mine.logprob == pytest.approx(value, abs=LOGPROB_TOLERANCE)
        assert mine.greedy == greedy
    assert [r.truncated for r in ours] == [False, False, False, True, True, False]


def test_perplexity_is_hflms(model):
    requests = [Request("loglikelihood_rolling", t * k) for t in TEXT for k in (1, 3, 9)]
    requests.append(Request("loglikelihood_rolling", ""))
    ours = answers(TransformersEngine(model, EnginePlan(batch_tokens=512)), requests)
    theirs = Reference(model).rolling(requests)
    for mine, value in zip(ours, theirs, strict=True):
        # HFLM sums each window in float32.
        assert mine.logprob == pytest.approx(value, abs=LOGPROB_TOLERANCE, rel=1e-6)
    assert ours[-1].logprob == 0
    lengths = [len(model.tokenizer(r.context)["input_ids"]) for r in requests]
    assert [r.tokens_out for r in ours] == lengths


def test_greedy_text_is_hflms(model):
    requests = [
        *generations(),
        Request("generate_until", "long " * 200, until=("\n",), max_tokens=9),
    ]
    ours = answers(TransformersEngine(model, EnginePlan(batch_tokens=600)), requests)
    # Batch size 1: HFLM's larger batches go on until all rows met one and the same stop string.
    theirs = Reference(model).generate(requests)
    assert [r.text for r in ours] == theirs
    assert ours[-1].truncated


def test_end_of_text_ends_a_generation():
    model = loaded("llama", byte_level_tokenizer())
    ends = model.tokenizer.eos_token_id
    with torch.no_grad():
        # A bias towards the end token: with it, most rows end early, at different steps.
        model.module.lm_head.weight[ends] *= 4
    requests = generations(24, limit=30)
    ours = answers(TransformersEngine(model, EnginePlan()), requests)
    assert [r.text for r in ours] == Reference(model).generate(requests)
    lengths = [r.tokens_out for r in ours]
    assert min(lengths) < 5
    assert len(set(lengths)) > 3
    for response, request in zip(ours, requests, strict=True):
        assert response.truncated or response.tokens_out <= request.max_tokens
        assert response.truncated <= (response.tokens_out == request.max_tokens)


def test_a_repetition_penalty_is_applied_as_hflm_applies_it():
    model = loaded("llama", byte_level_tokenizer())
    requests = generations(8, limit=30)
    free = [r.text for r in answers(TransformersEngine(model, EnginePlan()), requests)]
    settings = TransformersEngine(model, EnginePlan()).settings
    model.module.generation_config.repetition_penalty = 1.3
    engine = TransformersEngine(model, EnginePlan())
    ours = [r.text for r in answers(engine, requests)]
    assert ours == Reference(model).generate(requests)
    assert ours != free
    assert engine.settings != settings


def test_other_settings_of_generation_are_refused():
    model = loaded("llama", byte_level_tokenizer())
    model.module.generation_config.no_repeat_ngram_size = 3
    with pytest.raises(ParentError, match="no_repeat_ngram_size"):
        TransformersEngine(model, EnginePlan())


def test_batches_do_not_change_answers(model):
    requests = choices()
    reference = answers(TransformersEngine(model, EnginePlan(batch_tokens=4096)), requests)
    order = list(range(len(requests)))
    for seed, tokens in enumerate((64, 512)):
        random.Random(seed).shuffle(order)
        engine = TransformersEngine(model, EnginePlan(batch_tokens=tokens))
        shuffled = answers(engine, [requests[i] for i in order])
        for i, response in zip(order, shuffled, strict=True):
            assert response.logprob == pytest.approx(reference[i].logprob, abs=BATCH_TOLERANCE)
            assert response.greedy == reference[i].greedy
    asked = generations()
    whole = answers(TransformersEngine(model, EnginePlan(batch_tokens=4096)), asked)
    single = answers(TransformersEngine(model, EnginePlan(batch_tokens=1)), asked)
    assert [r.text for r in whole] == [r.text for r in single]


def test_the_same_batch_gives_the_same_bits(model):
    engine = TransformersEngine(model, EnginePlan())
    requests = [*choices(4), *generations(4)]
    first = answers(engine, requests)
    again = answers(TransformersEngine(model, EnginePlan()), requests)
    assert [(r.text, r.logprob) for r in first] == [(r.text, r.logprob) for r in again]


def test_plan_goes_by_the_requests_alone_and_covers_each_once():
    engine = TransformersEngine(loaded("llama", byte_level_tokenizer()), EnginePlan())
    requests = [*choices(), *generations(), *choices(2)]
    batches = engine.plan(requests)
    assert sorted(i for b in batches for i in b) == list(range(len(requests)))
    engine.answer([requests[i] for i in batches[0]])
    assert engine.plan(requests) == batches
    for batch in batches:
        assert len({requests[i].kind for i in batch}) == 1


def test_choices_of_one_question_are_read_in_one_pass():
    model = loaded("llama", byte_level_tokenizer())
    engine = TransformersEngine(model, EnginePlan())
    read = []
    handle = model.module.register_forward_pre_hook(
        lambda module, args, kwargs: read.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    context = "Question: what is twelve times seven?" * 2
    same = [Request("loglikelihood", context, c) for c in (" A", " B", " C", " D")]
    answers(engine, same)
    handle.remove()
    once = len(model.tokenizer(context)["input_ids"])
    assert sum(read) < once + 4 * 3


def test_few_shot_examples_are_read_once():
    model = loaded("llama", byte_level_tokenizer(), length=512)
    shots = "Question: what is one plus one? Answer: two.\n" * 5
    requests = [
        Request("generate_until", f"{shots}Question {q}: {TEXT[q % 4][:q]}?", max_tokens=2)
        for q in range(8)
    ]
    read = []
    handle = model.module.register_forward_pre_hook(
        lambda module, args, kwargs: read.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    ours = answers(TransformersEngine(model, EnginePlan()), requests)
    handle.remove()
    assert [r.text for r in ours] == Reference(model).generate(requests)
    whole = sum(len(model.tokenizer(r.context)["input_ids"]) for r in requests)
    assert sum(read) < whole / 2


def test_samples_depend_on_their_seed_alone():
    engine = TransformersEngine(loaded("llama", byte_level_tokenizer()), EnginePlan())

    def ask(seed, temperature=1.0):
        return Request(
            "generate_until", "Question:", max_tokens=12, temperature=temperature, seed=seed
        )

    alone = engine.answer([ask(1)])[0].text
    together = engine.answer([ask(s) for s in range(6)])
    assert together[1].text == alone
    assert len({r.text for r in together}) > 3
    greedy = engine.answer([ask(0, 0.0)])[0].text
    assert engine.answer([ask(5, 1e-6)])[0].text == greedy


def test_sampling_follows_the_model():
    model = loaded("llama", byte_level_tokenizer())
    engine = TransformersEngine(model, EnginePlan())
    count = 4000
    asked = [
        Request("generate_until", "Q", max_tokens=1, temperature=1.3, seed=s) for s in range(count)
    ]
    ids = model.tokenizer("Q", return_tensors="pt")["input_ids"]
    expected = (model.module(ids).logits[0, -1].detach() / 1.3).softmax(-1)
    likely = int(expected.argmax())
    text = model.tokenizer.decode([likely], skip_special_tokens=True)
    share = sum(r.text == text for r in answers(engine, asked)) / count
    p = sum(
        float(expected[i])
        for i in range(len(expected))
        if model.tokenizer.decode([i], skip_special_tokens=True) == text
    )
    assert share == pytest.approx(p, abs=4 * (p * (1 - p) / count) ** 0.5)


def test_out_of_memory_halves_and_loses_nothing(monkeypatch):
    model = loaded("llama", byte_level_tokenizer())
    requests = choices()
    expected = answers(TransformersEngine(model, EnginePlan()), requests)
    engine = TransformersEngine(model, EnginePlan())
    real = hf.score

    def small(forward, rows):
        if len(rows) > 8:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")
        return real(forward, rows)

    monkeypatch.setattr(hf, "score", small)
    ours = answers(engine, requests)
    for mine, other in zip(ours, expected, strict=True):
        assert mine.logprob == pytest.approx(other.logprob, abs=BATCH_TOLERANCE)
    assert engine.events
    assert "halved" in engine.events[0]

    def none(forward, rows):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(hf, "score", none)
    with pytest.raises(EvalqError, match="one request alone"):
        engine.answer(requests[:3])


def test_other_errors_are_not_taken_for_memory(monkeypatch):
    engine = TransformersEngine(loaded("llama", byte_level_tokenizer()), EnginePlan())

    def broken(forward, rows):
        raise RuntimeError("shapes cannot be multiplied")

    monkeypatch.setattr(hf, "score", broken)
    with pytest.raises(RuntimeError, match="multiplied"):
        engine.answer(choices(1))
    assert engine.events == []


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (Request("loglikelihood", "a", ""), "no tokens"),
        (Request("loglikelihood", "", ""), "no tokens"),
        (Request("loglikelihood", "a", "b" * 200), "longer than the model's 128"),
        (Request("generate_until", "a", max_tokens=128), "cannot be generated"),
        (Request("generate_until", "a"), "256 new tokens cannot be generated"),
        (Request("generate_until", "", max_tokens=3), "empty"),
    ],
)
def test_requests_that_cannot_be_asked(request_, message):
    engine = TransformersEngine(loaded("llama", byte_level_tokenizer()), EnginePlan())
    with pytest.raises(TaskError, match=message):
        engine.plan([request_])


def test_settings_hold_what_changes_an_answer():
    model = loaded("llama", byte_level_tokenizer())
    settings = TransformersEngine(model, EnginePlan()).settings
    canonical_json(dict(settings))
    assert settings["dtype"] == "float32"
    assert settings["max_length"] == 128
    for change in ({"batch_tokens": 7}, {"max_length": 64}):
        assert TransformersEngine(model, EnginePlan(**change)).settings != settings
    with pytest.raises(PlanError, match="129"):
        TransformersEngine(model, EnginePlan(max_length=129))


def test_recurrent_models_are_refused():
    from transformers import MambaConfig, MambaForCausalLM

    tokenizer = byte_level_tokenizer()
    model = loaded("llama", tokenizer)
    model.module = MambaForCausalLM(
        MambaConfig(vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, state_size=4)
    ).eval()
    with pytest.raises(ParentError, match="Mamba"):
        TransformersEngine(model, EnginePlan(max_length=64))
