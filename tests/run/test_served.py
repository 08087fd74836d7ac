"""Runs with endpoints over the real command line: a faulty server, kills, refusals, secrets."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from evalq.compare.runs import load_run
from evalq.errors import EndpointError, PlanError
from evalq.gate import gate, load_policy
from evalq.plan import parse_plan
from evalq.report.frames import collect
from evalq.report.rows import artifacts
from evalq.report.serving import cost_rows
from evalq.report.summary import variant_table
from evalq.run import resolve_plan, run_plan
from tests.models.server import Faulty

KEY = "sk-very-secret-0123456789"
ITEMS = 120
FAULTS = ("429", "500", "reset", "half", "silence")

Start = Callable[..., Faulty]


@pytest.fixture
def serve() -> Iterator[Start]:
    started: list[Faulty] = []

    def start(*args: Any, **kwargs: Any) -> Faulty:
        started.append(Faulty(*args, **kwargs))
        return started[-1]

    yield start
    for server in started:
        server.shutdown()
        server.server_close()


@pytest.fixture(scope="module")
def items(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Questions whose right answer is the fake model's: the prompt backwards."""
    path = tmp_path_factory.mktemp("items") / "items.jsonl"
    rows = []
    for i in range(ITEMS):
        prompt = f"question {i}"
        target = prompt[::-1] if i % 3 else "something else"
        rows.append({"prompt": prompt, "target": target, "max_tokens": 40})
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


def cli(*words: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "evalq.cli.main", *words],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **env},
        timeout=600,
    )


def contents(directory: Path) -> dict[Path, bytes]:
    return {p: p.read_bytes() for p in directory.rglob("*") if p.is_file()}


def asked(server: Faulty) -> dict[str, int]:
    """How often each item's prompt was answered, by prompt."""
    found: dict[str, int] = {}
    for body, times in server.served.items():
        prompt = json.loads(body).get("prompt") or json.loads(body)["messages"][-1]["content"]
        if prompt.startswith("question"):
            found[prompt] = found.get(prompt, 0) + times
    return found


def stored(out: Path) -> int:
    with sqlite3.connect(f"file:{out / 'journal.sqlite'}?mode=ro", uri=True) as journal:
        return int(journal.execute("SELECT COUNT(*) FROM responses").fetchone()[0])


def every_item_once(out: Path, variant: str) -> None:
    run = load_run(out)
    mine = run.items[run.items["variant"] == variant]
    assert sorted(mine["item_id"].astype(str)) == sorted(f"line-{i + 1}" for i in range(ITEMS))
    for row in mine.itertuples():
        assert row.response == str(row.prompt)[::-1]


def run_against(server: Faulty, items: Path, out: Path, more: str, *words: str) -> Any:
    where = f"endpoint={server.url},model=fake,max_wait=0.05{more}"
    return cli(
        "run", "--parent", where, "--variant", f"{where},api=chat,name=chatty",
        "--workload", str(items), "--out", str(out), "-q", *words,
        EVALQ_API_KEY=KEY,
    )  # fmt: skip


def test_a_faulty_endpoint_answers_every_item_exactly_once(
    serve: Start, items: Path, tmp_path: Path
) -> None:
    server = serve(faults=FAULTS, share=0.3, key=KEY)
    server.silence = 2.0
    out = tmp_path / "run"
    done = run_against(server, items, out, ",timeout=0.4")
    assert done.returncode == 0, done.stderr
    assert set(server.failed) == set(FAULTS)
    every_item_once(out, "parent")
    info = json.loads((out / "run.json").read_text())
    rows = {v["name"]: v for v in info["variants"]}
    assert any("were repeated" in w for w in rows["parent"]["warnings"])
    # Parent, variant, and the control's second round: each item asked and stored once a round.
    assert stored(out) == 3 * ITEMS
    assert len(asked(server)) == ITEMS
    for name, body in contents(tmp_path).items():
        assert KEY.encode() not in body, name
    assert KEY not in done.stdout + done.stderr
    report = (out / "report" / "index.html").read_text()
    assert "unknown" in report
    summary = json.loads((out / "report" / "summary.json").read_text())
    for entry in summary["variants"]:
        assert entry["bytes"] is entry["bits"] is entry["bits_per_weight"] is None
        assert entry["fidelity"] is None
        assert entry["endpoint"]["url"] == server.url
        assert entry["tokens_per_second"] == {"prefill": None, "decode": None}
    overall = summary["variants"][1]["overall"]
    assert (overall["items"], overall["accuracy"]) == (ITEMS, 0.0)
    assert overall["parent_accuracy"] == pytest.approx(80 / 120)
    policy = tmp_path / "policy.yaml"
    policy.write_text("policy_version: 1\nmetrics: {accuracy: {margin_pp: 5}}\n")
    judged = gate(load_run(out), load_policy(policy))
    (chatty,) = judged.variants
    assert chatty.verdict == "fail"
    (control,) = [c for c in chatty.checks if c.metric == "negative_control"]
    assert (control.verdict, control.count) == ("pass", ITEMS)
    assert f"otherwise on 0 of {ITEMS} items" in control.notes[0]
    assert not any("No negative control" in n for n in judged.notes)


@pytest.mark.slow
def test_thirty_seconds_of_silence(serve: Start, items: Path, tmp_path: Path) -> None:
    """The real silence, outlasting the client's patience of 20 s."""
    server = serve(faults=FAULTS, share=0.3)
    out = tmp_path / "run"
    done = run_against(server, items, out, ",timeout=20,concurrency=32")
    assert done.returncode == 0, done.stderr
    assert server.failed["silence"] > 3
    every_item_once(out, "parent")
    assert stored(out) == 3 * ITEMS


def test_killed_in_the_middle_only_what_is_missing_is_asked(
    serve: Start, items: Path, tmp_path: Path
) -> None:
    server = serve()
    server.delay = 0.02
    out = tmp_path / "run"
    where = f"endpoint={server.url},model=fake,concurrency=2"
    words = ["run", "--parent", where, "--variant", f"{where},api=chat,name=chatty",
             "--workload", str(items), "--out", str(out), "-q"]  # fmt: skip
    run = subprocess.Popen(
        [sys.executable, "-m", "evalq.cli.main", *words],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )
    deadline = time.monotonic() + 120
    while sum(asked(server).values()) < 40 and time.monotonic() < deadline:
        time.sleep(0.01)
    os.killpg(run.pid, signal.SIGKILL)
    run.wait()
    time.sleep(0.2)  # what is under way at the server ends
    before, kept = asked(server), stored(out)
    assert 30 < kept < ITEMS
    server.served.clear()
    server.delay = 0.0
    done = cli(*words)
    assert done.returncode == 0, done.stderr
    every_item_once(out, "parent")
    assert stored(out) == 3 * ITEMS
    assert len(before) - kept <= 2  # answered, not yet stored: at most as many as under way
    # The parent's missing items, and all of the variant's and the control's.
    assert sum(asked(server).values()) == (ITEMS - kept) + 2 * ITEMS


@pytest.mark.parametrize(
    ("status", "page", "message"),
    [
        (401, b"", "401"),
        (403, b'{"error": "no access"}', "no access"),
        (404, b'{"error": "model not found"}', "model not found"),
        (200, b"<!doctype html><p>Sign in", "web page"),
    ],
)
def test_a_refusal_is_one_clear_error_and_loses_nothing(
    serve: Start,
    items: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    status: int,
    page: bytes,
    message: str,
) -> None:
    from evalq.cli.main import main

    monkeypatch.setenv("EVALQ_API_KEY", KEY)
    good, bad = serve(), serve()
    out = tmp_path / "run"
    words = ["evalq", "run", "--parent", f"endpoint={good.url},model=fake",
             "--variant", f"endpoint={bad.url},model=fake,name=vendor", "--limit", "5",
             "--workload", str(items), "--out", str(out), "-q"]  # fmt: skip
    monkeypatch.setattr(sys, "argv", words)
    bad.refuse_after, bad.status, bad.page = 3, status, page
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 2
    said = capsys.readouterr().err
    assert message in said
    assert "Traceback" not in said
    kept = stored(out)
    assert 5 <= kept < 10  # the parent's answers, and those before the refusals
    bad.status, bad.page = 0, b""
    with pytest.raises(SystemExit) as again:
        main()
    assert again.value.code == 0
    assert sum(asked(good).values()) == 10  # the parent once, and the control
    for name, body in contents(tmp_path).items():
        assert KEY.encode() not in body, name


def test_a_wrong_key_is_found_before_anything_is_asked(
    serve: Start, items: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EVALQ_API_KEY", KEY + "-wrong")
    good, locked = serve(), serve(key=KEY)
    plan = resolve_plan(
        {
            "parent": {"endpoint": {"url": good.url, "model": "fake"}},
            "variants": [{"endpoint": {"url": locked.url, "model": "fake"}, "name": "vendor"}],
            "workloads": [str(items)],
            "out": str(tmp_path / "run"),
        }
    )
    with pytest.raises(EndpointError, match="401") as caught:
        run_plan(plan)
    assert "EVALQ_API_KEY" in caught.value.hint
    assert KEY not in str(caught.value)
    assert asked(good) == {}
    assert all(KEY.encode() not in body for body in contents(tmp_path).values())


def test_what_a_chat_endpoint_cannot_answer_is_refused_by_name_before_the_first_request(
    serve: Start,
    choices: Path,
    parent_directory: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from evalq.cli.main import main

    server = serve()
    words = ["evalq", "run", "--parent", str(parent_directory), "--workload", str(choices),
             "--variant", f"endpoint={server.url},model=fake,api=chat,name=vendor",
             "--out", str(tmp_path / "run"), "-q"]  # fmt: skip
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 2
    said = capsys.readouterr().err
    assert "task choices asks for loglikelihood, which vendor" in said
    assert server.requests == 0
    assert stored(tmp_path / "run") == 0


def test_log_likelihoods_are_paired_with_a_local_parents(
    serve: Start, choices: Path, parent_directory: Path, tmp_path: Path
) -> None:
    server = serve(bos=True)
    plan = resolve_plan(
        {
            "parent": str(parent_directory),
            "variants": [
                {"endpoint": {"url": server.url, "model": "fake"}, "name": "vendor"},
                {"method": "rtn", "bits": 4, "group_size": 32},
            ],
            "workloads": [str(choices)],
            "fidelity": {"windows": 4, "length": 64},
            "cost": {"repeats": 1, "prefill_tokens": 8, "decode_tokens": 2},
            "out": str(tmp_path / "run"),
        }
    )
    run_plan(plan)
    run = load_run(tmp_path / "run")
    counts = run.items.groupby("variant", observed=True).size().to_dict()
    assert counts == {"parent": 24, "vendor": 24, "rtn-w4-g32": 24, "parent@control": 24}
    hashes = run.items.groupby("item_id", observed=True)["prompt_hash"].nunique()
    assert set(hashes) == {1}
    assert set(run.fidelity["variant"].astype(str)) == {"rtn-w4-g32", "parent@control"}
    assert set(run.costs["variant"].astype(str)) == {"parent", "rtn-w4-g32"}
    data = collect(run, resamples=50)
    assert data.recommendation.variant != "vendor"
    assert list(data.recommendation.unsized) == ["vendor"]
    assert "vendor, an endpoint of unknown size, is" in data.recommendation.why
    assert "is an endpoint" in data.frontiers["bytes"].left_out["vendor"]
    (row,) = [line for line in variant_table(data) if line.startswith("| vendor")]
    assert row.split(" | ")[1:3] == ["unknown", "unknown"]
    assert row.endswith("n/a |")
    told = {r["name"]: r for r in cost_rows(data)}
    assert {told["vendor"][k] for k in ("bytes", "memory", "prefill", "decode")} == {"unknown"}
    (place,) = [a for a in artifacts(data) if a["name"] == "vendor"]
    assert place["scheme"].startswith(f"unknown; completions of {server.url}, model fake")


def test_an_adaptive_run_stops_asking_an_endpoint(
    serve: Start, items: Path, tmp_path: Path
) -> None:
    """The variant answers in another way than the parent, so that few items decide."""
    server = serve()
    where = {"url": server.url, "model": "fake"}
    plan = resolve_plan(
        {
            "parent": {"endpoint": where},
            "variants": [{"endpoint": {**where, "api": "chat"}, "name": "chatty"}],
            "workloads": [str(items)],
            "control": {"enabled": False},
            "adaptive": {"enabled": True},
            "out": str(tmp_path / "run"),
        }
    )
    run = load_run(run_plan(plan))
    counts = run.items.groupby("variant", observed=True).size().to_dict()
    assert counts["parent"] == ITEMS
    assert 24 <= counts["chatty"] < ITEMS
    (stop,) = run.info["adaptive"]["variants"]["chatty"].values()
    assert (stop["used"], stop["decision"]) == (counts["chatty"], "fail")
    assert sum(asked(server).values()) == ITEMS + counts["chatty"]


def test_variants_are_not_made_of_an_endpoint(items: Path) -> None:
    plan = parse_plan(
        {
            "parent": {"endpoint": {"url": "http://h:1", "model": "m"}},
            "variants": [{"method": "rtn", "bits": 4}],
            "workloads": [str(items)],
        }
    )
    with pytest.raises(PlanError, match=r"rtn-w4-g128.*the parent is an endpoint"):
        run_plan(plan)
