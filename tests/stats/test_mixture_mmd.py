"""Shares of a mixture, and equality of texts."""

from __future__ import annotations

import numpy as np
import pytest

from evalq.errors import StatisticsError
from evalq.stats.mixture import fit_mixture, mixture_interval
from evalq.stats.mmd import hamming_kernel, mmd_test


def requests(rng, share, count=60):
    """Log-likelihoods of requests that are mostly clear about their component."""
    second = rng.random(count) < share
    clear = rng.exponential(6.0, count)
    a = np.where(second, -clear, 0.0)
    b = np.where(second, 0.0, -clear)
    # Some prompts are answered alike by both.
    alike = rng.random(count) < 0.4
    a[alike] = b[alike] = 0.0
    return a, b


@pytest.mark.parametrize("share", [0.1, 0.25, 0.5])
def test_the_interval_covers_the_share(share):
    covered = 0
    for seed in range(200):
        a, b = requests(np.random.default_rng(seed), share)
        estimate, low, high = mixture_interval(a, b)
        assert low <= estimate <= high
        covered += low <= share <= high
    assert covered >= 180


def test_em_finds_the_same_share_as_the_profile():
    a, b = requests(np.random.default_rng(3), 0.3, 400)
    fit = fit_mixture(np.stack([a, b], axis=1))
    assert fit.weights.sum() == pytest.approx(1)
    assert fit.weights[1] == pytest.approx(mixture_interval(a, b)[0], abs=0.01)


def test_the_kernel_is_the_share_of_equal_places():
    kernel = hamming_kernel([[1, 2, 3, 4], [1, 2, 0, 0], [9, 9, 9, 9]])
    assert kernel.tolist() == [[1, 0.5, 0], [0.5, 1, 0], [0, 0, 1]]


def samples(rng, p, prompts=12, each=8, length=20):
    rows = rng.choice(4, size=(prompts * each, length), p=p)
    return rows, np.repeat(np.arange(prompts), each)


def test_the_statistic_is_that_of_the_published_package():
    tests = pytest.importorskip("model_equality_testing.tests")
    from model_equality_testing.distribution import CompletionSample

    rng = np.random.default_rng(0)
    x, p = samples(rng, [0.4, 0.3, 0.2, 0.1], prompts=3)
    y, q = samples(rng, [0.1, 0.2, 0.3, 0.4], prompts=3)
    theirs = tests.mmd_hamming(
        CompletionSample(prompts=p, completions=x, m=3),
        CompletionSample(prompts=q, completions=y, m=3),
    )
    # Theirs is the mean over pairs of one prompt, ours the sum over prompts.
    assert mmd_test(x, y, p, q, rng, 10).statistic == pytest.approx(3 * float(theirs))


def test_equal_distributions_are_rejected_no_more_often_than_alpha():
    even = [0.4, 0.3, 0.2, 0.1]
    p = []
    for seed in range(200):
        rng = np.random.default_rng(seed)
        x, a = samples(rng, even)
        y, b = samples(rng, even)
        p.append(mmd_test(x, y, a, b, rng, 99).p)
    assert min(p) >= 1 / 100
    assert np.mean(np.array(p) <= 0.05) <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 200)


def test_another_distribution_is_found():
    rng = np.random.default_rng(1)
    x, a = samples(rng, [0.4, 0.3, 0.2, 0.1])
    y, b = samples(rng, [0.1, 0.2, 0.3, 0.4])
    assert mmd_test(x, y, a, b, rng, 199).p == pytest.approx(1 / 200)


def test_what_cannot_be_tested_is_refused():
    rng = np.random.default_rng(0)
    x, a = samples(rng, [0.25] * 4)
    with pytest.raises(StatisticsError, match="no prompt"):
        mmd_test(x, x, a, a + 100, rng, 9)
    with pytest.raises(StatisticsError, match="one length"):
        mmd_test(x, x[:, :3], a, a, rng, 9)
    with pytest.raises(StatisticsError):
        fit_mixture(np.zeros((0, 2)))
    with pytest.raises(StatisticsError):
        mixture_interval([0.0], [0.0, 1.0])
