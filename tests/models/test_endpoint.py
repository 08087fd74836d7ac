from __future__ import annotations

import logging
import signal
import time

import pytest

from evalq.endpoint import EndpointPlan, parse_endpoint
from evalq.errors import EndpointError, PlanError, TaskError
from evalq.models.endpoint import EndpointEngine
from evalq.plan import parse_plan
from evalq.schema import Request, canonical_json
from tests.models.server import Faulty, byte_tokens, fake_logprob, fake_tokens

QUICK = {"timeout": 0.3, "max_wait": 0.05, "concurrency": 6}
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


def opened(url: str, sleep=None, **options) -> EndpointEngine:
    return EndpointEngine(EndpointPlan(url=url, **options), sleep=sleep)


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
    engine = opened(server.url, **QUICK)
    requests = prompts(150)
    found = everything(engine, requests)
    assert [r.text for r in found] == [q.context[::-1] for q in requests]
    assert set(server.failed) == {"429", "500", "reset", "half", "silence", "nochoice"}
    assert set(server.served.values()) == {1} or sum(server.served.values()) >= len(requests)
    assert len(server.served) == len(requests)
    assert 1 < server.most_under_way <= QUICK["concurrency"] + server.failed["silence"]
    assert "repeated" in engine.events[0]
    engine.close()


def test_concurrency_is_bounded(serve):
    server = serve()
    engine = opened(server.url, concurrency=3)
    everything(engine, prompts(40))
    assert server.most_under_way <= 3
    assert engine.events == []


def test_retry_after_holds_back(serve):
    server = serve(faults=("429",), share=1.0)
    waits = []
    engine = opened(server.url, waits.append, attempts=4, max_wait=7)
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
    engine = opened(server.url)
    assert engine.model == "fake"
    assert engine.answer([request])[0].text == ""
    assert engine.answer([sampled])[0].text == "zyx"
    chat = opened(server.url + "/chat/completions", model="m")
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
    engine = opened(serve().url)
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
    engine = opened(serve(bos=bos).url)
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
    found = opened(serve(bos=True).url).answer([request])[0]
    assert found.logprob == pytest.approx(fake_logprob("abc", "") + fake_logprob("def", "abc"))
    with pytest.raises(EndpointError, match="no log-probability"):
        opened(serve().url).answer([request])


def test_what_an_endpoint_cannot_answer_is_refused_by_name(serve):
    server = serve(echo=False)
    engine = opened(server.url)
    assert not engine.supports("loglikelihood")
    with pytest.raises(TaskError, match="loglikelihood"):
        engine.answer([Request("loglikelihood", "a", "b")])
    chat = opened(server.url, api="chat")
    assert not chat.supports("loglikelihood_rolling")
    assert chat.supports("generate_until")


def test_the_key_comes_from_the_environment_and_shows_nowhere(serve, monkeypatch, caplog):
    caplog.set_level(logging.DEBUG)
    server = serve(key=KEY)
    monkeypatch.setenv("MY_KEY", KEY)
    engine = opened(server.url, key_variable="MY_KEY")
    assert engine.answer(prompts(1))[0].text
    assert KEY not in canonical_json(dict(engine.settings))
    monkeypatch.setenv("MY_KEY", KEY + "-wrong")
    wrong = opened(server.url, key_variable="MY_KEY")
    with pytest.raises(EndpointError) as caught:
        wrong.answer(prompts(1))
    assert "401" in caught.value.message
    assert KEY not in str(caught.value)
    assert "MY_KEY" in caught.value.hint
    assert KEY not in caplog.text


@pytest.mark.parametrize(
    "url",
    [
        "http://user:word@host/v1",
        "http://word@host/v1",
        "https://host/v1?key=word",
        "https://host/v1#word",
        "host:80",
        "ftp://host",
        "",
        "http://",
        "http://host:port/v1",
        "http://ho st/v1",
    ],
)
def test_urls_that_are_refused(url):
    with pytest.raises(PlanError) as caught:
        parse_plan({"variants": [{"endpoint": {"url": url, "model": "m"}}]})
    assert "word" not in str(caught.value)


def test_no_server(serve):
    engine = opened("http://127.0.0.1:9", model="m", attempts=3, max_wait=0.01)
    with pytest.raises(EndpointError, match=r"3 attempts.*ConnectError"):
        engine.answer(prompts(1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"modle": "x"}, "Did you mean 'model'"),
        ({"api": "chats"}, "completions.*chat"),
        ({"concurrency": 0}, "greater than or equal to 1"),
        ({"concurrency": 1.5}, "valid integer"),
        ({"timeout": "soon"}, "valid number"),
        ({"model": 3}, "valid string"),
        ({"url": "http://h/v1/completions", "api": "chat"}, "URL is of completions"),
        ({"body": {"temperature": 1}}, "not set by hand"),
        ({"body": {"API_KEY": "x"}}, "not set by hand"),
        ({"key_variable": "sk-word"}, "name of an environment variable"),
    ],
)
def test_options_are_checked(options, message):
    settings = {"url": "http://h:1/v1", **options}
    with pytest.raises(PlanError, match=message) as caught:
        parse_plan({"variants": [{"endpoint": settings}]})
    assert "sk-word" not in str(caught.value)


def test_an_endpoint_on_the_command_line():
    text = "http://h:1/v1/chat/completions/,model=/a/b.gguf,timeout=5"
    plan = EndpointPlan.model_validate(parse_endpoint(text))
    assert (plan.url, plan.api, plan.label, plan.timeout) == ("http://h:1/v1", "chat", "b.gguf", 5)
    assert EndpointPlan.model_validate(plan.model_dump()) == plan
    assert EndpointPlan(url="http://h:1").label == "h:1"
    for wrong in ("http://h:1,secretword", "http://h:1,model=a,model=secretword"):
        with pytest.raises(PlanError) as caught:
            parse_endpoint(wrong)
        assert "secretword" not in str(caught.value)


def test_patience_changes_neither_key_nor_plan():
    def plan(**options):
        return parse_plan({"variants": [{"endpoint": {"url": "http://h:1", **options}}]})

    assert plan(concurrency=1, timeout=3, attempts=2, max_wait=9, key_variable="K").hash == (
        plan().hash
    )
    assert len({plan().hash, plan(api="chat").hash, plan(body={"top_k": 1}).hash}) == 3


def test_answers_come_as_they_are_and_one_failure_keeps_the_others(serve):
    server = serve()
    server.refused = "prompt number 7"
    engine = opened(server.url, concurrency=2)
    found = {}

    def ask() -> None:
        for i, response in engine.stream(prompts(40)):
            found[i] = response.text

    with pytest.raises(EndpointError, match=r"400.*the prompt ends in 'prompt number 7'") as caught:
        ask()
    assert "longer context" in caught.value.hint
    assert {0, 1, 2, 3, 4} <= set(found)
    assert 7 not in found
    assert len(found) < 20
    assert all(text == f"prompt number {i}"[::-1] for i, text in found.items())


def test_an_interrupted_stream_stops(serve):
    server = serve(faults=("silence",), share=1.0)
    engine = opened(server.url, model="m", timeout=20, concurrency=4)
    began = time.monotonic()

    def interrupt(*_):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.5)
    try:
        with pytest.raises(KeyboardInterrupt):
            list(engine.stream(prompts(8)))
    finally:
        signal.signal(signal.SIGALRM, before)
    assert time.monotonic() - began < 10


def test_messages_go_to_a_chat_endpoint_and_their_text_to_completions(serve):
    server = serve()
    said = (("system", "Be brief."), ("user", "one"), ("assistant", "two"), ("user", "three"))
    request = Request("generate_until", "<one two three>", max_tokens=9, messages=said)
    opened(server.url, api="chat", body={"top_k": 1}).answer([request])
    opened(server.url, token_limit="max_completion_tokens", api="chat").answer([request])
    opened(server.url).answer([request])
    chat, limited, plain = server.bodies
    assert [(m["role"], m["content"]) for m in chat["messages"]] == list(said)
    assert chat["top_k"] == 1
    assert limited["max_completion_tokens"] == 9
    assert "max_tokens" not in limited
    assert plain["prompt"] == "<one two three>"
    begun = Request("generate_until", "x", messages=(("user", "q"), ("assistant", "The answer")))
    assert "begin the answer" in opened(server.url, api="chat").refuses(begun)
    assert opened(server.url).refuses(begun) == ""


def test_a_web_page_is_no_answer(serve):
    server = serve()
    server.page = b"<!DOCTYPE html><title>Sign in</title>"
    began = time.monotonic()
    with pytest.raises(EndpointError, match=r"web page.*Sign in") as caught:
        opened(server.url, model="m").answer(prompts(1))
    assert "/v1" in caught.value.hint
    assert server.requests == 3
    assert time.monotonic() - began < 10


def test_a_key_that_a_server_repeats_is_not_kept(serve, monkeypatch):
    server = serve()
    monkeypatch.setenv("EVALQ_API_KEY", KEY)
    engine = opened(server.url)
    found = engine.answer([Request("generate_until", f"say {KEY[::-1]}", max_tokens=99)])[0]
    assert found.text == "[key] yas"
    monkeypatch.setenv("EVALQ_API_KEY", "bad key\u00e9")
    with pytest.raises(EndpointError, match="no header can carry") as caught:
        opened(server.url)
    assert "bad" not in str(caught.value)


@pytest.mark.parametrize("lost", ["\ufffd", "bytes"])
def test_tokens_that_are_no_whole_characters(serve, lost):
    """Servers name them ``bytes:…`` or U+FFFD; both give the numbers that whole ones give."""
    server = serve(bos=True)
    server.cut = lost
    engine = opened(server.url)
    request = Request("loglikelihood", "日本語で:: ", "はい、そうです")
    found = engine.answer([request])[0]
    tokens = byte_tokens("日本語で:: はい、そうです")
    first = len(byte_tokens("日本語で::"))
    values = [fake_logprob(str(i), "") for i in range(len(tokens))][first:]
    assert found.logprob == pytest.approx(sum(values))
    assert found.tokens_out == len(values)
