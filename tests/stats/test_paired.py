"""Published tables, scipy, statsmodels, an independent Tango solver, and properties."""

from __future__ import annotations

import math

import numpy as np
import pytest
import statsmodels.api as sm
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize
from scipy import stats as sps
from statsmodels.stats.contingency_tables import mcnemar

from evalq import stats
from evalq.errors import StatisticsError


@st.composite
def counts(draw: st.DrawFn, most: int = 400) -> tuple[int, int, int]:
    n = draw(st.integers(1, most))
    b = draw(st.integers(0, n))
    c = draw(st.integers(0, n - b))
    return b, c, n


def test_fagerland_table_1() -> None:
    b, c, n = 1, 7, 21
    assert round(float(stats.mcnemar_exact(b, c)), 4) == 0.0703
    assert round(float(stats.mcnemar_midp(b, c)), 4) == 0.0391
    assert round(stats.mcnemar_chi2(b, c).p, 4) == 0.0339
    assert round(stats.mcnemar_chi2(b, c, corrected=True).p, 4) == 0.0771
    low, high = stats.tango_interval(b, c, n, 0.95)
    assert (round(-float(high), 3), round(-float(low), 3)) == (-0.517, -0.026)


@pytest.mark.parametrize(
    ("b", "c", "n", "confidence", "expected"),
    [(25, 28, 618, 0.90, (-0.0148, 0.0247)), (60, 20, 1000, 0.95, (-0.0584, -0.0231))],
)
def test_prop_cis(b: int, c: int, n: int, confidence: float, expected: tuple[float, float]) -> None:
    result = stats.paired_binary(b, c, n, confidence)
    assert tuple(round(x, 4) for x in result.ci) == expected
    assert result.delta == (c - b) / n


def test_agresti_approval() -> None:
    plain, careful = stats.mcnemar_chi2(150, 86), stats.mcnemar_chi2(150, 86, corrected=True)
    assert round(plain.statistic, 3) == 17.356
    assert f"{plain.p:.3e}" == "3.099e-05"
    assert round(careful.statistic, 3) == 16.818
    assert f"{careful.p:.3e}" == "4.115e-05"


def _tango_by_likelihood(b: int, c: int, n: int, z: float) -> tuple[float, float]:
    """Restricted MLE by numerical maximization, bounds by Brent: shares nothing with our code."""

    def score(d: float) -> float:
        low, high = max(0.0, -d), (1 - d) / 2

        def minus_log(q: float) -> float:
            total = 0.0
            for count, p in ((b, q), (c, q + d), (n - b - c, 1 - 2 * q - d)):
                if count:
                    total -= count * math.log(max(p, 1e-300))
            return total

        q = optimize.minimize_scalar(
            minus_log, bounds=(low, high), method="bounded", options={"xatol": 1e-13}
        ).x
        return (c - b - n * d) / math.sqrt(n * (2 * q + d * (1 - d)))

    point = (c - b) / n
    return (
        optimize.brentq(lambda d: score(d) - z, -1 + 1e-9, point),
        optimize.brentq(lambda d: score(d) + z, point, 1 - 1e-9),
    )


@pytest.mark.parametrize(
    ("b", "c", "n"), [(1, 7, 21), (3, 2, 50), (10, 10, 100), (40, 5, 300), (2, 30, 64)]
)
def test_tango_against_numerical_likelihood(b: int, c: int, n: int) -> None:
    ours = stats.tango_interval(b, c, n, 0.95)
    theirs = _tango_by_likelihood(b, c, n, float(sps.norm.ppf(0.975)))
    assert np.allclose([float(x) for x in ours], theirs, atol=2e-5)


@given(counts())
@settings(max_examples=150, deadline=None)
def test_tango_inverts_its_own_score(table: tuple[int, int, int]) -> None:
    b, c, n = table
    low, high = (float(x) for x in stats.tango_interval(b, c, n, 0.90))
    delta = (c - b) / n
    assert -1 <= low <= delta <= high <= 1
    z = float(sps.norm.ppf(0.95))
    if low > -1 + 1e-9:
        assert float(stats.tango_z(b, c, n, low)) == pytest.approx(z, abs=1e-5)
    if high < 1 - 1e-9:
        assert float(stats.tango_z(b, c, n, high)) == pytest.approx(-z, abs=1e-5)


@given(counts())
@settings(max_examples=100, deadline=None)
def test_swapping_the_variants_mirrors_the_result(table: tuple[int, int, int]) -> None:
    b, c, n = table
    there, back = stats.paired_binary(b, c, n), stats.paired_binary(c, b, n)
    assert there.ci == pytest.approx((-back.ci[1], -back.ci[0]), abs=1e-9)
    assert there.p_two_sided_midp == back.p_two_sided_midp


@given(counts(200), st.integers(2, 5))
@settings(max_examples=80, deadline=None)
def test_more_items_at_the_same_rates_narrow_the_interval(
    table: tuple[int, int, int], k: int
) -> None:
    b, c, n = table
    small, large = stats.paired_binary(b, c, n).ci, stats.paired_binary(k * b, k * c, k * n).ci
    assert large[1] - large[0] <= small[1] - small[0] + 1e-9


@given(counts(), st.floats(0.55, 0.9), st.floats(0.01, 0.09))
@settings(max_examples=60, deadline=None)
def test_more_confidence_widens(table: tuple[int, int, int], level: float, more: float) -> None:
    narrow = stats.paired_binary(*table, level).ci
    wide = stats.paired_binary(*table, level + more).ci
    assert wide[0] <= narrow[0] + 1e-12
    assert wide[1] >= narrow[1] - 1e-12


@given(st.integers(0, 300), st.integers(0, 300))
@settings(max_examples=100, deadline=None)
def test_mcnemar_against_scipy(b: int, c: int) -> None:
    worse = sps.binomtest(b, b + c, 0.5, "greater").pvalue if b + c else 1.0
    assert float(stats.mcnemar_worse(b, c)) == pytest.approx(worse, rel=1e-9)
    both = sps.binomtest(b, b + c, 0.5).pvalue if b + c else 1.0
    assert float(stats.mcnemar_exact(b, c)) == pytest.approx(both, rel=1e-9)
    k, m = min(b, c), b + c
    midp = min(1.0, 2 * sps.binom.cdf(k, m, 0.5) - sps.binom.pmf(k, m, 0.5))
    assert float(stats.mcnemar_midp(b, c)) == pytest.approx(midp, rel=1e-7, abs=1e-300)


def test_mcnemar_against_statsmodels() -> None:
    for b, c in ((150, 86), (3, 11), (20, 20)):
        table = [[794, b], [c, 570]]
        for corrected in (False, True):
            theirs = mcnemar(table, exact=False, correction=corrected)
            ours = stats.mcnemar_chi2(b, c, corrected)
            if b != c:  # statsmodels corrects |b - c| = 0 to 1
                assert ours.statistic == pytest.approx(theirs.statistic)
                assert ours.p == pytest.approx(theirs.pvalue)


@pytest.mark.parametrize("shared", [False, True])
def test_paired_mean_against_statsmodels(shared: bool) -> None:
    rng = np.random.default_rng(5)
    clusters = rng.integers(0, 40, 300) if shared else np.arange(300)
    d = rng.normal(-0.02, 0.2, 300) + rng.normal(0, 0.1, 400)[clusters]
    model = sm.OLS(d, np.ones(300))
    fit = (
        model.fit(cov_type="cluster", cov_kwds={"groups": clusters}, use_t=True)
        if shared
        else model.fit()
    )
    ours = stats.paired_mean(d, clusters if shared else None, 0.90)
    assert ours.delta == pytest.approx(fit.params[0])
    assert ours.ci == pytest.approx(tuple(fit.conf_int(0.10)[0]), rel=1e-9)
    assert ours.p_two_sided_midp == pytest.approx(fit.pvalues[0], rel=1e-8)
    half = fit.pvalues[0] / 2
    assert ours.p_worse == pytest.approx(half if fit.params[0] < 0 else 1 - half, rel=1e-8)


def test_paired_mean_counts_flips_and_clusters() -> None:
    result = stats.paired_mean([-1, 0, 0, 1, -1, 0], ["a", "a", "b", "b", "c", "c"])
    assert (result.lost, result.gained, result.items, result.clusters) == (2, 1, 6, 3)
    assert any("clusters" in w for w in result.warnings)
    assert any("flips" in w for w in result.warnings)


def test_no_difference_at_all_is_not_certainty() -> None:
    result = stats.paired_mean(np.zeros(60), np.repeat(np.arange(20), 3))
    independent = stats.paired_binary(0, 0, 20)
    assert result.ci == independent.ci
    assert result.ci[0] < -0.05
    assert result.p_worse == 1.0


def test_a_constant_difference_warns() -> None:
    result = stats.paired_mean(np.full(40, -0.25))
    assert result.ci == (-0.25, -0.25)
    assert any("no width" in w for w in result.warnings)


@given(st.permutations(list(range(30))))
@settings(max_examples=30, deadline=None)
def test_the_order_of_items_changes_nothing(order: list[int]) -> None:
    rng = np.random.default_rng(1)
    d, g = rng.normal(size=30), rng.integers(0, 7, 30)
    there, back = stats.paired_mean(d, g), stats.paired_mean(d[order], g[order])
    assert there.delta == back.delta
    assert there.ci == pytest.approx(back.ci, rel=1e-12)


def test_clusters_of_one_are_independent_items() -> None:
    d = np.array([-1.0] * 12 + [1.0] * 5 + [0.0] * 283)
    there, back = stats.paired_clustered(d, np.arange(300)), stats.paired_binary(12, 5, 300)
    assert there.delta == back.delta
    assert there.ci == pytest.approx(back.ci, abs=3e-4)  # t(299) for z
    assert there.p_worse == pytest.approx(back.p_worse, abs=0.02)


def test_copies_of_items_add_nothing() -> None:
    rng = np.random.default_rng(6)
    d = rng.choice([-1.0, 0.0, 1.0], 200, p=[0.08, 0.87, 0.05])
    alone = stats.paired_clustered(d, np.arange(200))
    copied = stats.paired_clustered(np.repeat(d, 5), np.repeat(np.arange(200), 5))
    assert copied.ci == pytest.approx(alone.ci, abs=2e-4)


def test_clustered_score_interval_keeps_its_level_where_t_does_not() -> None:
    """True loss at the margin of 2 pp, 2 % flips, 100 clusters of 4 with shared luck."""
    rng = np.random.default_rng(12)
    codes = np.repeat(np.arange(100), 4)
    score = t = 0
    for _ in range(500):
        x = math.sqrt(0.3) * rng.normal(size=100)[codes] + math.sqrt(0.7) * rng.normal(size=400)
        d = -(x < sps.norm.ppf(0.02)).astype(float)
        score += stats.paired_clustered(d, codes).ci[0] > -0.02
        t += stats.paired_mean(d, codes).ci[0] > -0.02
    assert score / 500 <= 0.05 + 0.03
    assert t / 500 > 0.07


def test_clustered_refuses_what_is_not_right_or_wrong() -> None:
    with pytest.raises(StatisticsError, match="paired_mean"):
        stats.paired_clustered([0.5, -1.0, 0.0], [1, 2, 3])
    with pytest.raises(StatisticsError, match="design effect"):
        stats.clustered_tango(1, 1, 10, 5, 0.5)
    with pytest.raises(StatisticsError, match="clusters"):
        stats.clustered_tango(1, 1, 10, 1, 1.0)
    nothing = stats.paired_clustered(np.zeros(60), np.repeat(np.arange(20), 3))
    assert nothing.ci[0] < stats.paired_binary(0, 0, 20).ci[0]


def test_edges() -> None:
    nothing = stats.paired_binary(0, 0, 100)
    z2 = float(sps.norm.ppf(0.95)) ** 2
    assert nothing.ci == pytest.approx((-z2 / (100 + z2), z2 / (100 + z2)))
    assert (nothing.p_worse, nothing.p_two_sided_midp, nothing.delta) == (1.0, 1.0, 0.0)
    everything = stats.paired_binary(50, 0, 50)
    assert everything.ci[0] == -1.0
    assert everything.delta == -1.0
    assert everything.ci[1] < -0.89
    halves = stats.paired_binary(25, 25, 50)
    assert halves.ci[0] == pytest.approx(-halves.ci[1])
    one = stats.paired_binary(1, 0, 1)
    assert one.ci[0] == -1.0
    assert any("cannot occur" in w for w in one.warnings)
    big = stats.paired_binary(90_000, 90_500, 2_000_000)
    assert big.ci[0] < big.delta < big.ci[1]


@pytest.mark.parametrize(
    ("b", "c", "n"),
    [(0, 0, 0), (-1, 0, 5), (0, -1, 5), (3, 3, 5), (1, 1, -2), (math.nan, 0, 5), (0.5, 0, 5),
     (0, 0, math.inf)],
)  # fmt: skip
def test_counts_that_cannot_be(b: float, c: float, n: float) -> None:
    with pytest.raises(StatisticsError):
        stats.paired_binary(b, c, n)  # type: ignore[arg-type]


@pytest.mark.parametrize("confidence", [0.0, 1.0, -0.9, 90.0, math.nan])
def test_confidence_out_of_range(confidence: float) -> None:
    with pytest.raises(StatisticsError, match="confidence"):
        stats.paired_binary(1, 1, 10, confidence)
    with pytest.raises(StatisticsError, match="confidence"):
        stats.paired_mean([1.0, 0.0, -1.0], None, confidence)


def test_values_that_cannot_be() -> None:
    for bad in ([], [1.0], [math.nan, 0.0], [[1.0, 2.0]], ["a", "b"], [math.inf, 0.0]):
        with pytest.raises(StatisticsError):
            stats.paired_mean(bad)
    with pytest.raises(StatisticsError, match="labels"):
        stats.paired_mean([1.0, 0.0], ["a"])
    with pytest.raises(StatisticsError, match="one cluster"):
        stats.paired_mean([1.0, 0.0], ["a", "a"])
    with pytest.raises(StatisticsError, match="label"):
        stats.paired_mean([1.0, 0.0, 0.0], np.array(["a", None, "b"], dtype=object))
    with pytest.raises(StatisticsError, match="flips"):
        stats.mcnemar_chi2(0, 0)


def _coverage(n: int, rate: float, skew: float, releases: int = 4000) -> float:
    """Share of 95 % intervals that hold the true difference."""
    rng = np.random.default_rng([n, int(rate * 1000), int(skew * 100)])
    p_lost, p_gained = rate * skew, rate * (1 - skew)
    draws = rng.multinomial(n, [p_lost, p_gained, 1 - rate], releases)
    low, high = stats.tango_interval(draws[:, 0], draws[:, 1], n, 0.95)
    truth = p_gained - p_lost
    return float(((low <= truth) & (truth <= high)).mean())


@pytest.mark.parametrize("n", [50, 200, 2000])
@pytest.mark.parametrize("rate", [0.01, 0.05, 0.3])
def test_coverage(n: int, rate: float) -> None:
    covered = _coverage(n, rate, 0.5)
    assert covered >= 0.935 - 0.008
    if n * rate >= 10:
        assert 0.94 - 0.008 <= covered <= 0.97 + 0.008
