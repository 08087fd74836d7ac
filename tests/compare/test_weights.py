"""Weights of tasks act in slices above and overall, and are said."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from evalq.compare import compare, load_run
from evalq.frontier import frontier
from evalq.report.render import render
from tests.synthetic import change_info, write_run

SLICES = ("math/a", "math/b", "text/c")
VARIANT = "rtn-w4-g128"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    loss = {VARIANT: {"math/a": 0.4}}
    return write_run(
        tmp_path / "run", variants=(VARIANT,), items=80, slices=SLICES, loss=loss, seed=4
    )


def weighted(run: Path, **weights: float) -> Path:
    info = load_run(run).info
    suites = [dict(s) for s in info["suites"]]
    for suite in suites:
        suite["tasks"] = [{**t, "weight": weights.get(t["task"], 1.0)} for t in suite["tasks"]]
    return change_info(run, suites=suites)


def test_the_aggregate_is_the_weighted_mean(run: Path) -> None:
    plain = compare(load_run(run), VARIANT)
    found = compare(load_run(weighted(run, t_math_a=3.0)), VARIANT)
    a, b, c = (plain.slices[s].delta for s in SLICES)
    assert a < -0.1
    assert b == c == 0
    assert plain.overall is not None
    assert found.overall is not None
    assert plain.overall.delta == pytest.approx(a / 3)
    assert found.overall.delta == pytest.approx(3 * a / 5)
    assert found.slices["math"].delta == pytest.approx(3 * a / 4)
    assert found.slices["math/a"] == plain.slices["math/a"]  # alike within: the test is the same
    low, high = found.overall.ci or (0.0, 0.0)
    assert low < found.overall.delta < high < 0
    assert found.overall.p_worse is not None
    assert found.overall.p_worse < 0.001
    points = {p.variant: p.quality for p in frontier(load_run(run)).points}
    assert points[VARIANT] - points["parent"] == pytest.approx(found.overall.delta)


def test_no_flip_is_no_certainty(run: Path) -> None:
    weights = weighted(run, t_math_b=3.0)
    same = compare(load_run(weights), "parent").overall
    assert same is not None
    assert same.ci is not None
    assert same.ci[0] < -0.005
    assert same.p_worse == 1.0


def test_the_interval_holds_the_truth() -> None:
    import pandas as pd

    from evalq.compare import slice_result

    rng = np.random.default_rng(0)
    weight = np.repeat([3.0, 1.0], 200)
    truth = (3 * -0.09 + 1 * -0.01) / 4
    inside = 0
    for _ in range(300):
        lost = rng.random(400) < np.repeat([0.10, 0.02], 200)
        gained = ~lost & (rng.random(400) < np.repeat([0.01 / 0.9, 0.01 / 0.98], 200))
        frame = pd.DataFrame(
            {
                "baseline_score": np.where(gained, 0.0, 1.0),
                "variant_score": np.where(lost, 0.0, 1.0),
                "cluster": np.arange(400),
                "weight": weight,
            }
        )
        low, high = slice_result("s", frame, False, 0.90).ci or (0.0, 0.0)
        inside += low <= truth <= high
    assert 0.85 <= inside / 300 <= 0.95


def test_the_report_says_so(run: Path) -> None:
    page = render(run).read_text(encoding="utf-8")
    assert "weighs every item alike" in page
    page = render(weighted(run, t_math_a=2.5)).read_text(encoding="utf-8")
    assert "t_math_a 2.5; all others 1" in page
    assert "weighs every item alike" not in page
