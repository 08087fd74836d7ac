"""Flips: the model of their noise, its scale, and the evidence against a noise floor."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import norm

from evalq.errors import StatisticsError
from evalq.stats.agreement import (
    CAP,
    OUTLIER,
    TAIL,
    bet_log_e,
    flip_log_likelihood,
    flip_probability,
    flip_scale,
    prompt_e_values,
    scale_e_values,
)


def simulate(rng, sigma, prompts=40, tokens=64):
    """Margins of a peaked model, and the flips that normal noise of that scale causes."""
    margin = rng.exponential(3.0, prompts * tokens)
    moved = rng.normal(0, sigma, margin.size)
    flip = moved > margin
    return margin, flip, np.repeat(np.arange(prompts), tokens)


def test_the_probability_is_the_stated_mixture():
    for gap, sigma in ((0.0, 0.1), (0.3, 0.1), (2.0, 0.5), (40.0, 0.1)):
        body = (1 - TAIL) * norm.cdf(-gap / sigma) + TAIL * norm.cdf(-gap / (8 * sigma))
        expected = min(0.5, (1 - OUTLIER) * body + OUTLIER)
        assert flip_probability(gap, sigma) == pytest.approx(expected)
    table = flip_log_likelihood([0.3, 0.3], [True, False], [0.1])
    assert np.exp(table).sum() == pytest.approx(1)


@pytest.mark.parametrize("sigma", [0.05, 0.4, 2.0])
def test_the_scale_is_found_and_its_interval_covers(sigma):
    covered, found = 0, []
    for seed in range(30):
        rng = np.random.default_rng(seed)
        estimate = flip_scale(*simulate(rng, sigma), rng, resamples=100)
        covered += estimate.ci[0] <= sigma <= estimate.ci[1]
        found.append(estimate.sigma)
    # The assumed tail is wider than this noise: the scale comes out a little low.
    assert covered >= 15
    assert np.median(found) == pytest.approx(sigma, rel=0.25)


def test_without_flips_the_scale_is_the_least_that_is_tried():
    rng = np.random.default_rng(0)
    estimate = flip_scale(np.full(100, 1.0), np.zeros(100, bool), np.arange(100) // 10, rng)
    assert estimate.sigma < 0.3
    assert estimate.flips == 0


@pytest.mark.parametrize("sigma", [0.0001, 0.05, 0.1])
def test_e_values_have_mean_at_most_one_up_to_the_floor(sigma):
    values = []
    for seed in range(400):
        rng = np.random.default_rng(seed)
        values += list(prompt_e_values(*simulate(rng, sigma, prompts=20, tokens=32), 0.1))
    mean, error = np.mean(values), np.std(values) / math.sqrt(len(values))
    assert mean <= 1 + 3 * error
    assert max(values) <= CAP


def test_the_chance_to_ever_reach_the_bar_is_at_most_alpha_and_there_is_power():
    ever = found = 0
    for seed in range(150):
        rng = np.random.default_rng(seed)
        ever += bet_log_e(prompt_e_values(*simulate(rng, 0.1), 0.1)).max() >= math.log(20)
        found += bet_log_e(prompt_e_values(*simulate(rng, 0.6), 0.1)).max() >= math.log(20)
    assert ever <= 0.05 * 150 + 3 * math.sqrt(0.05 * 0.95 * 150)
    assert found >= 145


def test_no_single_prompt_accuses():
    gap, flip = np.full(64, 20.0), np.ones(64, bool)
    e = prompt_e_values(gap, flip, np.zeros(64, int), 0.1)
    assert e[0] == CAP
    assert bet_log_e(e)[-1] < math.log(100)


def test_scale_e_values_are_e_values_and_grow():
    rng = np.random.default_rng(1)
    for centre in (-3.0, -2.0):
        values = scale_e_values(rng.normal(centre, 0.25, 20000), -2.0, 0.25)
        assert values.mean() <= 1 + 3 * values.std() / math.sqrt(values.size)
    assert scale_e_values([0.0], -2.0, 0.25)[0] == CAP
    grown = scale_e_values(np.linspace(-3, 0, 50), -2.0, 0.5)
    assert (np.diff(grown) >= 0).all()


def test_bets_are_a_mixture_of_three():
    e = [2.0, 0.5, 8.0]
    by_hand = np.mean([np.prod([1 - b + b * x for x in e]) for b in (0.1, 0.35, 1.0)])
    assert bet_log_e(e)[-1] == pytest.approx(math.log(by_hand))


@pytest.mark.parametrize(
    "call",
    [
        lambda: flip_log_likelihood([-1.0], [True], [0.1]),
        lambda: flip_log_likelihood([math.nan], [True], [0.1]),
        lambda: flip_log_likelihood([1.0, 2.0], [True], [0.1]),
        lambda: flip_scale([], [], [], np.random.default_rng(0)),
        lambda: prompt_e_values([1.0], [True], [0], 0.0),
        lambda: scale_e_values([math.inf], 0.0, 1.0),
    ],
)
def test_numbers_that_mean_nothing_are_refused(call):
    with pytest.raises(StatisticsError):
        call()
