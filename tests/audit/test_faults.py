"""Endpoints that fail, change or leave things out: no crash, no accusation, no key in a file."""

from __future__ import annotations

import itertools
import json

import pytest
import torch
from fastapi import Request
from fastapi.responses import HTMLResponse, JSONResponse, Response

from evalq.audit.api import Endpoint, audit_endpoint
from evalq.audit.panel import BASE
from evalq.audit.session import AuditSettings
from evalq.errors import EndpointError
from evalq.models.load import load_parent
from evalq.models.transport import TransportSettings
from evalq.report.audit import render_audit
from evalq.serve.app import ServeSettings, create_app
from evalq.serve.engine import ServeEngine
from evalq.serve.server import running
from tests.audit.conftest import PLAN

SETTINGS = AuditSettings(prompts=16, max_tokens=32, sampled=8, sampled_tokens=8)
QUICK = TransportSettings(attempts=4, first_wait=0.01, max_wait=0.05, timeout=60)
ACCUSES = ("TIER", "MIXED", "UNLISTED")


@pytest.fixture(scope="module")
def engine(panel):
    return ServeEngine(panel.model(BASE))


@pytest.fixture
def audit_with(panel, calibration, engine, tmp_path):
    """Audit the parent behind a middleware ``change(number, request, call) -> response``."""

    def run(change, settings=SETTINGS, engines=None, shares=None, name="a"):
        how = ServeSettings("m", shares or {"a": 1.0})
        engines = engines or {"a": engine}
        app = create_app(engines, how)
        numbers = itertools.count()

        @app.middleware("http")
        async def _faulty(request: Request, call_next):
            if request.method == "GET":
                return await call_next(request)
            return await change(next(numbers), request, call_next)

        with running(engines, how, app) as url:
            endpoint = Endpoint(url, "m", transport=QUICK)
            return audit_endpoint(endpoint, panel, calibration, settings, tmp_path / name)

    return run


async def body_of(response) -> bytes:
    return b"".join([part async for part in response.body_iterator])


async def edited(request, call_next, edit) -> Response:
    response = await call_next(request)
    raw = await body_of(response)
    if response.status_code != 200:
        return Response(raw, response.status_code, media_type="application/json")
    data = json.loads(raw)
    edit(data)
    return JSONResponse(data)


def test_every_third_answer_fails_in_another_way(audit_with):
    seen = []

    async def change(number, request, call_next):
        kind = ("429", "500", "html", "half", "cut", "list")[(number // 3) % 6]
        if number % 3:
            return await call_next(request)
        seen.append(kind)
        if kind == "429":
            return JSONResponse({"error": "slow down"}, 429, headers={"Retry-After": "0"})
        if kind == "500":
            return HTMLResponse("<h1>oops</h1>", 500)
        if kind == "html":
            return HTMLResponse("<html><body>please log in</body></html>")
        if kind == "list":
            return JSONResponse([1, 2, 3])
        raw = await body_of(await call_next(request))
        if kind == "half":
            return Response(raw[: len(raw) // 2], media_type="application/json")
        # Fewer bytes than announced: the connection breaks off.
        return Response(raw[:20], headers={"Content-Length": str(len(raw))})

    found = audit_with(change)
    assert set(seen) == {"429", "500", "html", "half", "cut", "list"}
    assert found["verdict"] == "PARENT-LIKE"
    assert any("repeated" in w for w in found["warnings"])
    assert len(found["rows"]) == 24


def test_an_endpoint_that_only_returns_html_is_an_error(audit_with):
    async def change(number, request, call_next):
        return HTMLResponse("<html>hello</html>")

    with pytest.raises(EndpointError, match=r"web page.*hello"):
        audit_with(change)


def test_an_endpoint_that_stops_midway_is_not_judged_and_nothing_is_lost(audit_with, tmp_path):
    async def change(number, request, call_next):
        if number > 12:
            return JSONResponse({"error": "gone"}, 503)
        return await call_next(request)

    found = audit_with(change)
    assert found["kind"] == "UNDERPOWERED"
    assert found["stopped"] == "the endpoint stopped answering"
    lines = (tmp_path / "a" / "journal.jsonl").read_text().splitlines()
    assert len(lines) > 9


def test_without_usage_ids_and_log_probabilities_texts_are_tokenized_again(audit_with):
    def edit(data):
        del data["usage"]
        choice = data["choices"][0]
        choice["logprobs"] = None
        choice.pop("token_ids", None)
        choice.pop("prompt_token_ids", None)

    async def change(number, request, call_next):
        return await edited(request, call_next, edit)

    found = audit_with(change)
    assert found["verdict"] == "PARENT-LIKE"
    told = " ".join(found["warnings"])
    assert "tokenized again" in told
    assert "counts no tokens" in told
    assert found["capabilities"]["usage"] is False
    assert found["tokens"] > 500


@pytest.mark.parametrize("kind", ["one", "zero", "short", "nan"])
def test_log_probabilities_that_say_nothing_do_not_accuse(audit_with, kind):
    def edit(data):
        columns = data["choices"][0]["logprobs"]
        if columns is None:
            return
        if kind == "one":
            columns["top_logprobs"] = [
                {n: v} for n, v in zip(columns["tokens"], columns["token_logprobs"], strict=True)
            ]
        elif kind == "zero":  # those of temperature 0
            # The first token of an echo has none.
            columns["top_logprobs"] = [
                top and {n: (0.0 if n == t else -1e4 - i) for i, n in enumerate(top)}
                for t, top in zip(columns["tokens"], columns["top_logprobs"], strict=True)
            ]
        elif kind == "short":
            for name in ("tokens", "token_logprobs", "top_logprobs"):
                columns[name] = columns[name][:1]
        else:
            tops = columns["top_logprobs"]
            columns["top_logprobs"] = [top and dict.fromkeys(top, "nan") for top in tops]

    async def change(number, request, call_next):
        return await edited(request, call_next, edit)

    found = audit_with(change)
    assert found["verdict"] == "PARENT-LIKE", found["reasons"]


def test_an_endpoint_that_fails_at_what_need_not_work_is_audited(audit_with):
    async def change(number, request, call_next):
        body = await request.json()
        if body.get("echo") or not isinstance(body["prompt"], str):
            return HTMLResponse("<h1>oops</h1>", 500)
        return await call_next(request)

    found = audit_with(change)
    assert found["verdict"] == "PARENT-LIKE"
    assert found["capabilities"]["echo"] is False
    assert found["capabilities"]["token_prompts"] is False


def test_samples_where_greedy_was_asked_cannot_be_compared(audit_with, engine):
    run = engine.run

    def sampled(jobs):
        for job in jobs:
            job.temperature = 1.0
        return run(jobs)

    async def change(number, request, call_next):
        return await call_next(request)

    engine.run = sampled
    try:
        found = audit_with(change)
    finally:
        engine.run = run
    assert found["kind"] == "NOT_COMPARABLE"
    assert "temperature" in found["reasons"][0]


def test_a_sampler_that_is_cut_is_left_out(audit_with, engine):
    run = engine.run

    def cut(jobs):
        for job in jobs:
            job.top_p = 0.3
        return run(jobs)

    async def change(number, request, call_next):
        return await call_next(request)

    engine.run = cut
    settings = AuditSettings(prompts=16, max_tokens=32, sampled=24, sampled_tokens=64, block=24)
    try:
        found = audit_with(change, settings)
    finally:
        engine.run = run
    assert found["verdict"] == "PARENT-LIKE"
    assert any("sampler" in w for w in found["warnings"])


def test_a_model_that_changes_midway_is_mixed_and_said_so(audit_with, panel, engine):
    three = ServeEngine(panel.model("int3"))
    run = engine.run
    asked = itertools.count()

    # Three requests find out what the endpoint does; from the 13th prompt on int3 answers. One
    # batch holds several requests, so requests are counted, not batches.
    def changing(jobs):
        return [(run if next(asked) < 15 else three.run)([job])[0] for job in jobs]

    async def change(number, request, call_next):
        return await call_next(request)

    engine.run = changing
    settings = AuditSettings(prompts=24, max_tokens=32, sampled=0, mode="tokens")
    how = {"a": engine}
    try:
        found = audit_with(change, settings, how)
    finally:
        engine.run = run
    assert found["kind"] == "MIXED"
    assert {found["share"]["of"], found["share"]["beside"]} == {BASE, "int3"}
    assert any("changed on the way" in w for w in found["warnings"])


def test_other_weights_under_the_same_name_are_no_tier(audit_with):
    stranger = load_parent("builtin", PLAN)
    generator = torch.Generator().manual_seed(0)
    for weight in [p for p in stranger.module.parameters() if p.dim() == 2][4:8]:
        weight.add_(torch.randn(weight.shape, generator=generator) * weight.std() * 0.5)

    async def change(number, request, call_next):
        return await call_next(request)

    found = audit_with(change, engines={"a": ServeEngine(stranger)})
    assert found["kind"] in ("UNLISTED", "NOT_COMPARABLE")
    assert found["tier"] is None


def test_the_key_is_in_no_file_and_in_no_message(audit_with, tmp_path, monkeypatch):
    key = "sk-very-secret-4711"
    monkeypatch.setenv("EVALQ_API_KEY", key)
    given = []

    async def change(number, request, call_next):
        given.append(request.headers.get("authorization"))

        def edit(data):
            # A server that repeats what it was sent, wherever it can.
            data["system_fingerprint"] = request.headers["authorization"]
            data["choices"][0]["text"] += request.headers["authorization"]
            data["choices"][0]["logprobs"] = None
            data["choices"][0].pop("token_ids", None)

        return await edited(request, call_next, edit)

    found = audit_with(change)
    render_audit(tmp_path / "a", found)
    assert set(given) == {f"Bearer {key}"}
    files = [p for p in tmp_path.rglob("*") if p.is_file()]
    assert len(files) >= 3
    assert not [p for p in files if key.encode() in p.read_bytes()]

    async def refuse(number, request, call_next):
        return JSONResponse({"error": f"bad key {request.headers['authorization']}"}, 401)

    # A second server listens on another port: an audit of its own.
    with pytest.raises(EndpointError, match="refuses") as caught:
        audit_with(refuse, name="refused")
    assert key not in str(caught.value)
    assert key not in str(caught.value.hint)
    files = [p for p in tmp_path.rglob("*") if p.is_file()]
    assert not [p for p in files if key.encode() in p.read_bytes()]
