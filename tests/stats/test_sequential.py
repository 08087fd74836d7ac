from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate

from evalq import stats
from evalq.errors import StatisticsError


@given(st.integers(0, 40), st.integers(0, 40))
@settings(max_examples=60, deadline=None)
def test_e_value_is_the_integral(b: int, c: int) -> None:
    integral, _ = integrate.quad(lambda q: q**b * (1 - q) ** c, 0.5, 1.0, epsabs=0, limit=200)
    expected = 2.0 ** (b + c + 1) * integral
    assert float(stats.flip_e_value(b, c)) == pytest.approx(expected, rel=1e-6)


def test_e_value_is_a_martingale_at_one_half() -> None:
    """E[E(next)] = E(now) when flips are fair: exactly, by its own recursion."""
    b, c = np.meshgrid(np.arange(30), np.arange(30))
    now = stats.flip_e_value(b, c)
    after = (stats.flip_e_value(b + 1, c) + stats.flip_e_value(b, c + 1)) / 2
    assert np.allclose(now, after, rtol=1e-9)


def test_looking_after_every_item_keeps_alpha() -> None:
    rng = np.random.default_rng(7)
    wrong = 0
    for _ in range(2000):
        u = rng.random(1000)
        d = np.where(u < 0.05, -1.0, np.where(u < 0.10, 1.0, 0.0))
        wrong += stats.monitor(d).loss_at is not None
    assert wrong / 2000 <= 0.05


def test_a_loss_at_the_margin_rarely_passes_early() -> None:
    rng = np.random.default_rng(8)
    wrong = 0
    for _ in range(1000):
        u = rng.random(1000)
        d = np.where(u < 0.06, -1.0, np.where(u < 0.08, 1.0, 0.0))
        wrong += stats.monitor(d, margin=0.04).pass_at is not None
    assert wrong / 1000 <= 0.05


def test_it_finds_what_is_there() -> None:
    rng = np.random.default_rng(9)
    u = rng.random(4000)
    broken = stats.monitor(np.where(u < 0.2, -1.0, 0.0))
    assert broken.loss_at is not None
    assert broken.loss_at < 100
    assert broken.loss_p < 0.05
    fine = np.where(u < 0.01, -1.0, np.where(u < 0.02, 1.0, 0.0))
    kept = stats.monitor(fine, margin=0.05)
    assert kept.pass_at is not None
    assert kept.loss_at is None


def test_clusters_are_one_unit_each() -> None:
    d = np.array([-1.0, -1.0, 0.0, 1.0, 1.0, -1.0])
    found = stats.monitor(d, ["a", "a", "a", "b", "b", "c"])
    assert (found.units, found.lost, found.gained) == (3, 2, 1)


def test_log_scale_survives_long_runs() -> None:
    found = stats.monitor(np.full(30_000, -1.0), margin=0.01)
    assert found.loss_e == math.inf
    assert found.loss_p == 0.0
    assert found.pass_at is None
    assert stats.monitor(np.ones(5000)).loss_e == 1.0


def test_bad_input() -> None:
    for call in (
        lambda: stats.monitor([]),
        lambda: stats.monitor([0.0, math.nan]),
        lambda: stats.monitor([0.0], alpha=0.0),
        lambda: stats.monitor([0.0, 2.0], margin=0.1),
        lambda: stats.monitor([0.0], margin=0.0),
        lambda: stats.flip_e_value(-1, 0),
        lambda: stats.flip_e_value(math.nan, 0),
    ):
        with pytest.raises(StatisticsError):
            call()
