"""Plans: what a user may write, and what they are told when they may not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from evalq.errors import PlanError
from evalq.plan import load_plan, parse_plan, parse_variant
from evalq.run.resolve import DEFAULT_VARIANTS, resolve_plan, resolve_variants
from evalq.schema import PerChannel, PerGroup


def test_a_plan_in_full() -> None:
    plan = parse_plan(
        {
            "parent": "smollm2",
            "variants": [
                {"method": "gptq", "bits": 4, "group_size": 64, "symmetric": False},
                {"name": "shipped", "artifact": "some/dir"},
            ],
            "calibration": {"samples": 16},
        }
    )
    assert plan.variants[0].label == "gptq-w4-g64-asym"
    assert plan.variants[0].scheme.weights.granularity == PerGroup(64)
    assert plan.variants[1].label == "shipped"
    assert plan.calibration.samples == 16


@pytest.mark.parametrize(
    ("data", "words", "hint"),
    [
        ({"calibraton": {}}, "unknown key 'calibraton'", "calibration"),
        ({"calibration": {"sample": 3}}, "unknown key 'calibration.sample'", "samples"),
        ({"variants": [{"method": "rtn", "bit": 3}]}, "variants.0.bit", "bits"),
        ({"variants": [{"method": "rtn", "bits": 4, "group_size": 0}]}, "group size 0", "128"),
        ({"variants": [{"method": "rtn", "bits": 1}]}, "1 bits", "2, 3"),
        ({"variants": [{"method": "rtn"}]}, "needs bits", ""),
        ({"variants": [{"bits": 4}]}, "exactly one of", ""),
        ({"variants": [{"method": "rtn", "bits": 4, "artifact": "x"}]}, "exactly one of", ""),
        ({"variants": [{"method": "rtn", "bits": 4}] * 2}, "two variants are named", "name"),
        ({"variants": [{"name": "parent", "artifact": "x"}]}, "named 'parent'", "taken"),
        ({"limit": 0}, "limit", ""),
        ({"seed": "x"}, "seed", ""),
        ({"variants": [{"name": "a\nb", "artifact": "x"}]}, "printable", ""),
    ],
)
def test_what_cannot_be_is_refused_with_a_hint(data: dict[str, Any], words: str, hint: str) -> None:
    with pytest.raises(PlanError) as caught:
        parse_plan(data, "p.yaml")
    assert words in caught.value.message
    assert caught.value.message.startswith("p.yaml: ")
    assert hint in caught.value.hint


def test_the_hash_is_of_what_is_measured() -> None:
    plan = parse_plan({"seed": 1})
    assert plan.hash == parse_plan({"seed": 1, "out": "elsewhere", "name": "other"}).hash
    assert plan.hash != parse_plan({"seed": 2}).hash


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("rtn:8", {"method": "rtn", "bits": 8}),
        ("gptq:w4:g64", {"method": "gptq", "bits": 4, "group_size": 64}),
        ("awq:3:channel:asym", {"method": "awq", "bits": 3, "group_size": "channel",
                                "symmetric": False}),
        ("artifact=a/b=c", {"artifact": "a/b=c"}),
        ("rtn:4:kv2", {"method": "rtn", "bits": 4, "kv_bits": 2}),
    ],
)  # fmt: skip
def test_variants_on_the_command_line(text: str, expected: dict[str, Any]) -> None:
    assert parse_variant(text) == expected


@pytest.mark.parametrize("text", ["rtn", "rtn:x", "rtn:4:64x", ""])
def test_a_variant_that_cannot_be_read(text: str) -> None:
    with pytest.raises(PlanError, match="--variant") as caught:
        parse_variant(text)
    assert "gptq:4:g64:asym" in caught.value.hint


def test_files_that_are_no_plan(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="cannot read"):
        load_plan(tmp_path / "none.yaml")
    (tmp_path / "a.yaml").write_text("a: [1,\nb")
    with pytest.raises(PlanError, match="line 2"):
        load_plan(tmp_path / "a.yaml")
    (tmp_path / "b.yaml").write_text("- 1\n")
    with pytest.raises(PlanError, match="no mapping"):
        load_plan(tmp_path / "b.yaml")
    (tmp_path / "c.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(PlanError):
        load_plan(tmp_path / "c.yaml")


def test_defaults_are_the_whole_ladder_on_the_builtin_suites() -> None:
    plan = resolve_plan({})
    assert len(plan.variants) == len(DEFAULT_VARIANTS) >= 9
    assert plan.suites == ("builtin-math", "builtin-multilingual", "builtin-reasoning")
    assert plan.out == "runs/run"


def test_another_parent_needs_something_to_be_evaluated_on() -> None:
    with pytest.raises(PlanError, match="nothing to evaluate") as caught:
        resolve_plan({"parent": "smollm2"})
    assert "--workload" in caught.value.hint


def test_a_group_size_left_open_is_the_largest_that_divides() -> None:
    from transformers import LlamaConfig

    plan = parse_plan(
        {"variants": [{"method": "rtn", "bits": 4}, {"method": "gptq", "bits": 4, "group_size": 32},
                      {"artifact": "x"}]}
    )  # fmt: skip

    def labels(hidden: int, inner: int) -> list[str]:
        config = LlamaConfig(hidden_size=hidden, intermediate_size=inner, num_attention_heads=2)
        return [v.label for v in resolve_variants(plan, config).variants]

    assert labels(256, 512) == ["rtn-w4-g128", "gptq-w4-g32", "x"]
    assert labels(576, 1536) == ["rtn-w4-g64", "gptq-w4-g32", "x"]
    assert labels(68, 136) == ["rtn-w4-channel", "gptq-w4-g32", "x"]
    resolved = resolve_variants(
        plan, LlamaConfig(hidden_size=68, intermediate_size=136, num_attention_heads=2)
    )
    assert resolved.variants[0].scheme.weights.granularity == PerChannel()


def test_a_rounded_cache_alone_is_a_variant_of_the_parent() -> None:
    plan = parse_plan({"variants": [{"kv_bits": 4}, {"artifact": "a/b", "kv_bits": 8}]})
    assert [v.label for v in plan.variants] == ["parent-kv4", "b-kv8"]
    with pytest.raises(PlanError, match="2, 4, 8 bits"):
        parse_plan({"variants": [{"kv_bits": 3}]})
    with pytest.raises(PlanError, match="exactly one"):
        parse_plan({"variants": [{}]})
