from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evalq.errors import PlanError
from evalq.gate.policy import load_policy, parse_policy

EXAMPLE = """\
policy_version: 1
alpha: 0.05
on_inconclusive: 3          # exit code
cluster_by: document_id
metrics:
  accuracy:  {margin_pp: 1.0, mandatory: true}
  ppl_ratio: {max: 1.01}
  kl_mean:   {max: 0.05}    # nats, on the upper bound
  top1:      {min: 0.90}
slices:
  default:         {margin_pp: 2.0, min_items: 300, correction: holm}
  math:            {margin_pp: 1.0, role: mandatory}
  multilingual/*:  {margin_pp: 3.0, role: advisory}
require: [math, reasoning]  # not run = not certified
negative_control: required
"""


def test_the_documented_policy() -> None:
    loaded = parse_policy(EXAMPLE, "P.yaml")
    policy = loaded.policy
    assert policy.metrics.accuracy is not None
    assert policy.metrics.accuracy.asked == "mandatory"
    assert policy.slices["multilingual/*"].margin_pp == 3.0
    assert policy.confidence == pytest.approx(0.90)
    assert loaded.line("slices", "multilingual/*", "margin_pp") == 13
    assert loaded.line("slices", "math", "nothing") == 12
    assert loaded.line("require", 1) == 14


def test_defaults() -> None:
    policy = parse_policy("policy_version: 1\nmetrics: {accuracy: {margin_pp: 1}}").policy
    assert (policy.alpha, policy.on_inconclusive) == (0.05, 3)
    assert policy.negative_control == "required"


def test_hash_ignores_comments_and_order() -> None:
    one = parse_policy("policy_version: 1\nalpha: 0.05\nmetrics: {accuracy: {margin_pp: 1}}")
    two = parse_policy("# x\nmetrics: {accuracy: {margin_pp: 1.0}}\nalpha: 0.05\npolicy_version: 1")
    assert one.policy.hash == two.policy.hash


@pytest.mark.parametrize(
    ("old", "new", "line", "words"),
    [
        ("alpha: 0.05", "alpha: 0", 2, "alpha"),
        ("alpha: 0.05", "alpha: 0.5", 2, "alpha"),
        ("alpha: 0.05", "alpha: yes", 2, "alpha"),
        ("alpha: 0.05", "alpah: 0.05", 2, "Did you mean 'alpha'"),
        ("margin_pp: 3.0", "margin_pp: -3.0", 13, "greater than 0"),
        ("margin_pp: 3.0", "margin_pp: 0", 13, "greater than 0"),
        ("margin_pp: 3.0", "margin_pp: .nan", 13, "margin_pp"),
        ("margin_pp: 3.0", "margin_pp: '3'", 13, "margin_pp"),
        ("margin_pp: 3.0", "marginpp: 3.0", 13, "Did you mean 'margin_pp'"),
        ("role: advisory", "role: optional", 13, "advisory"),
        ("role: advisory", "margin_relative: 0.1", 13, "not both"),
        ("margin_pp: 3.0", "margin_relative: 0.1", 13, "floor_pp"),
        ("min_items: 300", "min_items: 0", 11, "min_items"),
        ("correction: holm", "correction: bonferroni", 11, "holm"),
        ("top1:      {min: 0.90}", "top1: {max: 0.90}", 5, "top1 takes min"),
        ("top1:      {min: 0.90}", "top1: {min: 90}", 5, "at most 1"),
        ("top1:      {min: 0.90}", "top_1: {min: 0.90}", 9, "Did you mean 'top1'"),
        ("kl_mean:   {max: 0.05}", "kl_mean: {max: 0.05, min: 0.01}", 8, "exactly one"),
        ("kl_mean:   {max: 0.05}", "kl_mean: {maxx: 0.05}", 8, "unknown key"),
        ("on_inconclusive: 3", "on_inconclusive: 2", 3, "on_inconclusive"),
        ("cluster_by: document_id", "cluster_by: moon", 4, "cluster_by"),
        ("policy_version: 1", "policy_version: 2", 1, "version"),
        ("cluster_by: document_id", "alpha: 0.1", 4, "twice"),
        ("  math:  ", "  math//x:", 10, "slashes"),
        ("  math:  ", "  2024:  ", 10, "no text"),
        ("require: [math, reasoning]", "require: math", 14, "require"),
        ("require: [math, reasoning]", "require: ['']", 14, "empty"),
        ("require: [math, reasoning]", "require: [math", 15, "expected"),
    ],
)
def test_faults_have_lines(old: str, new: str, line: int, words: str) -> None:
    assert old in EXAMPLE
    with pytest.raises(PlanError) as caught:
        parse_policy(EXAMPLE.replace(old, new), "P.yaml")
    assert f"P.yaml:{line}:" in str(caught.value)
    assert words in str(caught.value)
    assert caught.value.exit_code == 2


def test_all_faults_at_once() -> None:
    text = EXAMPLE.replace("alpha: 0.05", "alpha: 0").replace("margin_pp: 3.0", "margin_pp: -1")
    with pytest.raises(PlanError) as caught:
        parse_policy(text, "P.yaml")
    assert "P.yaml:2:" in caught.value.message
    assert "P.yaml:13:" in caught.value.message


@pytest.mark.parametrize(
    "text",
    [
        "",
        "- a\n",
        "42",
        "policy_version: 1",
        "a: &x [*x]",
        "a: &x 1\nb: *x",
        "x: !!python/name:os.system 1",
    ],
)
def test_no_policy(text: str) -> None:
    with pytest.raises(PlanError):
        parse_policy(text)


@given(st.text(max_size=60))
@settings(max_examples=150, deadline=None)
def test_any_text_is_parsed_or_refused(text: str) -> None:
    with suppress(PlanError):
        parse_policy(text)


def test_files(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="cannot read"):
        load_policy(tmp_path / "none.yaml")
    with pytest.raises(PlanError, match="cannot read"):
        load_policy(tmp_path)
    latin = tmp_path / "latin.yaml"
    latin.write_bytes(b"policy_version: 1 # \xe9")
    with pytest.raises(PlanError, match="UTF-8"):
        load_policy(latin)
    huge = tmp_path / "huge.yaml"
    huge.write_bytes(b"#" * (1 << 21))
    with pytest.raises(PlanError, match="1 MiB"):
        load_policy(huge)
    good = tmp_path / "P.yaml"
    good.write_text("\ufeff" + EXAMPLE, encoding="utf-8")
    assert load_policy(good).path == str(good)
