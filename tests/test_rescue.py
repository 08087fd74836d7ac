"""A failing slice rescued on the built-in parent, and what cannot be rescued."""

import json

import pytest

from evalq.errors import PlanError
from evalq.plan import parse_plan
from evalq.rescue import RescueRequest, rescue
from evalq.run import resolve_plan, run_plan

SLICE = "math/products/short"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rescue") / "run"
    plan = resolve_plan(
        {
            "variants": [{"method": "rtn", "bits": 2}, {"method": "rtn", "bits": 8}],
            "suites": ["builtin-math:builtin_products_short"],
            "limit": 20,
            "calibration": {"samples": 4, "length": 64},
            "fidelity": {"enabled": False},
            "control": {"enabled": False},
            "cost": {"enabled": False},
            "out": str(folder),
        }
    )
    return run_plan(parse_plan(plan.model_dump()))


def test_a_slice_comes_back_when_bits_are_spent_on_it(run):
    result = rescue(RescueRequest(run, "rtn-w2-g128", SLICE, 0.2, target_bits=8.5, steps=1))
    assert result.failed
    assert result.before.verdict(0.2).verdict == "fail"
    as_it_was, at_two, at_eight = result.trials
    assert as_it_was.widths == at_two.widths == {2: 56}
    assert at_eight.bits <= 8.5
    # Seen and fresh items share none, and are all of the slice.
    assert at_eight.seen.items + at_eight.fresh.items == 60
    assert 0 < at_eight.seen.items < 60
    assert at_two.seen.verdict(0.2).verdict == "fail"
    assert result.chosen == at_eight
    assert at_eight.fresh.verdict(0.2).verdict == "pass"
    assert at_two.fresh.verdict(0.2).verdict != "pass"
    assert result.rescued
    assert at_eight.bytes > result.before_bytes
    stored = json.loads((result.directory / "rescue.json").read_text())
    assert stored == json.loads(json.dumps(result.record()))
    assert stored["chosen"] == at_eight.variant


def test_a_slice_that_passes_is_left_alone(run):
    result = rescue(RescueRequest(run, "rtn-w8-g128", SLICE, 0.3))
    assert not result.failed
    assert result.trials == ()


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"variant": "rtn-w2"}, "no variant"),
        ({"slice": "math/product"}, "no slice"),
        ({"target_bits": 2.1}, "no more than"),
        ({"confirm": ("builtin-reasoning",)}, "no task of the slice"),
    ],
)
def test_what_cannot_be_done_is_refused(run, change, why):
    values = {"run": run, "variant": "rtn-w2-g128", "slice": SLICE, "margin": 0.05} | change
    with pytest.raises(PlanError, match=why):
        rescue(RescueRequest(**values))
