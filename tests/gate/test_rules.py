from __future__ import annotations

import pytest

from evalq.errors import PlanError
from evalq.gate.policy import parse_policy
from evalq.gate.rules import matches, resolve, unmatched


@pytest.mark.parametrize(
    ("pattern", "name", "expected"),
    [
        ("math", "math", True),
        ("math", "math/word", False),
        ("math/*", "math", False),
        ("math/*", "math/word", True),
        ("math/*", "math/word/two", False),
        ("math/**", "math/word/two", True),
        ("math/**", "math", False),
        ("*", "math", True),
        ("*", "math/word", False),
        ("**", "math/word", True),
        ("**/sw", "multilingual/sw", True),
        ("*/s?", "multilingual/sw", True),
        ("multilingual/s[aw]", "multilingual/sw", True),
        ("Math", "math", False),
    ],
)
def test_matches(pattern: str, name: str, expected: bool) -> None:
    assert matches(pattern, name) is expected


RULES = """\
policy_version: 1
slices:
  default: {margin_pp: 2, min_items: 50, role: supporting, kl_mean: {max: 0.1}}
  "**": {margin_pp: 9}
  multilingual/*: {margin_pp: 3, role: advisory}
  multilingual/s*: {margin_pp: 4}
  multilingual/sw: {margin_pp: 5, correction: none, min_items: 7}
  math: {mandatory: true, margin_relative: 0.02, floor_pp: 0.5}
"""


def test_the_most_specific_wins_and_inherits_from_default() -> None:
    loaded = parse_policy(RULES, "P.yaml")
    found = {n: resolve(loaded, n) for n in ("math", "multilingual/sw", "multilingual/si",
                                             "multilingual/de", "other/x")}  # fmt: skip
    names = {n: r.name for n, r in found.items() if r}
    assert names == {
        "math": "slices.math",
        "multilingual/sw": "slices.multilingual/sw",
        "multilingual/si": "slices.multilingual/s*",
        "multilingual/de": "slices.multilingual/*",
        "other/x": "slices.**",
    }
    sw, math = found["multilingual/sw"], found["math"]
    assert sw is not None
    assert math is not None
    assert (sw.role, sw.min_items, sw.holm, sw.line, sw.exact) == ("supporting", 7, False, 7, True)
    assert sw.limits["kl_mean"].value == 0.1
    assert math.role == "mandatory"
    assert math.margin is not None
    assert math.margin.margin_relative == 0.02
    assert math.margin.margin_pp is None


def test_no_rule_no_judgement() -> None:
    loaded = parse_policy("policy_version: 1\nslices: {math: {margin_pp: 1}}")
    assert resolve(loaded, "reasoning") is None


def test_a_tie_is_refused() -> None:
    loaded = parse_policy(
        "policy_version: 1\nslices:\n  a*/xx: {margin_pp: 1}\n  aa/x*: {margin_pp: 2}\n", "P.yaml"
    )
    with pytest.raises(PlanError, match="neither is more specific") as caught:
        resolve(loaded, "aa/xx")
    assert "P.yaml:4:" in caught.value.message


def test_unmatched() -> None:
    loaded = parse_policy(
        "policy_version: 1\nrequire: [missing]\nslices:\n  maths: {margin_pp: 1}\n"
        "  missing: {margin_pp: 1}\n  multilingual/*: {margin_pp: 1}\n",
        "P.yaml",
    )
    (error,) = unmatched(loaded, ["math/products", "multilingual/sw"])
    assert "P.yaml:4:" in error.message
    assert "'math'" in error.hint
