"""Requests that were routed to two models: the share of each, with an interval."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import logsumexp
from scipy.stats import chi2

from evalq.errors import StatisticsError
from evalq.stats._check import inside

__all__ = ["MixtureFit", "fit_mixture", "mixture_interval"]

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class MixtureFit:
    """Shares of the components by maximum likelihood.

    Args:
        weights: ``[K]``, summing to 1.
        log_likelihood: of all requests, in nats.
    """

    weights: Floats
    log_likelihood: float


def fit_mixture(log_likelihoods: ArrayLike, steps: int = 200) -> MixtureFit:
    """Shares of K known components, each request drawn whole from one (EM).

    Args:
        log_likelihoods: ``[N, K]`` of each request under each component, in nats.
        steps: at most so many of EM.

    Raises:
        StatisticsError: no requests, or a value that is no number.
    """
    table = np.asarray(log_likelihoods, dtype=np.float64)
    if table.ndim != 2 or not table.size or np.isnan(table).any():
        raise StatisticsError("log-likelihoods must be a table of requests by components")
    count = table.shape[1]
    weights = np.full(count, 1 / count)
    before = -np.inf
    for _ in range(steps):
        with np.errstate(divide="ignore"):
            joint = table + np.log(weights)
        total = logsumexp(joint, axis=1, keepdims=True)
        value = float(total.sum())
        weights = np.exp(joint - total).mean(0)
        if value - before < 1e-6:
            break
        before = value
    return MixtureFit(weights, value)


def mixture_interval(
    first: ArrayLike, second: ArrayLike, confidence: float = 0.95
) -> tuple[float, float, float]:
    """Share of the second of two components: estimate and profile-likelihood interval.

    The interval holds all shares whose log-likelihood is within chi2(1)/2 of the largest.

    Args:
        first, second: ``[N]`` log-likelihoods of each request under the two, in nats.
        confidence: of the interval.

    Returns:
        ``(share, low, high)``.

    Raises:
        StatisticsError: no requests, or vectors that do not fit.
    """
    a, b = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if a.ndim != 1 or a.shape != b.shape or not a.size:
        raise StatisticsError("a share needs two vectors of log-likelihoods of one length")
    inside(confidence, 0, 1, "confidence")
    shares = np.linspace(0, 1, 1001)
    with np.errstate(divide="ignore"):
        value = np.logaddexp(
            a[:, None] + np.log1p(-shares)[None, :], b[:, None] + np.log(shares)[None, :]
        ).sum(0)
    best = int(value.argmax())
    kept = np.flatnonzero(value >= value[best] - float(chi2.ppf(confidence, 1)) / 2)
    return float(shares[best]), float(shares[kept[0]]), float(shares[kept[-1]])
