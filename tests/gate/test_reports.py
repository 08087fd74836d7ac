"""Reports are read back by those who read them in earnest, with hostile texts in them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from junitparser import Error, Failure, JUnitXml, Skipped

from evalq.compare import load_run
from evalq.gate import (
    GateResult,
    code_quality,
    gate,
    gate_json,
    github_annotations,
    junit_xml,
    parse_policy,
    render_markdown,
    write_step_summary,
)
from evalq.gate.annotations import command
from evalq.gate.markdown import SUMMARY_LIMIT
from evalq.gate.text import markdown, one_line, xml_text
from tests.gate.conftest import POLICY


@pytest.fixture(scope="module")
def result(run_dir: Path) -> GateResult:
    return gate(load_run(run_dir), parse_policy(POLICY, "ci/policy.yaml"))


@pytest.fixture(scope="module")
def hostile(hostile_dir: Path) -> GateResult:
    return gate(load_run(hostile_dir), parse_policy(POLICY, "ci/a,b:c%.yaml"))


def runner_parse(line: str) -> tuple[str, dict[str, str], str] | None:
    """One log line as the GitHub runner reads it (ActionCommand.TryParseV2, then V1's marker)."""
    text = line.strip()
    if not text.startswith("::"):
        return None
    end = text.find("::", 2)
    if end < 0:
        return None
    name, _, rest = text[2:end].partition(" ")
    properties = {}
    for pair in filter(None, (p.strip() for p in rest.split(","))):
        key, _, value = pair.partition("=")
        for code, char in (("%0D", "\r"), ("%0A", "\n"), ("%3A", ":"), ("%2C", ","), ("%25", "%")):
            value = value.replace(code, char)
        properties[key] = value
    data = text[end + 2 :]
    for code, char in (("%0D", "\r"), ("%0A", "\n"), ("%25", "%")):
        data = data.replace(code, char)
    return name, properties, data


def test_junit_is_read_by_junitparser(result: GateResult) -> None:
    parsed = JUnitXml.fromstring(junit_xml(result))
    assert (parsed.tests, parsed.failures) == (
        sum(len(v.checks) for v in result.variants),
        sum(
            c.verdict == "fail" and c.role != "advisory" for v in result.variants for c in v.checks
        ),
    )
    for suite, variant in zip(parsed, result.variants, strict=True):
        assert suite.tests == len(variant.checks)
        for case, check in zip(suite, variant.checks, strict=True):
            kinds = {type(r) for r in case.result}
            if check.verdict == "pass":
                assert not kinds
            elif check.role == "advisory":
                assert kinds == {Skipped}
            elif check.verdict == "fail":
                assert kinds == {Failure}
            elif check.role == "mandatory":
                assert kinds == {Error}


def test_junit_with_hostile_texts(hostile: GateResult) -> None:
    raw = junit_xml(hostile)
    root = ET.fromstring(raw)
    text = "".join(root.itertext())
    assert "<script>alert(1)</script>" in text
    assert b"<script>" not in raw
    assert b"\x1b" not in raw
    assert JUnitXml.fromstring(raw).failures > 0


def test_annotations_point_to_the_policy(result: GateResult) -> None:
    parsed = [runner_parse(line) for line in github_annotations(result)]
    assert all(parsed)
    names = [p[0] for p in parsed if p]
    assert names.count("error") <= 10
    assert names.count("warning") <= 10
    first = parsed[0]
    assert first is not None
    assert first[0] == "error"
    assert first[1]["file"] == "ci/policy.yaml"
    assert int(first[1]["line"]) >= 1
    assert parsed[-1] is not None
    assert parsed[-1][1]["title"] == "evalq gate: fail"


def test_annotations_with_hostile_texts(hostile: GateResult) -> None:
    lines = github_annotations(hostile)
    for line in lines:
        assert "\n" not in line
        assert "\r" not in line
        assert "##[" not in line
        parsed = runner_parse(line)
        assert parsed is not None
        name, properties, data = parsed
        assert name in ("error", "warning", "notice")
        assert set(properties) <= {"file", "line", "title"}
        if "file" in properties:
            assert properties["file"] == "ci/a,b:c%.yaml"
        # What a log shows of it, line by line, gives no further order.
        assert all(runner_parse(part) is None for part in data.splitlines())
    assert any("lost, for example" in line for line in lines)


@given(st.text(max_size=80), st.text(max_size=40), st.text(max_size=40))
@settings(max_examples=200, deadline=None)
def test_commands_round_trip(message: str, file: str, title: str) -> None:
    line = command("error", message, file=file, title=title)
    parsed = runner_parse(line)
    assert parsed is not None
    assert parsed[0] == "error"
    if message.strip() == message and file.strip() == file and title.strip() == title:
        assert parsed[2] == message
        assert parsed[1] == {k: v for k, v in (("file", file), ("title", title)) if v}


@given(st.text(max_size=100))
@settings(max_examples=200, deadline=None)
def test_one_line_is_one_inert_line(text: str) -> None:
    clean = one_line(text)
    assert len(clean.splitlines()) <= 1
    assert runner_parse(clean) is None
    assert "##[" not in clean
    ET.fromstring(f"<a>{xml_text(clean).replace('&', '&amp;').replace('<', '&lt;')}</a>")
    inert = markdown(text)
    assert not re.search(r"[<>|`*_\[\]()@\\!~]", inert)
    assert not re.search(r"#(?!\d+;)", inert)


def test_markdown_with_hostile_texts(hostile: GateResult) -> None:
    text = render_markdown(hostile)
    for bad in ("<script", "@octocat", "http://x", "\x1b", "\u202e", "${{", "**bold**", "`code`"):
        assert bad not in text
    tables = [line for line in text.splitlines() if line.startswith("|")]
    assert {line.count(" | ") for line in tables if "| ---" not in line} <= {7, 4, 1}
    assert text.count("<details>") == text.count("</details>")


def test_summary_keeps_within_its_limit(hostile: GateResult, tmp_path: Path) -> None:
    path = tmp_path / "summary.md"
    for _ in range(60):
        write_step_summary(hostile, path)
    assert path.stat().st_size <= SUMMARY_LIMIT
    path.read_text(encoding="utf-8")
    short = render_markdown(hostile, 3000)
    assert len(short.encode()) <= 3000
    assert "Cut here" in short


def test_gitlab_code_quality(result: GateResult, hostile: GateResult) -> None:
    found = json.loads(code_quality(result))
    assert found
    for entry in found:
        assert set(entry) == {"description", "check_name", "fingerprint", "severity", "location"}
        assert entry["severity"] in ("info", "minor", "major", "critical", "blocker")
        assert entry["location"]["path"] == "ci/policy.yaml"
        assert entry["location"]["lines"]["begin"] >= 1
    prints = [e["fingerprint"] for e in found]
    assert len(set(prints)) == len(prints)
    assert "\n" not in "".join(e["description"] for e in json.loads(code_quality(hostile)))


def test_gate_json(result: GateResult, hostile: GateResult) -> None:
    data = json.loads(gate_json(result))
    assert data["policy"]["file"] == "policy.yaml"
    assert [v["verdict"] for v in data["variants"]] == [v.verdict for v in result.variants]
    assert {"slice", "metric", "verdict", "rule", "line", "ci"} <= set(
        data["variants"][0]["checks"][0]
    )
    raw = gate_json(hostile)
    assert "##[" not in raw
    assert all(runner_parse(line) is None for line in raw.splitlines())
    texts = [e["variant"] for c in json.loads(raw)["variants"][0]["checks"] for e in c["examples"]]
    assert any("##[set-env" in t for t in texts)
