"""The built-in parent, on its own items, against lm-eval's HFLM."""

from __future__ import annotations

import pytest

from evalq.models.hf import TransformersEngine
from evalq.models.load import load_parent
from evalq.plan import EnginePlan
from evalq.tasks import build
from tests.models.hflm import Reference, answers

PLAN = EnginePlan(device="cpu")
ITEMS = 2


@pytest.fixture(scope="module")
def parent():
    return load_parent("builtin", PLAN)


@pytest.fixture(scope="module")
def requests():
    suites = ("builtin-math", "builtin-multilingual", "builtin-reasoning", "builtin-text")
    tasks = build(suites, limit=ITEMS)
    return [r for task in tasks for r in task.requests]


def of(kind, requests):
    chosen = [r for r in requests if r.kind == kind]
    assert chosen
    return chosen


def test_it_is_marked_as_a_demonstration(parent):
    assert parent.source.demonstration
    assert "demonstration" in parent.source.notes[0]
    assert 2e6 < parent.source.parameters < 4e6


def test_generations_are_hflms(parent, requests):
    chosen = of("generate_until", requests)
    ours = answers(TransformersEngine(parent, PLAN), chosen)
    assert [r.text for r in ours] == Reference(parent).generate(chosen)


def test_choices_are_hflms(parent, requests):
    chosen = of("loglikelihood", requests)
    ours = answers(TransformersEngine(parent, PLAN), chosen)
    for mine, (value, greedy) in zip(ours, Reference(parent).loglikelihood(chosen), strict=True):
        assert mine.logprob == pytest.approx(value, abs=1e-3)
        assert mine.greedy == greedy


def test_perplexities_are_hflms(parent, requests):
    chosen = of("loglikelihood_rolling", requests)
    ours = answers(TransformersEngine(parent, PLAN), chosen)
    for mine, value in zip(ours, Reference(parent).rolling(chosen), strict=True):
        assert mine.logprob == pytest.approx(value, abs=1e-3, rel=1e-6)
