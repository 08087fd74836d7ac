"""Sums over weighed answers: the evidence of each phase, which ``decide`` makes a verdict of."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp

from evalq.audit.calibration import Calibration
from evalq.audit.evidence import Weighed
from evalq.stats.agreement import bet_log_e

__all__ = ["BAND", "CLEAR", "State", "gather", "largest", "least", "looks_sampled"]

Floats = NDArray[np.float64]
BAND = 4.0
"""Standard deviations that sampled tokens may be less or more likely than their model expects."""
CLEAR = math.log(20)
"""Nats against an explanation (1 in 20) from which it no longer counts as one: neither is a mixture
named, nor is phase 3 left out because of a tier, on what is nearly ruled out."""


@dataclass
class State:
    """Sums over the answers; K references, N answers at temperature 0.

    Args:
        names: of the K, the parent first.
        bar: nats from which an e-process rejects.
        prompts: N.
        flips, logprobs: ``[K]`` largest log e-value against each, of phases 1 and 3.
        use_logprobs: phase 3 counts.
        doubtful: it is left out, and yet another recipe could return such log-probabilities.
        sampled_log_e: phase 2's, against the parent.
        outside: samples are out of a reference's band.
        posterior: ``[K]``.
        by_request: ``[N, K]`` log-likelihoods.
        e, e_logprobs: ``[N, K]`` e-values.
        looks_sampled: of the answers at temperature 0.
        warnings: sentences.
    """

    names: list[str]
    bar: float
    prompts: int
    flips: Floats
    logprobs: Floats
    use_logprobs: bool
    doubtful: bool
    sampled_log_e: float
    outside: list[bool]
    posterior: Floats
    by_request: Floats
    e: Floats
    e_logprobs: Floats
    looks_sampled: bool
    warnings: list[str] = field(default_factory=list)

    @property
    def out(self) -> list[bool]:
        """Which of the K are ruled out."""
        found = self.flips >= self.bar
        if self.use_logprobs:
            found = found | (self.logprobs >= self.bar)
        # The parent is left by phase 2's own e-process; a tier where its band is.
        band = [o and i > 0 for i, o in enumerate(self.outside)]
        parent = [i == 0 and self.sampled_log_e >= self.bar for i in range(len(self.names))]
        return [bool(a or b or c) for a, b, c in zip(found, band, parent, strict=True)]

    @property
    def log_e(self) -> float:
        """Against the parent: the largest of the phases."""
        values = [float(self.flips[0]), self.sampled_log_e]
        if self.use_logprobs:
            values.append(float(self.logprobs[0]))
        return max(values)


def gather(rows: Sequence[Weighed], calibration: Calibration, alpha: float) -> State:
    """Everything that a verdict needs of the answers so far.

    Args:
        rows: in the order they were asked.
        calibration: that they were weighed with.
        alpha: chance of accusing an endpoint that serves the parent.
    """
    names = calibration.names
    count = len(names)
    greedy = [r for r in rows if r.kind == "greedy"]
    told = [r for r in greedy if np.isfinite(r.e_logprobs).all()]
    bar = math.log(3 / alpha)
    e = np.array([r.e for r in greedy]).reshape(len(greedy), count)
    flips = largest(e)
    e_logprobs = np.array([r.e_logprobs for r in told]).reshape(len(told), count)
    logprobs = largest(e_logprobs)
    warnings: list[str] = []
    use = bool(told)
    served = flips[0] < bar or bool((flips[1:] < CLEAR).any())
    # Of a mixture's they are: each request's are those of some reference, and no reference's all.
    mixed = float(largest(e_logprobs.min(axis=1, keepdims=True))[0]) < bar
    doubtful = False
    if use and (logprobs >= bar).all() and served and not mixed:
        use, doubtful = False, _as_near_as_a_tier(told, calibration)
        warnings.append(
            "the returned log-probabilities are not those of any reference at temperature 1, "
            "though the served tokens are: they were left out"
        )
    fit = np.array([r.fit for r in greedy]) if greedy else np.zeros((0, count, 1))
    by_request = _integrated(fit)
    total = _integrated(fit.sum(0)[None])[0]
    if use:
        fit3 = np.array([r.fit_logprobs for r in greedy])
        by_request = by_request + _integrated(fit3)
        total = total + _integrated(fit3.sum(0)[None])[0]
    sampled = [r for r in rows if r.kind == "sampled"]
    log_e, outside, gain = _sampled(sampled, count, flips >= bar, warnings)
    total = total + gain
    posterior = np.exp(total - logsumexp(total))
    return State(
        names, bar, len(greedy), flips, logprobs, use, doubtful, log_e, outside, posterior,
        by_request, e, e_logprobs, looks_sampled(greedy), warnings,
    )  # fmt: skip


def _as_near_as_a_tier(told: Sequence[Weighed], calibration: Calibration) -> bool:
    """Whether returned log-probabilities lie no farther off than a tier's: no mere nonsense."""
    closest = float(np.median([r.rms_logprobs.min() for r in told]))
    return closest <= max([0.0, *(m.rms for m in calibration.ladder)])


def largest(e: Floats) -> Floats:
    """Largest running log e-value against each reference, ``[N, K]`` to ``[K]``."""
    if not len(e):
        return np.zeros(e.shape[1])
    return np.array([max(0.0, float(bet_log_e(column).max())) for column in e.T])


def _integrated(fit: Floats) -> Floats:
    """``[N, K, S]`` to ``[N, K]``: the scale is one of S, each as likely before."""
    if not fit.size:
        return np.zeros(fit.shape[:2])
    out: Floats = logsumexp(fit, axis=2) - math.log(fit.shape[2])
    return out


def _sampled(
    rows: Sequence[Weighed], count: int, rejected: NDArray[np.bool_], warnings: list[str]
) -> tuple[float, list[bool], Floats]:
    """Phase 2: log e-value against the parent, who is out of band, log-likelihoods of K."""
    nothing = 0.0, [False] * count, np.zeros(count)
    if not rows:
        return nothing
    nll = np.array([r.nll for r in rows])
    entropy = np.array([r.entropy for r in rows]).sum(0)[:count]
    variance = np.array([r.variance for r in rows]).sum(0)[:count]
    z = (nll.sum(0)[:count] - entropy) / np.sqrt(np.maximum(variance, 1e-12))
    outside = [bool(abs(v) > BAND) for v in z]
    if all(o or bool(r) for o, r in zip(outside, rejected, strict=True)):
        if not all(rejected):
            warnings.append(
                "tokens asked for at temperature 1 are not drawn from any reference's whole "
                "distribution (a default sampler of the endpoint?): they were left out"
            )
        return nothing
    running = -np.cumsum(nll, axis=0)
    null = np.concatenate([running[:, :1], running[:, count:]], axis=1).max(1)
    if count > 1:
        alternatives = logsumexp(running[:, 1:count], axis=1) - math.log(count - 1)
        log_e = max(0.0, float((alternatives - null).max()))
    else:
        log_e = 0.0
    likelihood = running[-1, :count].copy()
    likelihood[0] = null[-1]
    return log_e, outside, likelihood


def looks_sampled(greedy: Sequence[Weighed]) -> bool:
    """Whether answers to temperature 0 are as unlikely under the parent as its samples would be.

    The parent's own choices lose nothing to its likeliest tokens, its samples on average their
    entropy less that of the choices. Short answers lie within the band of samples whatever they
    are, so they also have to be nearer to samples than to choices.
    """
    if not greedy:
        return False
    nll = sum(float(r.nll[0]) for r in greedy)
    entropy = sum(float(r.entropy[0]) for r in greedy)
    spread = math.sqrt(max(1e-12, sum(float(r.variance[0]) for r in greedy)))
    excess = sum(r.excess for r in greedy)
    expected = entropy - (nll - excess)
    return (nll - entropy) / spread > -BAND and excess > expected / 2


def least(e: Floats, first: int, second: int) -> Floats:
    """E-values ``[N, 1]`` against "one of the two answered": at most that of the right one."""
    out: Floats = e[:, [first, second]].min(axis=1, keepdims=True)
    return out
