"""The gate under simulated releases, small; `make bench-gate` does it with ten thousand."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.gate_calibration import (
    Shape,
    draw,
    exact_coverage,
    measure,
    simulate,
)
from evalq import stats


def test_the_vectorized_measure_is_the_library() -> None:
    shape = Shape(40, 5)
    rng = np.random.default_rng(3)
    d = draw(rng, shape, np.full((6, 2), 0.1), np.full((6, 2), 0.02))
    found = measure(d, shape.clusters)
    clusters = np.repeat(np.arange(40), 5)
    for at in np.ndindex(6, 2):
        one = stats.paired_clustered(d[at].ravel(), clusters)
        assert (found["low"][at], found["high"][at]) == pytest.approx(one.ci, abs=1e-12)
        assert found["p"][at] == pytest.approx(one.p_worse)


def test_flips_and_losses_are_those_asked_for() -> None:
    d = draw(np.random.default_rng(0), Shape(), np.full((200, 8), 0.08), np.full((200, 8), 0.02))
    assert float(np.abs(d).mean()) == pytest.approx(0.08, abs=0.003)
    assert float(d.mean()) == pytest.approx(-0.02, abs=0.002)
    bunched = d.sum(-1).var() / (4 * d.var())
    assert bunched > 1.2


def test_false_fails_and_false_passes() -> None:
    shape, margins, releases = Shape(), (0.01, 0.02), 400
    slack = 3 * (0.05 * 0.95 / releases) ** 0.5
    null = simulate(1, releases, shape, margins, 0.0)
    assert null.failed <= 0.05 + slack
    lossy = simulate(2, releases, shape, margins, 0.02)
    assert lossy.passed <= 0.05
    assert lossy.slice_passed <= 0.05 + slack
    broken = simulate(3, 50, shape, margins, 0.12)
    assert broken.failed > 0.95


def test_coverage_is_exact() -> None:
    """Against intervals, one by one, over draws from the same distribution."""
    exact = exact_coverage(200, 0.1, 0.5)
    draws = np.random.default_rng(0).multinomial(200, [0.05, 0.05, 0.9], 20_000)
    low, high = stats.tango_interval(draws[:, 0], draws[:, 1], 200, 0.95)
    assert exact == pytest.approx(float(((low <= 0) & (high >= 0)).mean()), abs=0.005)
    assert exact_coverage(50, 0.01, 0.5) >= 0.935
