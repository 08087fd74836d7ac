"""Costs: what is counted is counted right, and everything is timed in turn."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from evalq.cost import Candidate, measure_costs, peak_memory, time_model
from evalq.cost.measure import extra_memory
from evalq.plan import CostPlan

PLAN = CostPlan(repeats=2, prefill_tokens=32, decode_tokens=4)
FIELDS: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "vocab_size": 211,
}


def model(label: str = "m", tied: bool = False) -> Any:
    torch.manual_seed(0)
    module = LlamaForCausalLM(LlamaConfig(**FIELDS, tie_word_embeddings=tied)).eval()
    return SimpleNamespace(
        module=module,
        device=torch.device("cpu"),
        dtype=torch.float32,
        execution="dense",
        label=label,
    )


def test_peak_memory_holds_the_weights_and_the_pass() -> None:
    for tied in (False, True):
        subject = model(tied=tied)
        weights = sum(4 * p.numel() for p in subject.module.parameters())
        small = peak_memory(subject, PLAN)
        large = peak_memory(subject, CostPlan(prefill_tokens=512))
        assert weights < small < weights + 2**20
        # 512 tokens of 2 x 128 float32 in the feed-forward layer alone are 0.5 MB.
        assert large - small > 480 * 2 * 128 * 4


def test_a_timing_covers_prefill_and_decode() -> None:
    timing = time_model(model(), PLAN)
    assert timing.prefill_seconds > 0
    assert timing.decode_seconds > 0


def candidate(label: str, memory: int, loaded: list[str]) -> Candidate:
    def load() -> Any:
        loaded.append(label)
        return model(label)

    return Candidate(label, load, memory, 1000, 4.5, 4.25)


@pytest.mark.parametrize(
    ("budget", "groups"),
    [
        (10**9, [["parent", "a", "b", "c"]]),
        (300, [["parent", "a", "b"], ["parent", "c"]]),
        (1, [["parent", "a"], ["parent", "b"], ["parent", "c"]]),
    ],
)
def test_the_parent_is_timed_in_every_group(budget: int, groups: list[list[str]]) -> None:
    loaded: list[str] = []
    parent = candidate("parent", 100, loaded)
    others = [candidate(n, 100, loaded) for n in "abc"]
    costs = measure_costs(parent, others, PLAN, budget)
    records = costs.records
    assert set(costs.loops) == {"parent", "a", "b", "c"}
    assert all(entry["why"] for entry in costs.loops.values())
    assert loaded == [name for group in groups for name in group]
    by_repeat: dict[int, list[str]] = {}
    for record in records:
        by_repeat.setdefault(record.repeat, []).append(record.variant)
    assert list(by_repeat.values()) == [g for g in groups for _ in range(PLAN.repeats)]
    first = records[0]
    assert (first.bytes_on_disk, first.bits_per_weight, first.linear_bits_per_weight) == (
        1000,
        4.5,
        4.25,
    )
    assert first.dtype == "float32"
    assert first.prefill_tokens_per_second > 0
    assert first.decode_tokens_per_second > 0


def test_on_cuda_other_models_in_memory_are_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    held = {"now": 900, "peak": 5000}
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: held["now"])
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: held["peak"])
    monkeypatch.setattr(
        torch.cuda, "reset_peak_memory_stats", lambda device: held.update(peak=held["now"])
    )
    run = lambda: held.update(peak=held["now"] + 70)  # noqa: E731
    assert extra_memory(torch.device("cuda"), run) == 70


def test_on_a_cpu_the_highest_sum_of_live_allocations_counts() -> None:
    def run() -> None:
        a = torch.empty(1000, dtype=torch.float32)
        del a
        b = torch.empty(1500, dtype=torch.float32)
        c = b.clone()
        del b, c

    assert 2 * 6000 <= extra_memory(torch.device("cpu"), run) < 2 * 6000 + 1000
