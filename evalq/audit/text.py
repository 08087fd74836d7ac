"""Texts alone: the same prompts, sampled there and here, compared by a permutation test.

For endpoints whose tokens nobody can make out. It says less at the same price: see the power in
``benchmarks/RESULTS.md``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from evalq.audit.client import Ask
from evalq.audit.decide import Decision
from evalq.audit.panel import BASE
from evalq.audit.session import Outcome, Session
from evalq.stats.mmd import EqualityTest, mmd_test

__all__ = ["TextSession"]

_SAMPLES = 8
_TOKENS = 32
_PERMUTATIONS = 1999
_KEPT = 0.05


class TextSession(Session):
    """Phases by text only: ``settings.sampled`` requests, eight to a prompt.

    The parent is rejected at alpha; a tier is named where it alone is not rejected at .05.
    """

    def run(self) -> Outcome:
        """Ask, and test each reference.

        Raises:
            EndpointError: the endpoint cannot be asked at all.
        """
        self._discover()
        start = replace(_nothing(self.calibration.names), reasons=("nothing was answered",))
        outcome = Outcome(start)
        count = max(1, self.settings.sampled // _SAMPLES)
        prompts = self._order[: min(count, len(self._order))]
        asks = [
            (p, Ask(self.calibration.probes[p].text, _TOKENS, 1.0, self._seeds[k * _SAMPLES + j]))
            for j in range(_SAMPLES)
            for k, p in enumerate(prompts)
        ]
        self._progress.start("texts", len(asks), "requests")
        texts: list[tuple[int, str]] = []
        for begin in range(0, len(asks), self.settings.block):
            part = asks[begin : begin + self.settings.block]
            if not self._affordable([a for _, a in part]):
                outcome.stopped = "the budget is spent"
                break
            answers = self._block("sampled", part, outcome)
            if answers is None:
                break
            if self._incomparable(outcome, answers):
                break
            texts += [(p, a.text) for p, a in answers]
            self._progress.advance(len(part))
        if outcome.decision.verdict != "NOT_COMPARABLE" and texts:
            outcome.decision = self._decide(texts)
        outcome.tokens, outcome.requests, outcome.usd = self.tokens, self._answered, self.usd
        outcome.timeline = [(self.tokens, outcome.decision.log_e)]
        outcome.warnings += self._remarks(outcome)
        return outcome

    def _decide(self, texts: Sequence[tuple[int, str]]) -> Decision:
        tests = self.tests(texts)
        alpha = self.settings.alpha
        p = {name: test.p for name, test in tests.items()}
        names = self.calibration.names
        rest = [n for n in names[1:] if p[n] > _KEPT]
        told = tuple(f"{n}: p = {v:.4f}" for n, v in p.items())
        base = replace(_nothing(names), reasons=told, log_e=0.0)
        if p[BASE] > alpha:
            open_ = [n for n in rest if n not in self.calibration.near]
            if open_:
                return base
            return replace(base, verdict="PARENT-LIKE", settled=True)
        if len(rest) == 1:
            return replace(base, verdict="TIER", tier=rest[0], settled=True)
        return base if rest else replace(base, verdict="UNLISTED", settled=True)

    def tests(self, texts: Sequence[tuple[int, str]]) -> dict[str, EqualityTest]:
        """The permutation test against every reference.

        Args:
            texts: probe and the text that was served.
        """
        labels = np.array([p for p, _ in texts])
        served = [t for _, t in texts]
        out = {}
        for place, name in enumerate(self.calibration.names):
            mine, prompts = self._local(name, sorted(set(labels.tolist())))
            width = max(len(t) for t in [*served, *mine])
            rng = np.random.default_rng([self.settings.seed, place])
            out[name] = mmd_test(
                _characters(served, width),
                _characters(mine, width),
                labels,
                prompts,
                rng,
                _PERMUTATIONS,
            )
        return out

    def _local(self, name: str, probes: Sequence[int]) -> tuple[list[str], NDArray[np.int64]]:
        """As many samples of a reference as were served, from seeds of their own."""
        from evalq.serve.engine import Job, ServeEngine

        engine = ServeEngine(self.panel.model(name))
        jobs, labels = [], []
        for p in probes:
            ids = self._rendering.apply(self.calibration.probes[p].ids, self._tokenizer)
            for j in range(_SAMPLES):
                seed = (p * 1009 + j + 7919 * (1 + self.settings.seed)) % 2**31
                jobs.append(Job(ids, _TOKENS, temperature=1.0, seed=seed))
                labels.append(p)
        texts = []
        for start in range(0, len(jobs), 32):
            texts += [done.text for done in engine.run(jobs[start : start + 32])]
        return texts, np.array(labels)


def _nothing(names: Sequence[str]) -> Decision:
    flat = dict.fromkeys(names, 1 / len(names))
    return Decision("UNDERPOWERED", False, None, flat, 0.0, dict.fromkeys(names, 0.0))


def _characters(texts: Sequence[str], width: int) -> NDArray[np.int64]:
    """Code points, padded with -1."""
    out = np.full((len(texts), width), -1, dtype=np.int64)
    for i, text in enumerate(texts):
        out[i, : len(text)] = [ord(c) for c in text[:width]]
    return out
