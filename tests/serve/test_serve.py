from __future__ import annotations

import json
import math
import socket
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
import torch

from evalq.errors import EvalqError, PlanError
from evalq.models.hf import TransformersEngine
from evalq.models.load import load_parent
from evalq.models.vocabulary import Vocabulary
from evalq.plan import EnginePlan
from evalq.schema import Request
from evalq.serve.app import ServeSettings, _sure
from evalq.serve.engine import Job, ServeEngine
from evalq.serve.server import free_socket, load_any, parse_mix, running

PLAN = EnginePlan(device="cpu")
PROMPT = "212 * 62 = "


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def model():
    return load_parent("builtin", PLAN)


@pytest.fixture(scope="module")
def engine(model):
    return ServeEngine(model)


@pytest.fixture(scope="module")
def url(engine):
    with running({"a": engine}, ServeSettings("m", {"a": 1.0})) as address:
        yield address


def post(url, path="completions", **body):
    return httpx.post(f"{url}/{path}", json=body, timeout=60)


def test_greedy_answers_are_those_of_the_engine_that_evaluates(url, model):
    prompts = [PROMPT, "Kenia in English: ", "871 * 595 = "]
    request = [Request("generate_until", p, max_tokens=24, until=("\n",)) for p in prompts]
    expected = [r.text for r in TransformersEngine(model, PLAN).answer(request)]
    with ThreadPoolExecutor(3) as pool:
        found = list(
            pool.map(
                lambda p: post(url, prompt=p, max_tokens=24, temperature=0, stop="\n").json(),
                prompts,
            )
        )
    assert [f["choices"][0]["text"] for f in found] == expected
    assert found[0]["choices"][0]["finish_reason"] == "stop"


def test_log_probabilities_are_those_of_a_plain_forward_pass(url, model):
    answer = post(
        url, prompt=PROMPT, max_tokens=6, temperature=0, logprobs=3, return_token_ids=True
    ).json()["choices"][0]
    ids = model.tokenizer(PROMPT)["input_ids"]
    assert answer["prompt_token_ids"] == ids
    whole = torch.tensor([[*ids, *answer["token_ids"]]])
    with torch.inference_mode():
        logp = torch.log_softmax(model.module(input_ids=whole).logits[0].float(), -1)
    vocabulary = Vocabulary(model.tokenizer)
    columns = answer["logprobs"]
    for i, token in enumerate(answer["token_ids"]):
        row = logp[len(ids) - 1 + i]
        assert columns["token_logprobs"][i] == pytest.approx(float(row[token]), abs=1e-4)
        best = {vocabulary.name(int(t)): float(v) for v, t in zip(*row.topk(3), strict=True)}
        assert columns["top_logprobs"][i] == pytest.approx(best, abs=1e-4)
    assert "".join(columns["tokens"]) == answer["text"]


def test_echo_gives_the_prompts_own_log_probabilities(url, model):
    answer = post(url, prompt=PROMPT, max_tokens=0, echo=True, logprobs=1).json()
    columns = answer["choices"][0]["logprobs"]
    ids = model.tokenizer(PROMPT)["input_ids"]
    with torch.inference_mode():
        logp = torch.log_softmax(model.module(input_ids=torch.tensor([ids])).logits[0], -1)
    expected = [float(logp[i, t]) for i, t in enumerate(ids[1:])]
    assert columns["token_logprobs"][0] is None
    assert columns["token_logprobs"][1:] == pytest.approx(expected, abs=1e-4)
    assert answer["usage"] == {
        "prompt_tokens": len(ids), "completion_tokens": 0, "total_tokens": len(ids),
    }  # fmt: skip


def test_a_stream_says_what_the_whole_answer_says(url):
    for extra in ({}, {"stop": ["+ 4"]}, {"temperature": 1.0, "seed": 5}):
        body = {"prompt": PROMPT, "max_tokens": 30, "temperature": 0, **extra}
        whole = post(url, **body).json()["choices"][0]
        pieces, reasons, usage = [], [], []
        with httpx.stream("POST", f"{url}/completions", json={**body, "stream": True}) as answer:
            assert answer.headers["content-type"].startswith("text/event-stream")
            lines = [line for line in answer.iter_lines() if line]
        assert lines[-1] == "data: [DONE]"
        for line in lines[:-1]:
            event = json.loads(line.removeprefix("data: "))
            pieces.append(event["choices"][0]["text"])
            reasons.append(event["choices"][0]["finish_reason"])
            usage.append(event.get("usage"))
        assert "".join(pieces) == whole["text"]
        assert reasons[-1] == whole["finish_reason"]
        assert usage[-1]["prompt_tokens"] > 0


def test_seeds_repeat_and_samples_follow_the_distribution(engine):
    ids = tuple(engine.model.tokenizer("Germany in German: ")["input_ids"])
    jobs = [Job(ids, 1, temperature=2.0, seed=s, logprobs=264) for s in range(3000)]
    first = [
        d.tokens[0] for start in range(0, 3000, 250) for d in engine.run(jobs[start : start + 250])
    ]
    again = [d.tokens[0].token for d in engine.run(jobs[:50])]
    assert again == [t.token for t in first[:50]]
    logp = dict(first[0].top)
    weights = {t: math.exp(v / 2) for t, v in logp.items()}
    total = sum(weights.values())
    counts = Counter(t.token for t in first)
    for token, weight in sorted(weights.items(), key=lambda p: -p[1])[:5]:
        p = weight / total
        assert abs(counts[token] / 3000 - p) < 5 * math.sqrt(p * (1 - p) / 3000) + 1e-9


def test_top_p_and_top_k_cut(engine):
    ids = tuple(engine.model.tokenizer("Germany in German: ")["input_ids"])
    plain = engine.run([Job(ids, 1, temperature=0, logprobs=3)])[0].tokens[0]
    for cut in ({"top_p": 1e-6}, {"top_k": 1}):
        jobs = [Job(ids, 1, temperature=5.0, seed=s, **cut) for s in range(40)]
        assert {d.tokens[0].token for d in engine.run(jobs)} == {plain.token}
    two = [Job(ids, 1, temperature=50.0, seed=s, top_k=2) for s in range(60)]
    assert {d.tokens[0].token for d in engine.run(two)} == {t for t, _ in plain.top[:2]}


def test_a_hidden_prompt_shows_in_usage_only_and_a_mix_follows_its_shares(engine):
    hidden = ServeSettings("m", {"a": 0.8, "b": 0.2}, system_prompt="Be brief.", seed=3)
    with running({"a": engine, "b": engine}, hidden) as address:
        body = post(address, prompt=PROMPT, max_tokens=2, temperature=0).json()
        assert body["usage"]["prompt_tokens"] == len(PROMPT) + len("Be brief.\n\n")
        assert "Be brief" not in json.dumps(body)
    from evalq.serve.app import create_app

    app = create_app({"a": engine, "b": engine}, hidden)
    picks = Counter(app.state.service.pick() for _ in range(2000))
    app.state.service.queue.close()
    assert 0.16 < picks["b"] / 2000 < 0.24


@pytest.mark.parametrize(
    ("body", "what"),
    [
        ({"prompt": PROMPT, "max_tokens": -1}, "max_tokens"),
        ({"prompt": PROMPT, "temperature": -1}, "temperature"),
        ({"prompt": PROMPT, "n": 2}, "n"),
        ({"prompt": ""}, "no tokens"),
        ({"prompt": [5, 100000]}, "vocabulary"),
        ({"prompt": "x" * 2000, "max_tokens": 4}, "1024"),
        ({"max_tokens": 4}, "prompt"),
    ],
)
def test_what_cannot_be_answered_is_refused_with_words(url, body, what):
    answer = post(url, **body)
    assert answer.status_code == 400
    assert what in answer.json()["error"]["message"]


def test_another_model_is_not_found_and_chat_needs_a_template(url):
    assert post(url, prompt=PROMPT, model="other").status_code == 404
    chat = post(url, "chat/completions", messages=[{"role": "user", "content": "hi"}])
    assert chat.status_code == 400
    assert "chat template" in chat.json()["error"]["message"]
    assert [m["id"] for m in httpx.get(f"{url}/models").json()["data"]] == ["m"]


def test_chat_follows_the_template(engine):
    tokenizer = engine.model.tokenizer
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}answer: "
    )
    try:
        settings = ServeSettings("m", {"a": 1.0}, system_prompt="S")
        with running({"a": engine}, settings) as address:
            body = post(
                address, "chat/completions", messages=[{"role": "user", "content": "12 * 12 ="}],
                max_tokens=5, temperature=0, logprobs=True, top_logprobs=2,
            ).json()  # fmt: skip
        plain = engine.run(
            [Job(tuple(tokenizer("system: S\nuser: 12 * 12 =\nanswer: ")["input_ids"]), 5, 0.0)]
        )[0]
    finally:
        tokenizer.chat_template = None
    assert body["choices"][0]["message"]["content"] == plain.text
    content = body["choices"][0]["logprobs"]["content"]
    assert [len(e["top_logprobs"]) for e in content] == [2] * len(content)
    assert b"".join(bytes(e["bytes"]) for e in content).decode() == plain.text


def test_an_engine_that_fails_is_an_error_of_the_server_and_the_next_request_is_answered(engine):
    with running({"a": engine}, ServeSettings("m", {"a": 1.0})) as address:
        run = engine.run
        engine.run = lambda jobs: (_ for _ in ()).throw(EvalqError("out of order"))
        try:
            broken = post(address, prompt=PROMPT, max_tokens=2)
        finally:
            engine.run = run
        assert (broken.status_code, broken.json()["error"]["message"]) == (500, "out of order")
        assert post(address, prompt=PROMPT, max_tokens=2).status_code == 200


def test_text_that_a_later_token_changes_is_held_back():
    assert _sure("abc\ufffd", ()) == "abc"
    assert _sure("abc#", ("##",)) == "abc"
    assert _sure("abc##d", ("##",)) == "abc"
    assert _sure("abc", ("##",)) == "abc"


@pytest.mark.parametrize("text", ["a", "a:2", "a:.5", "a:.5,a:.5", ":1", "a:x", "a:-.5,b:1.5"])
def test_a_mix_that_cannot_be_is_refused(text):
    with pytest.raises(PlanError, match="tier-mix"):
        parse_mix(text)


def test_a_taken_port_is_an_error_with_a_hint():
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(EvalqError, match="listen"):
        free_socket("127.0.0.1", taken.getsockname()[1])


def test_a_parent_is_loaded_by_name():
    assert load_any("builtin", PLAN).name == "builtin"
