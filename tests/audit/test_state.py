"""Returned log-probabilities: those of a mixture count, those of nobody are left out."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest

from evalq.audit.decide import Rules, decide
from evalq.audit.evidence import Weighed
from evalq.audit.state import gather

STUB = SimpleNamespace(
    names=["parent", "int4", "int3"], near=(), ladder=[SimpleNamespace(rms=r) for r in (0.1, 0.7)]
)
ALPHA = 0.01


def request(probe: int, answered: int | None, rms: float = 8.0) -> Weighed:
    """Flips say nothing; log-probabilities are those of reference ``answered``, or of nobody."""
    e = np.full(3, 30.0)
    fit = np.full((3, 4), -20.0)
    if answered is not None:
        e[answered], fit[answered] = 0.5, 0.0
    flat = np.zeros(3)
    return Weighed(
        kind="greedy", probe=probe, spent=64, tokens=32, e=np.ones(3), fit=np.zeros((3, 4)),
        e_logprobs=e, fit_logprobs=fit, rms_logprobs=np.full(3, rms), nll=flat, entropy=flat,
        variance=flat, excess=0.0, gap=(), flip=(),
    )  # fmt: skip


@pytest.mark.parametrize("every", [2, 4, 5])
def test_log_probabilities_of_a_mixture_count(every):
    rows = [request(i, 1 if i % every == 0 else 0) for i in range(40)]
    state = gather(rows, STUB, ALPHA)
    # The parent alone is ruled out by phase 3, and so is every tier alone.
    assert state.use_logprobs
    assert (state.logprobs > math.log(3 / ALPHA)).all()
    found = decide(rows, STUB, Rules(ALPHA), True)
    assert (found.verdict, found.components) == ("MIXED", ("parent", "int4"))
    share, low, high = found.share
    assert share == pytest.approx(1 / every, abs=1e-3)
    assert low < 1 / every < high


def test_log_probabilities_of_nobody_are_left_out():
    rows = [request(i, None) for i in range(40)]
    state = gather(rows, STUB, ALPHA)
    assert not state.use_logprobs
    assert "left out" in state.warnings[0]
    assert decide(rows, STUB, Rules(ALPHA), True).verdict == "UNDERPOWERED"  # int4 is not ruled out
    assert not state.doubtful


@pytest.mark.parametrize(("rms", "verdict"), [(0.5, "UNDERPOWERED"), (8.0, "PARENT-LIKE")])
def test_what_an_unlisted_recipe_could_return_is_no_confirmation(rms, verdict):
    near = SimpleNamespace(**{**vars(STUB), "near": ("int4", "int3")})
    found = decide([request(i, None, rms) for i in range(40)], near, Rules(ALPHA), True)
    assert found.verdict == verdict
    assert found.settled  # thousands of samples more would not say which
    assert any("alters" in r for r in found.reasons) == (verdict == "UNDERPOWERED")


def test_some_of_nobody_among_the_parents_are_left_out():
    rows = [request(i, None if i % 2 else 0) for i in range(40)]
    assert not gather(rows, STUB, ALPHA).use_logprobs
