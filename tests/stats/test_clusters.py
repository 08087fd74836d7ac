from __future__ import annotations

import math

import numpy as np
import pytest
import statsmodels.api as sm

from evalq import stats
from evalq.errors import StatisticsError


def test_llama_cpp_q4_k_m() -> None:
    """1.028160 ± .000723: a log ratio with that mean and error must print as that ratio."""
    log_mean = math.log(1.028160)
    log_error = 0.000723 / 1.028160
    rng = np.random.default_rng(0)
    d = rng.normal(size=1000)
    d = (d - d.mean()) / d.std(ddof=1) * log_error * math.sqrt(1000) + log_mean
    base = rng.gamma(1.0, 2.0, 1000)
    result = stats.perplexity_ratio(base, base + d)
    assert f"{result.mean:.6f}" == "1.028160"
    assert f"{result.standard_error:.6f}" == "0.000723"
    assert result.ci[0] < 1.02816 < result.ci[1]


@pytest.mark.parametrize("groups", [2, 12, 60])
def test_against_statsmodels(groups: int) -> None:
    rng = np.random.default_rng(groups)
    codes = np.concatenate([np.arange(groups), rng.integers(0, groups, 240)])
    x = rng.gamma(2.0, 1.0, codes.size) + rng.normal(size=groups)[codes]
    fit = sm.OLS(x, np.ones_like(x)).fit(cov_type="cluster", cov_kwds={"groups": codes}, use_t=True)
    ours = stats.clustered_mean(x, [f"doc{c}" for c in codes], 0.95)
    assert ours.mean == pytest.approx(fit.params[0], rel=1e-12)
    assert ours.standard_error == pytest.approx(fit.bse[0], rel=1e-10)
    assert ours.ci == pytest.approx(tuple(fit.conf_int(0.05)[0]), rel=1e-10)
    assert bool(ours.warnings) == (groups < 30)


def test_ratio_of_sums_is_the_mean_over_tokens() -> None:
    """Items with 3, 5 and 2 tokens give what their tokens give, one by one."""
    rng = np.random.default_rng(3)
    units = np.array([3, 5, 2, 4, 1])
    per_item = rng.normal(2.0, 0.1, 5)
    change = rng.normal(0.05, 0.02, 5)
    docs = np.array([0, 0, 1, 2, 3])
    summed = stats.perplexity_ratio(
        per_item * units, (per_item + change) * units, docs, units=units
    )
    tokens = stats.perplexity_ratio(
        np.repeat(per_item, units), np.repeat(per_item + change, units), np.repeat(docs, units)
    )
    assert summed.mean == pytest.approx(tokens.mean)
    assert summed.ci == pytest.approx(tokens.ci)


def test_one_sided_p() -> None:
    result = stats.clustered_mean(np.array([0.02, 0.05, 0.03, 0.04, 0.06]))
    low = stats.clustered_mean(np.array([0.02, 0.05, 0.03, 0.04, 0.06]), None, 0.9).ci[0]
    assert result.p_above(low) == pytest.approx(0.05)
    assert result.p_above(0.1) + result.p_below(0.1) == pytest.approx(1.0)


def test_distribution() -> None:
    values = np.arange(1, 101, dtype=float)
    found = stats.distribution(values, np.repeat(np.arange(50), 2))
    assert (found.median, found.p95, found.p99, found.max) == (50.5, 95.05, 99.01, 100.0)
    assert found.mean.mean == 50.5


def test_design_effect() -> None:
    rng = np.random.default_rng(0)
    single = rng.normal(size=400)
    assert stats.design_effect(single, None) == pytest.approx(1.0)
    copies = np.repeat(single[:100], 4)
    effect = stats.design_effect(copies, np.repeat(np.arange(100), 4))
    assert effect == pytest.approx(4.0, rel=0.02)
    assert stats.design_effect(np.zeros(5), None) == 1.0


def test_interval_covers_with_clusters_where_the_naive_one_does_not() -> None:
    rng = np.random.default_rng(11)
    codes = np.repeat(np.arange(50), 8)
    ours, naive = 0, 0
    for _ in range(600):
        x = rng.normal(size=50)[codes] + rng.normal(size=400)
        low, high = stats.clustered_mean(x, codes, 0.90).ci
        ours += low <= 0 <= high
        low, high = stats.clustered_mean(x, None, 0.90).ci
        naive += low <= 0 <= high
    assert 0.865 <= ours / 600 <= 0.935
    assert naive / 600 < 0.70


def test_bad_input() -> None:
    with pytest.raises(StatisticsError, match="finite"):
        stats.perplexity_ratio([1.0, math.nan], [1.0, 2.0])
    with pytest.raises(StatisticsError, match="against"):
        stats.perplexity_ratio([1.0, 2.0], [1.0])
    with pytest.raises(StatisticsError, match="units"):
        stats.clustered_mean([1.0, 2.0], None, 0.9, units=[1.0, 0.0])
    with pytest.raises(StatisticsError, match="exceeds"):
        stats.perplexity_ratio([0.0, 0.0], [2000.0, 2001.0])
