from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from statsmodels.stats.proportion import proportion_confint

from evalq import stats
from evalq.errors import StatisticsError


@given(st.integers(1, 500), st.data(), st.sampled_from([0.8, 0.9, 0.95, 0.99]))
@settings(max_examples=100, deadline=None)
def test_against_statsmodels(n: int, data: st.DataObject, confidence: float) -> None:
    k = data.draw(st.integers(0, n))
    theirs = proportion_confint(k, n, 1 - confidence, method="wilson")
    assert stats.wilson(k, n, confidence) == pytest.approx(tuple(map(float, theirs)), abs=1e-12)


def test_newcombe_1998() -> None:
    """Table I of Newcombe 1998: Wilson's interval without continuity correction."""
    for (k, n), expected in {
        (81, 263): (0.2553, 0.3662),
        (15, 148): (0.0624, 0.1605),
        (0, 20): (0.0, 0.1611),
        (1, 29): (0.0061, 0.1718),
    }.items():
        assert tuple(round(x, 4) for x in stats.wilson(k, n)) == expected


@pytest.mark.parametrize(("k", "n"), [(0, 0), (-1, 5), (6, 5), (0.5, 5), (math.nan, 5)])
def test_bad_input(k: float, n: float) -> None:
    with pytest.raises(StatisticsError):
        stats.wilson(k, n)  # type: ignore[arg-type]
