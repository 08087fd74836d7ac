"""Does a served text agree with what a model would have said? Flips, their scale, and evidence.

A model's preference at a position is its margin m >= 0: the gap in log-probability between its
likeliest token and the next. Numerical noise and quantization move logits; the served token is
another one ("a flip") where they moved by more than the margin. With normal movement of scale
sigma, P(flip) = Phi(-m / sigma). Here the noise is a scale mixture, so that a rare large movement
is unlikely but not impossible:

    F(g; sigma) = (1 - TAIL) Phi(-g / sigma) + TAIL Phi(-g / (8 sigma)) + OUTLIER,

with g the margin where the served token is the likeliest one, and the gap of the served token
below the likeliest where it is not.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import logsumexp, ndtr

from evalq.errors import StatisticsError
from evalq.stats._check import inside

__all__ = [
    "BETS",
    "CAP",
    "SIGMAS",
    "ScaleEstimate",
    "bet_log_e",
    "flip_log_likelihood",
    "flip_probability",
    "flip_scale",
    "prompt_e_values",
    "scale_e_values",
]

Floats = NDArray[np.float64]

TAIL = 0.02
"""Share of the movements that are eight times as wide."""

OUTLIER = 2e-4
"""Chance of a flip that no noise explains (a token of a cut character, a glitch of a server)."""

SIGMAS: Floats = np.geomspace(1e-5, 30.0, 131)
"""Scales, in nats, that are tried."""

CAP = 30.0
"""Most that one prompt's e-value may be: min(e, CAP) is an e-value too, and no accusation then
rests on one prompt."""

BETS = (0.1, 0.35, 1.0)
"""Shares of the evidence that are bet on each prompt."""


@dataclass(frozen=True, slots=True)
class ScaleEstimate:
    """Scale of the noise between a served text and a model's own preferences.

    Args:
        sigma: by maximum likelihood over ``SIGMAS``, in nats.
        ci: cluster-bootstrap percentile interval by prompt.
        flips: positions where another token was served.
        positions: looked at.
    """

    sigma: float
    ci: tuple[float, float]
    flips: int
    positions: int


def flip_probability(gap: ArrayLike, sigma: ArrayLike) -> Floats:
    """F(gap; sigma) of the module's text; broadcasts."""
    g, s = np.asarray(gap, dtype=np.float64), np.asarray(sigma, dtype=np.float64)
    body = (1 - TAIL) * ndtr(-g / s) + TAIL * ndtr(-g / (8 * s))
    out: Floats = np.minimum((1 - OUTLIER) * body + OUTLIER, 0.5)
    return out


def flip_log_likelihood(gap: ArrayLike, flip: ArrayLike, sigmas: ArrayLike) -> Floats:
    """Log-likelihood of every position at every scale.

    Args:
        gap: ``[N]`` nats, at least 0: margin where the model agrees, else the served token's gap.
        flip: ``[N]`` booleans: another token than the model's likeliest was served.
        sigmas: ``[S]`` nats.

    Returns:
        ``[N, S]``.

    Raises:
        StatisticsError: arrays that do not fit, a negative or NaN gap.
    """
    g, f = _checked(gap, flip)
    p = flip_probability(g[:, None], np.asarray(sigmas, dtype=np.float64)[None, :])
    out: Floats = np.where(f[:, None], np.log(p), np.log1p(-p))
    return out


def _checked(gap: ArrayLike, flip: ArrayLike) -> tuple[Floats, NDArray[np.bool_]]:
    g, f = np.asarray(gap, dtype=np.float64), np.asarray(flip, dtype=np.bool_)
    if g.ndim != 1 or g.shape != f.shape:
        raise StatisticsError("gaps and flips must be two vectors of one length")
    if g.size and not (np.isfinite(g).all() and g.min() >= 0):
        raise StatisticsError("a gap between log-probabilities is negative or no number")
    return g, f


def flip_scale(
    gap: ArrayLike,
    flip: ArrayLike,
    prompts: ArrayLike,
    rng: np.random.Generator,
    confidence: float = 0.95,
    resamples: int = 400,
) -> ScaleEstimate:
    """The scale by maximum likelihood, with a bootstrap interval over prompts.

    Args:
        gap, flip: as for ``flip_log_likelihood``.
        prompts: ``[N]`` whole numbers; positions of one prompt are resampled together.
        rng: of the bootstrap.
        confidence: of the interval.
        resamples: of the bootstrap.

    Raises:
        StatisticsError: no positions, or as for ``flip_log_likelihood``.
    """
    g, f = _checked(gap, flip)
    labels = np.asarray(prompts)
    if not g.size or labels.shape != g.shape:
        raise StatisticsError("there is no position to estimate a scale of")
    inside(confidence, 0, 1, "confidence")
    table = flip_log_likelihood(g, f, SIGMAS)
    _, codes = np.unique(labels, return_inverse=True)
    count = int(codes.max()) + 1
    by_prompt = np.zeros((count, SIGMAS.size))
    np.add.at(by_prompt, codes, table)
    best = float(SIGMAS[int(by_prompt.sum(0).argmax())])
    weights = rng.multinomial(count, np.full(count, 1 / count), size=resamples)
    drawn = SIGMAS[(weights @ by_prompt).argmax(1)]
    tail = (1 - confidence) / 2
    low, high = (float(q) for q in np.quantile(drawn, [tail, 1 - tail]))
    return ScaleEstimate(best, (min(low, best), max(high, best)), int(f.sum()), int(g.size))


def prompt_e_values(gap: ArrayLike, flip: ArrayLike, prompts: ArrayLike, floor: float) -> Floats:
    """E-value of each prompt against "the noise is at most ``floor``".

    Under the hypothesis P(flip) <= F(m; floor) at every position given what came before, whatever
    the smaller scale is. For a wider alternative q = F(m; s), s > floor, the likelihood ratio
    (q/p)^f ((1-q)/(1-p))^(1-f) has mean at most 1 for every such P(flip), as it grows with f. The
    mean over alternatives of twice to 1,024 times the floor is an e-value, cut at ``CAP``.

    Args:
        gap, flip: as for ``flip_log_likelihood``.
        prompts: ``[N]`` whole numbers 0 … K-1, each present.
        floor: nats, above 0.

    Returns:
        ``[K]`` e-values in [0, CAP].

    Raises:
        StatisticsError: as for ``flip_log_likelihood``; a floor that is not positive.
    """
    g, f = _checked(gap, flip)
    inside(floor, 0, 1e6, "floor")
    codes = np.asarray(prompts, dtype=np.int64)
    if not g.size:
        return np.ones(0)
    wider = floor * 2.0 ** np.arange(1, 11)
    table = flip_log_likelihood(g, f, np.concatenate([[floor], wider]))
    ratio = table[:, 1:] - table[:, :1]
    sums = np.zeros((int(codes.max()) + 1, wider.size))
    np.add.at(sums, codes, ratio)
    out: Floats = np.minimum(np.exp(np.minimum(logsumexp(sums, axis=1), 50.0)) / wider.size, CAP)
    return out


def scale_e_values(values: ArrayLike, centre: float, spread: float) -> Floats:
    """E-value of each prompt's log root-mean-square difference against "at most as in calibration".

    The hypothesis is a normal distribution around at most ``centre``; the alternatives lie 0.5 to
    4 above it (1.6 to 55 times as much). The likelihood ratio grows with the value, so its mean is
    at most 1 under every smaller centre too.

    Args:
        values: ``[K]`` natural logarithms.
        centre, spread: of the hypothesis; spread above 0.

    Returns:
        ``[K]`` e-values in [0, CAP].

    Raises:
        StatisticsError: a value that is no number, a spread that is not positive.
    """
    x = np.asarray(values, dtype=np.float64)
    inside(spread, 0, 1e6, "spread")
    if not np.isfinite(x).all():
        raise StatisticsError("a difference of log-probabilities is no number")
    shifts = np.array([0.5, 1.0, 2.0, 4.0])
    z = (x - centre)[:, None]
    ratio = (z * shifts - shifts**2 / 2) / spread**2
    out: Floats = np.minimum(np.exp(np.minimum(logsumexp(ratio, axis=1), 50.0)) / 4, CAP)
    return out


def bet_log_e(e_values: ArrayLike) -> Floats:
    """Running log e-value of prompts in their order: a mixture over how much is bet on each.

    prod (1 - b + b e_j) for b in (.1, .35, 1), averaged: small bets find a mixture, where only
    some prompts speak against the hypothesis; the bet of all finds a pure alternative.

    Args:
        e_values: ``[K]``, each an e-value given those before it.

    Returns:
        ``[K]``; a value of ln(1/alpha) or more rejects at alpha, whenever one looks (Ville).
    """
    e = np.asarray(e_values, dtype=np.float64)
    bets = np.asarray(BETS)
    with np.errstate(divide="ignore"):
        wealth = np.cumsum(np.log(1 - bets + bets * e[:, None]), axis=0)
    out: Floats = logsumexp(wealth, axis=1) - math.log(bets.size)
    return out
