from __future__ import annotations

import logging
import time

import pytest

from evalq.errors import EndpointError, PlanError, TaskError
from evalq.models.endpoint import EndpointEngine, EndpointOptions, endpoint_options
from evalq.schema import Request, canonical_json
from tests.models.server import Faulty, fake_logprob, fake_tokens

QUICK = EndpointOptions(timeout=0.3, max_wait=0.05, concurrency=6)
KEY = "sk-very-secret-0123"


@pytest.fixture
def serve():
    started = []

    def start(*args, **kwargs):
        started.append(Faulty(*args, **kwargs))
        return started[-1]

    yield start
    for server in started:
        server.shutdown()
        server.server_close()


def prompts(count: int) -> list[Request]:
    return [Request("generate_until", f"prompt number {i}", max_tokens=100) for i in range(count)]


def everything(engine: EndpointEngine, requests: list[Request]):
    out = {}
    for batch in engine.plan(requests):
        for i, r in zip(batch, engine.answer([requests[i] for i in batch]), strict=True):
            assert i not in out
            out[i] = r
    return [out[i] for i in range(len(requests))]


def test_a_faulty_server_answers_every_item_exactly_once(serve):
    server = serve(faults=("429", "500", "reset", "half", "silence", "nochoice"), share=0.3)
    engine = EndpointEngine(server.url, QUICK)
    requests = prompts(150)
    found = everything(engine, requests)
    assert [r.text for r in found] == [q.context[::-1] for q in requests]
    assert set(server.failed) == {"429", "500", "reset", "half", "silence", "nochoice"}
    assert set(server.served.values()) == {1} or sum(server.served.values()) >= len(requests)
    assert len(server.served) == len(requests)
    assert 1 < server.most_under_way <= QUICK.concurrency + server.failed["silence"]
    assert "repeated" in engine.events[0]
    engine.close()


def test_concurrency_is_bounded(serve):
    server = serve()
    engine = EndpointEngine(server.url, EndpointOptions(concurrency=3))
    everything(engine, prompts(40))
    assert server.most_under_way <= 3
    assert engine.events == []


def test_retry_after_holds_back(serve):
    server = serve(faults=("429",), share=1.0)
    waits = []
    engine = EndpointEngine(server.url, EndpointOptions(attempts=4, max_wait=7), sleep=waits.append)
    engine._transport._wait_for_turn = lambda: waits.append(
        engine._transport._not_before - time.monotonic()
    )
    with pytest.raises(EndpointError, match="429") as caught:
        engine.answer(prompts(1))
    assert "4 attempts" in caught.value.message
    held = waits[1::2]
    assert all(w > -1 for w in held)
    pauses = [w for w in waits[1:] if w > 0.1]
    assert pauses == sorted(pauses)
    assert max(pauses) <= 7


def test_chat_and_completions_send_what_they_should(serve):
    server = serve()
    stops = ("\n", "a", "b", "c", "d")
    request = Request("generate_until", "xyz|dab", until=stops, max_tokens=9)
    sampled = Request("generate_until", "xyz", max_tokens=9, temperature=0.7, seed=5)
    engine = EndpointEngine(server.url)
    assert engine.model == "fake"
    assert engine.answer([request])[0].text == ""
    assert engine.answer([sampled])[0].text == "zyx"
    chat = EndpointEngine(server.url + "/chat/completions", EndpointOptions(model="m"))
    assert chat.answer([request])[0].text == "s"
    first, second, third = server.bodies
    assert first == {
        "model": "fake",
        "prompt": "xyz|dab",
        "max_tokens": 9,
        "temperature": 0.0,
        "stop": ["\n", "a", "b", "c"],
    }
    assert (second["temperature"], second["seed"]) == (0.7, 5)
    assert third["messages"] == [{"role": "user", "content": "xyz|dab"}]
    assert third["model"] == "m"
    assert chat.settings != engine.settings
    assert chat.identity != engine.identity
    canonical_json(dict(engine.settings))


def test_limits_and_counts(serve):
    engine = EndpointEngine(serve().url)
    cut, whole, stopped = engine.answer(
        [
            Request("generate_until", "abcdef", max_tokens=3),
            Request("generate_until", "abc", max_tokens=3),
            Request("generate_until", "abcdef", max_tokens=3, until=("1", "2", "3", "4", "e")),
        ]
    )
    assert (cut.text, cut.truncated) == ("fed", True)
    assert (whole.truncated, whole.tokens_in, whole.tokens_out) == (False, 3, 2)
    assert (stopped.text, stopped.truncated) == ("f", False)


@pytest.mark.parametrize("bos", [False, True])
def test_loglikelihoods_are_sums_over_the_prompts_own_tokens(serve, bos):
    engine = EndpointEngine(serve(bos=bos).url)
    assert engine.supports("loglikelihood")
    context, continuation = "abcdefgh ", "ij klmn"
    found = engine.answer([Request("loglikelihood", context, continuation)])[0]
    tokens = fake_tokens(context + continuation)
    # The trailing space belongs to the continuation, and the token "gh " reaches over the border.
    scored = [(t, "".join(tokens[:i])) for i, t in enumerate(tokens) if 3 * i + len(t) > 8]
    values = [fake_logprob(t, before) for t, before in scored]
    assert found.logprob == pytest.approx(sum(values))
    assert found.tokens_out == len(values)
    assert found.greedy == all(v >= -1.0 for v in values)
    whole = engine.answer([Request("loglikelihood_rolling", "abcdefg")])[0]
    every = [
        fake_logprob(t, "".join(fake_tokens("abcdefg")[:i]))
        for i, t in enumerate(fake_tokens("abcdefg"))
    ]
    assert whole.logprob == pytest.approx(sum(every if bos else every[1:]))


def test_a_choice_without_a_prompt_needs_a_bos(serve):
    request = Request("loglikelihood", "", "abcdef")
    found = EndpointEngine(serve(bos=True).url).answer([request])[0]
    assert found.logprob == pytest.approx(fake_logprob("abc", "") + fake_logprob("def", "abc"))
    with pytest.raises(EndpointError, match="no log-probability"):
        EndpointEngine(serve().url).answer([request])


def test_what_an_endpoint_cannot_answer_is_refused_by_name(serve):
    server = serve(echo=False)
    engine = EndpointEngine(server.url)
    assert not engine.supports("loglikelihood")
    with pytest.raises(TaskError, match="loglikelihood"):
        engine.answer([Request("loglikelihood", "a", "b")])
    chat = EndpointEngine(server.url, EndpointOptions(api="chat"))
    assert not chat.supports("loglikelihood_rolling")
    assert chat.supports("generate_until")


def test_the_key_comes_from_the_environment_and_shows_nowhere(serve, monkeypatch, caplog):
    caplog.set_level(logging.DEBUG)
    server = serve(key=KEY)
    monkeypatch.setenv("MY_KEY", KEY)
    engine = EndpointEngine(server.url, EndpointOptions(key_variable="MY_KEY"))
    assert engine.answer(prompts(1))[0].text
    assert KEY not in canonical_json(dict(engine.settings))
    monkeypatch.setenv("MY_KEY", KEY + "-wrong")
    wrong = EndpointEngine(server.url, EndpointOptions(key_variable="MY_KEY"))
    with pytest.raises(EndpointError) as caught:
        wrong.answer(prompts(1))
    assert "401" in caught.value.message
    assert KEY not in str(caught.value)
    assert "MY_KEY" in caught.value.hint
    assert KEY not in caplog.text


@pytest.mark.parametrize(
    "url", ["http://user:word@host/v1", "host:80", "ftp://host", "", "http://"]
)
def test_urls_that_are_refused(url):
    with pytest.raises(EndpointError) as caught:
        EndpointEngine(url, EndpointOptions(model="m"))
    assert "word" not in str(caught.value)


def test_no_server(serve):
    engine = EndpointEngine(
        "http://127.0.0.1:9", EndpointOptions(model="m", attempts=3, max_wait=0.01)
    )
    with pytest.raises(EndpointError, match=r"3 attempts.*ConnectError"):
        engine.answer(prompts(1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"modle": "x"}, "modle"),
        ({"api": "chats"}, "completions or chat"),
        ({"concurrency": 0}, "not positive"),
        ({"concurrency": 1.5}, "no number"),
        ({"timeout": "soon"}, "no number"),
        ({"model": 3}, "no text"),
    ],
)
def test_options_are_checked(options, message):
    with pytest.raises(PlanError, match=message):
        endpoint_options(options)
