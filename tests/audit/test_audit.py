"""Whole audits of a server on loopback whose tier is known."""

from __future__ import annotations

import copy
import json
from contextlib import ExitStack, contextmanager
from dataclasses import replace

import pytest
import torch

from evalq.audit.api import Endpoint, audit_endpoint, build_panel, open_audit, prepare
from evalq.audit.operate import OperateSettings, operate, replay, without
from evalq.audit.panel import BASE
from evalq.audit.result import check_expected, exit_code, judge
from evalq.audit.session import AuditSettings
from evalq.errors import EndpointError, PlanError, StoreError
from evalq.models.transport import TransportSettings
from evalq.report.audit import page, summary_lines
from evalq.serve.app import ServeSettings
from evalq.serve.engine import ServeEngine
from evalq.serve.server import load_any, running
from tests.audit.conftest import PLAN

SHORT = {"prompts": 24, "max_tokens": 32, "sampled": 8, "sampled_tokens": 16}
QUICK = TransportSettings(attempts=3, first_wait=0.01, max_wait=0.05, timeout=60)


@pytest.fixture(scope="module")
def engines(panel, artifacts):
    made = {name: ServeEngine(panel.model(name)) for name in (BASE, "int8", "int4", "int3")}
    made["g32"] = ServeEngine(load_any(str(artifacts["g32"]), PLAN))
    return made


@pytest.fixture(scope="module")
def audited(panel, calibration, engines, tmp_path_factory):
    """Serve shares of engines, audit that, and give back ``audit.json``."""

    def run(shares, seed=0, how=None, app=None, out=None, **changes):
        settings = AuditSettings(**{**SHORT, "seed": seed, **changes})
        how = how or {}
        used = {name: engines[name] for name in shares}
        with running(used, ServeSettings("m", shares, seed=seed, **how), app) as url:
            return audit_endpoint(
                Endpoint(url, "m", transport=QUICK), panel, calibration, settings,
                out or tmp_path_factory.mktemp("audit"),
            )  # fmt: skip

    return run


@pytest.fixture(scope="module")
def four(audited, tmp_path_factory):
    """An audit of int4, and its directory."""
    out = tmp_path_factory.mktemp("four")
    return audited({"int4": 1.0}, out=out, mode="tokens"), out


@pytest.mark.parametrize(("name", "mode"), [("int4", "auto"), ("int3", "tokens")])
def test_a_tier_is_named(audited, name, mode):
    found = audited({name: 1.0}, mode=mode)
    assert (found["verdict"], found["tier"]) == (name, name)
    assert found["posterior"][name] >= 0.99
    assert found["log_e"] > 5.7
    assert found["tokens"] > 0
    assert found["requests"] == len(found["rows"]) + 3  # found out by three requests


def test_the_parent_and_eight_bits_are_not_accused(audited):
    for name, mode in ((BASE, "auto"), ("int8", "tokens")):
        found = audited({name: 1.0}, seed=3, mode=mode)
        assert found["verdict"] == "PARENT-LIKE"
        assert found["tier"] is None
        assert any("int8" in w for w in found["warnings"])


def test_the_parent_in_another_arithmetic_is_not_accused(panel, calibration, tmp_path):
    engine = ServeEngine(load_any("builtin", PLAN.model_copy(update={"dtype": "bfloat16"})))
    with running({"p": engine}, ServeSettings("m", {"p": 1.0}, batch=1)) as url:
        found = audit_endpoint(
            Endpoint(url, "m", transport=QUICK), panel, calibration, AuditSettings(**SHORT),
            tmp_path,
        )  # fmt: skip
    assert found["verdict"] == "PARENT-LIKE"


def test_an_unlisted_recipe_is_unlisted(audited):
    found = audited({"g32": 1.0}, mode="tokens")
    assert found["verdict"] == "UNLISTED"
    assert found["log_e_against"]["int4"] > 5.7


def test_a_mixture_is_named_with_an_interval(audited):
    found = audited({BASE: 0.5, "int3": 0.5}, seed=5, mode="tokens")
    assert found["verdict"] == "MIXED"
    share = found["share"]
    assert {share["of"], share["beside"]} == {"int3", BASE}
    assert share["low"] < 0.5 < share["high"]


def test_a_hidden_prompt_is_not_called_quantized(audited):
    hidden = "You are a helpful assistant."
    told = audited({BASE: 1.0}, seed=6, how={"system_prompt": hidden})
    assert told["verdict"] == "NOT_COMPARABLE"
    assert "hidden" in told["reasons"][0]
    quiet = audited({BASE: 1.0}, seed=7, how={"system_prompt": hidden, "usage": False})
    assert quiet["verdict"] in ("NOT_COMPARABLE", "UNLISTED")
    # Without log-probabilities there may be too little to say so, and no tier is named either.
    for seed in (7, 9):
        how = {"system_prompt": hidden, "usage": False}
        blind = audited({BASE: 1.0}, seed=seed, how=how, mode="tokens")
        assert blind["verdict"] in ("NOT_COMPARABLE", "UNLISTED", "UNDERPOWERED")


def test_a_budget_ends_it_and_a_larger_one_goes_on(audited, tmp_path):
    out = tmp_path / "budget"
    small = audited({"int4": 1.0}, out=out, mode="tokens", max_tokens_total=1200)
    assert small["tokens"] <= 1200
    assert small["stopped"] == "the budget is spent"
    lines = (out / "journal.jsonl").read_text().splitlines()
    # Another server on another port is another endpoint: the journal is refused.
    with pytest.raises(StoreError, match="another audit"):
        audited({"int4": 1.0}, out=out, mode="tokens")
    assert (out / "journal.jsonl").read_text().splitlines() == lines


def test_resuming_asks_nothing_twice_and_ends_alike(panel, calibration, engines, tmp_path):
    settings = AuditSettings(**SHORT, seed=11, mode="tokens")
    engine = engines["int4"]
    asked = []
    run = engine.run
    engine.run = lambda jobs: asked.extend(j.prompt for j in jobs) or run(jobs)
    try:
        with running({"a": engine}, ServeSettings("m", {"a": 1.0}, batch=1)) as url:
            endpoint = Endpoint(url, "m", transport=QUICK)
            first = audit_endpoint(endpoint, panel, calibration, settings, tmp_path / "a")
            whole = len(asked)
            journal = tmp_path / "a" / "journal.jsonl"
            lines = journal.read_bytes().splitlines(keepends=True)
            journal.write_bytes(b"".join(lines[:9]) + lines[9][:40])  # torn by a kill
            again = audit_endpoint(endpoint, panel, calibration, settings, tmp_path / "a")
    finally:
        engine.run = run
    # The first line names the audit, the second the capabilities; seven answers were kept.
    assert len(asked) - whole == first["requests"] - 3 - 7
    for key in ("verdict", "tokens", "requests", "log_e", "rows", "timeline"):
        assert again[key] == first[key], key


def test_text_alone_tells_a_broken_model_from_the_parent(audited):
    found = audited({"int3": 1.0}, mode="text", sampled=128)
    assert found["kind"] in ("TIER", "UNDERPOWERED")
    assert found["tier"] in ("int3", None)
    honest = audited({BASE: 1.0}, seed=1, mode="text", sampled=128)
    assert honest["kind"] in ("PARENT-LIKE", "UNDERPOWERED")


def test_expectations(four, calibration):
    found = four[0]
    for expect, met, code in (
        ("int4", True, 0),
        ("int3", True, 0),
        ("int8", False, 1),
        ("parent", False, 1),
    ):
        judged = judge(found, calibration, expect)
        assert (judged.met, exit_code(found, judged)) == (met, code), expect
    vague = {**found, "kind": "UNDERPOWERED", "tier": None}
    assert exit_code(vague, judge(vague, calibration, "int4")) == 3
    with pytest.raises(PlanError, match="int99"):
        check_expected("int99", calibration)


def test_a_stored_audit_opens_as_frames(four, tmp_path):
    opened = open_audit(four[1])
    assert opened.verdict == "int4"
    assert list(opened.posterior["name"]) == [BASE, "int8", "int4", "int3"]
    assert opened.posterior["posterior"].sum() == pytest.approx(1)
    assert opened.timeline["tokens"].is_monotonic_increasing
    assert len(opened.requests) == len(opened.result["rows"])
    assert opened.kl.loc["int3", "parent"] > opened.kl.loc["int4", "parent"] > 0
    assert set(opened.ladder["kind"]) == {"benign", "tier"}
    with pytest.raises(StoreError, match="no audit"):
        open_audit(tmp_path / "nowhere")


def test_the_page_escapes_what_the_endpoint_said(four):
    found = copy.deepcopy(four[0])
    evil = "<script>alert(1)</script>\u202e\x1b[31m"
    found["examples"][0]["text"] = evil
    found["warnings"].append(evil)
    found["about"]["model"] = evil
    html = page(found)
    assert "<script" not in html
    assert "\u202e" not in html
    assert "\x1b" not in html
    assert "&lt;script&gt;" in html
    assert "http-equiv" in html
    assert not [line for line in summary_lines(found) if "\x1b" in line]


def test_a_stored_calibration_is_used_again_and_belongs_to_its_tiers(
    panel, calibration, artifacts, tmp_path
):
    path = tmp_path / "c.json"
    calibration.save(path)
    again = prepare(panel, calibration.settings, path)
    assert again == calibration
    assert again.hash == calibration.hash
    other = build_panel("builtin", [str(artifacts["int4"])], PLAN)
    with pytest.raises(PlanError, match="made for the tiers"):
        prepare(other, calibration.settings, path)
    swapped = build_panel(
        "builtin",
        [f"int8={artifacts['int4']}", *(str(artifacts[n]) for n in ("int4", "int3"))],
        PLAN,
    )
    with pytest.raises(PlanError, match="int8 is not the one"):
        prepare(swapped, calibration.settings, path)
    path.write_text(json.dumps({**calibration.as_dict(), "version": 99}))
    with pytest.raises(StoreError, match="version 99"):
        prepare(panel, calibration.settings, path)


def test_the_floor_orders_the_tiers(calibration):
    assert 1e-3 < calibration.floor < 0.3
    assert "int8" in calibration.near
    assert "int3" not in calibration.near
    ladder = {m.name: m for m in calibration.ladder}
    assert ladder["int8"].kl < ladder["int4"].kl < ladder["int3"].kl
    assert ladder["int8"].sigma < ladder["int4"].sigma < ladder["int3"].sigma
    assert calibration.expected_tokens("int8", 0.01) is None
    four, three = (calibration.expected_tokens(n, 0.01) for n in ("int4", "int3"))
    assert four >= three > 0
    assert without(calibration, "bfloat16").floor < calibration.floor


def test_operating_characteristics_resume(panel, calibration, artifacts, tmp_path):
    others = build_panel("builtin", [f"g32={artifacts['g32']}"], PLAN)
    settings = OperateSettings(
        audits=1, null=10, cases=False, left_out="bfloat16", mode="tokens", prompts=16,
        max_tokens=32, sampled=8, sampled_tokens=8,
    )  # fmt: skip
    # The way left out is the only one with noise: the null is accused, and is seen to be.
    with ExitStack() as stack:
        stack.enter_context(_patched_ways())
        table = operate(panel, others, calibration, settings, tmp_path)
        log = (tmp_path / "audits.jsonl").read_text()
        again = operate(panel, others, calibration, settings, tmp_path)
    assert (tmp_path / "audits.jsonl").read_text() == log
    assert again.audits == table.audits
    # A line torn by a kill: that audit is done again, and no other is lost.
    (tmp_path / "audits.jsonl").write_text(log[:-20])
    with _patched_ways():
        for _ in range(2):
            alone = replace(settings, null=0)
            assert operate(panel, others, calibration, alone, tmp_path).audits == table.audits
    verdicts = {a["endpoint"]: a["verdict"] for a in table.audits}
    assert verdicts["int3"] == "int3"
    assert verdicts["parent"] == "PARENT-LIKE"
    assert verdicts["unlisted g32"] == "UNLISTED"
    assert len(table.null) == 10


def test_endpoints_compute_in_the_dtype_that_is_asked_for(
    panel, calibration, tmp_path, monkeypatch
):
    from evalq.audit import operate as module

    seen = []
    inner = module.ServeEngine

    def engine(model):
        seen.append(next(model.module.parameters()).dtype)
        return inner(model)

    monkeypatch.setattr(module, "ServeEngine", engine)
    settings = OperateSettings(
        audits=1, null=0, cases=False, mode="tokens", prompts=16, max_tokens=32, sampled=8,
        sampled_tokens=8, dtype="bfloat16",
    )  # fmt: skip
    table = operate(panel, build_panel("builtin", [], PLAN), calibration, settings, tmp_path)
    assert set(seen) == {torch.bfloat16}
    verdicts = {a["endpoint"]: a["verdict"] for a in table.audits}
    assert verdicts["int3"] == "int3"
    assert verdicts["parent"] == "PARENT-LIKE"
    assert table.names == ("parent", "int8", "int4", "int3")
    with pytest.raises(PlanError):
        operate(panel, build_panel("builtin", [], PLAN), calibration,
                replace(settings, dtype="float32"), tmp_path)  # fmt: skip


@contextmanager
def _patched_ways():
    from evalq.audit import operate as module
    from tests.audit.conftest import WAYS

    before = module.BENIGN
    module.BENIGN = WAYS
    try:
        yield
    finally:
        module.BENIGN = before


def test_what_is_not_an_endpoint_is_an_error(panel, calibration, tmp_path):
    with pytest.raises(EndpointError):
        audit_endpoint(
            Endpoint("http://127.0.0.1:9/v1", "m", transport=QUICK), panel, calibration,
            AuditSettings(**SHORT), tmp_path,
        )  # fmt: skip


def test_replay_needs_no_endpoint(calibration):
    decision, tokens, asked = replay(
        {"greedy": [], "sampled": []}, calibration, OperateSettings(), 0
    )
    assert (decision.verdict, tokens, asked) == ("UNDERPOWERED", 0, 0)
