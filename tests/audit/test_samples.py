"""Answers to temperature 0 that look like samples, told from choices of another model."""

from __future__ import annotations

import numpy as np
import pytest

from evalq.audit.evidence import Weighed
from evalq.audit.state import looks_sampled


def answers(chooses: str, count: int, tokens: int, seed: int = 0) -> list[Weighed]:
    """Tokens of a made-up distribution, .5 .3 .2 at every place, chosen or drawn."""
    rng = np.random.default_rng(seed)
    p = np.array([0.5, 0.3, 0.2])
    entropy = float(-(p * np.log(p)).sum())
    variance = float((p * np.log(p) ** 2).sum() - entropy**2)
    rows = []
    for probe in range(count):
        drawn = rng.choice(3, tokens, p=p)
        if chooses == "parent":
            drawn[:] = 0
        elif chooses == "other":  # another model, which flips one choice in eight
            drawn = np.where(rng.random(tokens) < 0.125, 1, 0)
        logp = np.log(p)[drawn]
        one = np.array([1.0])
        rows.append(
            Weighed(
                kind="greedy", probe=probe, spent=tokens, tokens=tokens, e=one, fit=one[None],
                e_logprobs=one, fit_logprobs=one[None], rms_logprobs=one,
                nll=np.array([-logp.sum()]), entropy=np.array([entropy * tokens]),
                variance=np.array([variance * tokens]),
                excess=float((np.log(p[0]) - logp).sum()), gap=(), flip=(),
            )
        )  # fmt: skip
    return rows


@pytest.mark.parametrize("count", [1, 4, 40])
@pytest.mark.parametrize("chooses", ["parent", "other"])
def test_choices_are_no_samples_however_few(chooses, count):
    assert not looks_sampled(answers(chooses, count, 32))


@pytest.mark.parametrize("count", [4, 16, 40])
def test_samples_are_seen(count):
    assert all(looks_sampled(answers("sample", count, 32, seed)) for seed in range(20))
