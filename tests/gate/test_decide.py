from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import statsmodels.api as sm

from evalq.compare import Run, compare, load_run
from evalq.errors import ComparisonError, PlanError, StoreError
from evalq.gate import gate, gate_json, junit_xml, parse_policy
from evalq.gate.decide import correct, decide
from evalq.gate.result import OVERALL, Check, GateResult
from tests.gate.conftest import BAD, FAIR, GOOD, POLICY, SLICES, edit_info, edit_items
from tests.synthetic import write_run


def check_of(result: GateResult, slice_: str, metric: str) -> Check:
    (variant,) = result.variants
    (found,) = [c for c in variant.checks if (c.slice, c.metric) == (slice_, metric)]
    return found


def test_good_fair_and_bad(run: Run) -> None:
    loaded = parse_policy(POLICY, "P.yaml")
    verdicts = {v: gate(run, loaded, v) for v in (GOOD, FAIR, BAD)}
    assert (verdicts[GOOD].verdict, verdicts[GOOD].exit_code) == ("pass", 0)
    assert (verdicts[BAD].verdict, verdicts[BAD].exit_code) == ("fail", 1)
    assert any("overall: accuracy: fail" in r for r in verdicts[BAD].variants[0].reasons)
    together = gate(run, loaded)
    assert together.verdict == "fail"
    assert [v.variant for v in together.variants] == [GOOD, FAIR, BAD]


def test_numbers_are_those_of_the_comparison(run: Run) -> None:
    result = gate(run, parse_policy(POLICY), FAIR)
    expected = compare(run, FAIR, "parent", 0.90).slices["math"]
    found = check_of(result, "math", "accuracy")
    assert (found.estimate, found.ci, found.p) == (expected.delta, expected.ci, expected.p_worse)
    assert found.rule == "slices.math"
    assert found.line == 10
    overall = check_of(result, OVERALL, "accuracy")
    assert overall.count == 400 * len(SLICES)


def test_fidelity_against_statsmodels(run: Run) -> None:
    found = check_of(gate(run, parse_policy(POLICY), FAIR), OVERALL, "kl_mean")
    frame = run.fidelity[run.fidelity["variant"] == FAIR]
    groups = frame["document"].cat.codes.to_numpy()
    fit = sm.OLS(frame["kl"].to_numpy(), np.ones(len(frame))).fit(
        cov_type="cluster", cov_kwds={"groups": groups}, use_t=True
    )
    assert found.estimate == pytest.approx(fit.params[0])
    assert found.ci == pytest.approx(tuple(fit.conf_int(0.10)[0]))
    ratio = check_of(gate(run, parse_policy(POLICY), FAIR), OVERALL, "ppl_ratio")
    d = (frame["nll_variant"] - frame["nll_parent"]).to_numpy()
    fit = sm.OLS(d, np.ones(len(d))).fit(
        cov_type="cluster", cov_kwds={"groups": groups}, use_t=True
    )
    assert ratio.ci == pytest.approx(tuple(np.exp(fit.conf_int(0.10)[0])))


def test_roles(run: Run) -> None:
    text = "policy_version: 1\nmetrics: {{accuracy: {{margin_pp: 20, role: mandatory}}}}\nslices: {{math: {{margin_pp: 0.5, role: {}}}}}"  # noqa: E501
    outcomes = {
        role: gate(run, parse_policy(text.format(role)), BAD).verdict
        for role in ("mandatory", "supporting", "advisory")
    }
    assert outcomes == {"mandatory": "fail", "supporting": "fail", "advisory": "pass"}
    tight = text.replace("0.5", "0.01")
    outcomes = {
        role: gate(run, parse_policy(tight.format(role)), GOOD).verdict
        for role in ("mandatory", "supporting", "advisory")
    }
    assert outcomes == {"mandatory": "inconclusive", "supporting": "pass", "advisory": "pass"}


def test_inconclusive_says_how_many_items(run: Run) -> None:
    loaded = parse_policy("policy_version: 1\nslices: {math: {margin_pp: 0.2}}")
    result = gate(run, loaded, FAIR)
    found = check_of(result, "math", "accuracy")
    assert found.verdict in ("inconclusive", "fail")
    calm = gate(run, loaded, GOOD)
    assert check_of(calm, "math", "accuracy").items_needed > 800
    assert (calm.verdict, calm.exit_code) == ("inconclusive", 3)
    bold = parse_policy("policy_version: 1\non_inconclusive: 0\nslices: {math: {margin_pp: 0.2}}")
    assert gate(run, bold, GOOD).exit_code == 0


def test_small_slices_are_advisory_and_alone_certify_nothing(run: Run) -> None:
    loaded = parse_policy("policy_version: 1\nslices: {default: {margin_pp: 5, min_items: 5000}}")
    result = gate(run, loaded, GOOD)
    assert {c.role for c in result.variants[0].checks if c.metric == "accuracy"} == {"advisory"}
    assert result.verdict == "not certified"
    assert result.exit_code == 3
    assert result.variants[0].reasons == ("nothing mandatory was judged",)


def test_required(run: Run) -> None:
    base = "policy_version: 1\nmetrics: {accuracy: {margin_pp: 9}}\n"
    missing = gate(run, parse_policy(base + "require: [vision]"), GOOD)
    assert (missing.verdict, missing.exit_code) == ("not certified", 3)
    by_suite = gate(run, parse_policy(base + "require: [synthetic]"), GOOD)
    assert by_suite.verdict == "pass"
    few = base + "require: [math]\nslices: {math: {margin_pp: 9, min_items: 801}}"
    result = gate(run, parse_policy(few), GOOD)
    assert result.verdict == "not certified"
    assert "800 of the 801" in check_of(result, "math", "required").notes[0]
    ruled = base + "require: [vision]\nslices: {vision: {margin_pp: 1}}"
    assert gate(run, parse_policy(ruled), GOOD).verdict == "not certified"


def test_a_planned_slice_without_items_is_never_a_pass(tmp_path: Path) -> None:
    path = write_run(tmp_path / "r", variants=(GOOD,), items=200, slices=SLICES, loss={GOOD: 0.0})
    info = json.loads((path / "run.json").read_text())
    info["suites"][0]["tasks"].append({**info["suites"][0]["tasks"][0], "slice": "code/python"})
    (path / "run.json").write_text(json.dumps(info))
    loaded = parse_policy("policy_version: 1\nslices: {default: {margin_pp: 9}}")
    result = gate(load_run(path), loaded, GOOD)
    assert result.verdict == "not certified"
    assert check_of(result, "code/python", "accuracy").verdict == "not certified"


def test_negative_control(run: Run) -> None:
    fidelity = run.fidelity[run.fidelity["variant"] != run.control]
    without = replace(run, fidelity=fidelity)
    loaded = parse_policy(POLICY)
    result = gate(without, loaded, GOOD)
    assert (result.verdict, result.exit_code) == ("not certified", 3)
    assert any("negative control" in note for note in result.notes)
    relaxed = gate(without, parse_policy(POLICY + "negative_control: optional\n"), GOOD)
    assert relaxed.verdict == "pass"
    assert any("negative control" in note for note in relaxed.notes)
    noisy = run.fidelity.copy()
    mine = noisy["variant"] == run.control
    noisy.loc[mine, "kl"] = noisy.loc[mine, "kl"] + 0.2
    found = check_of(gate(replace(run, fidelity=noisy), loaded, GOOD), OVERALL, "negative_control")
    assert found.verdict == "not certified"
    assert "kl_mean" in found.notes[0]


def test_costs(run: Run) -> None:
    text = "policy_version: 1\nmetrics: {{{}}}\nslices: {{math: {{margin_pp: 50}}}}\n"

    def verdict(metric: str, source: Run = run) -> Check:
        result = gate(source, parse_policy(text.format(metric)), GOOD)
        return check_of(result, OVERALL, metric.split(":")[0])

    assert verdict("bytes_on_disk: {max_ratio: 0.7}").verdict == "pass"
    assert verdict("bytes_on_disk: {max: 1000000}").verdict == "fail"
    assert verdict("bits_per_weight: {max: 9.0}").verdict == "pass"
    slow = verdict("decode_tokens_per_second: {min: 10}")
    assert slow.verdict == "not certified"
    assert "dequantized" in slow.notes[0]
    assert verdict("peak_memory_bytes: {max: 1000000000}").verdict == "not certified"
    packed = run.costs.copy()
    packed["execution"] = packed["execution"].astype(str).replace("dequantized", "packed:cpu")
    native = replace(run, costs=packed)
    found = verdict("decode_tokens_per_second: {min: 10}", native)
    assert found.verdict == "pass"
    assert found.unit == "repeats"
    logs = np.log(packed[packed["variant"] == GOOD]["decode_tokens_per_second"].to_numpy())
    fit = sm.OLS(logs, np.ones(len(logs))).fit()
    assert found.ci == pytest.approx(tuple(np.exp(fit.conf_int(0.10)[0])))
    assert verdict("decode_tokens_per_second: {min: 10000}", native).verdict == "fail"
    assert verdict("decode_tokens_per_second: {min_ratio: 0.01}", native).verdict == "pass"
    assert verdict("decode_tokens_per_second: {min_ratio: 1.0}", native).verdict == "inconclusive"
    one = replace(native, costs=packed[packed["repeat"] == 0])
    assert verdict("decode_tokens_per_second: {min: 10}", one).verdict == "not certified"


def test_relative_margins_and_low_baselines(tmp_path: Path, run: Run) -> None:
    text = "policy_version: 1\nslices: {math: {margin_relative: 0.05, floor_pp: 0.5}}"
    found = check_of(gate(run, parse_policy(text), GOOD), "math", "accuracy")
    assert found.limit == pytest.approx(0.05 * found.baseline)
    path = write_run(tmp_path / "low", variants=(GOOD,), items=300, slices=("math/x",), loss={})
    edit_items(path, score=lambda old: [0.0] * (len(old) - 2) + [1.0, 1.0])
    low = check_of(
        gate(load_run(path), parse_policy(text.replace("0.5", "2")), GOOD), "math", "accuracy"
    )
    assert low.limit == 0.02
    assert low.verdict == "not certified"
    assert "could not even occur" in " ".join(low.notes)


def test_another_run_as_the_baseline(tmp_path: Path, run: Run) -> None:
    loaded = parse_policy("policy_version: 1\nmetrics: {accuracy: {margin_pp: 2}}")
    loss = {GOOD: 0.0, FAIR: 0.1}
    yesterday = load_run(
        write_run(tmp_path / "y", variants=(GOOD, FAIR), items=400, slices=SLICES, loss=loss)
    )
    worse = gate(yesterday, loaded, FAIR, run, FAIR)
    assert worse.verdict == "fail"
    assert worse.baseline_run == "synthetic"
    assert gate(run, loaded, GOOD, yesterday).verdict == "pass"
    mine = check_of(gate(run, loaded, GOOD, yesterday, "parent"), OVERALL, "accuracy")
    assert mine.estimate == check_of(gate(run, loaded, GOOD), OVERALL, "accuracy").estimate
    with pytest.raises(ComparisonError, match="no variant"):
        gate(run, loaded, BAD, yesterday)
    within = gate(run, loaded, FAIR, baseline_variant=GOOD)
    assert within.variants[0].baseline == GOOD


def test_bad_input(tmp_path: Path, run: Run) -> None:
    loaded = parse_policy(POLICY)
    with pytest.raises(ComparisonError, match="no variant") as missing:
        gate(run, loaded, "gptq-w4-g12")
    assert "gptq-w4-g128" in missing.value.hint
    with pytest.raises(ComparisonError, match="is the parent"):
        gate(run, loaded, "parent")
    with pytest.raises(PlanError, match="matches no slice"):
        gate(run, parse_policy("policy_version: 1\nslices: {visoin/*: {margin_pp: 1}}"))
    path = write_run(tmp_path / "r", variants=(GOOD,), items=30, slices=SLICES)
    edit_info(path, status="running")
    with pytest.raises(StoreError, match="not finished"):
        gate(load_run(path), loaded, GOOD)
    edit_info(path, status="done", format_version=99)
    with pytest.raises(StoreError, match="format version 99"):
        load_run(path)
    edit_info(path, format_version=0)
    with pytest.raises(StoreError, match="format version 0"):
        gate(load_run(path), loaded, GOOD)
    edit_info(path, format_version=1)
    edit_items(path, prompt_hash=lambda old: [*old[:-1], "0" * 64])
    with pytest.raises(ComparisonError, match="prompts differ"):
        gate(load_run(path), loaded, GOOD)


def test_runs_whose_prompts_differ(tmp_path: Path, run: Run) -> None:
    path = write_run(tmp_path / "r", variants=(GOOD,), items=400, slices=SLICES)
    edit_items(path, prompt_hash=lambda old: ["f" * 64] * len(old))
    with pytest.raises(ComparisonError, match="prompts differ"):
        gate(run, parse_policy(POLICY), GOOD, load_run(path))


def test_the_order_of_records_changes_nothing(tmp_path: Path, run_dir: Path) -> None:
    loaded = parse_policy(POLICY)
    shuffled = tmp_path / "shuffled"
    shuffled.mkdir()
    rng = np.random.default_rng(0)
    for name in ("items.parquet", "fidelity.parquet", "costs.parquet"):
        table = pq.read_table(run_dir / name)
        pq.write_table(table.take(rng.permutation(len(table))), shuffled / name)
    (shuffled / "run.json").write_bytes((run_dir / "run.json").read_bytes())
    there, back = gate(load_run(run_dir), loaded), gate(load_run(shuffled), loaded)
    assert [v.verdict for v in there.variants] == [v.verdict for v in back.variants]
    for one, two in zip(there.variants, back.variants, strict=True):
        for a, b in zip(one.checks, two.checks, strict=True):
            assert (a.slice, a.metric, a.verdict) == (b.slice, b.metric, b.verdict)
            if a.ci is not None:
                assert a.ci == pytest.approx(b.ci, rel=1e-9)


def test_gated_twice_gives_the_same_bytes(run_dir: Path) -> None:
    loaded = parse_policy(POLICY, "P.yaml")
    one, two = (gate(load_run(run_dir), loaded) for _ in "ab")
    assert gate_json(one) == gate_json(two)
    assert junit_xml(one) == junit_xml(two)
    assert json.loads(gate_json(one))["verdict"] == "fail"


def _check(slice_: str, p: float, verdict: str = "fail", role: str = "mandatory") -> Check:
    return Check(slice_, "accuracy", role, verdict, "r", 1, p=p, holm=True)  # type: ignore[arg-type]


def test_a_fail_has_to_survive_holm() -> None:
    checks = [_check(OVERALL, 0.9, "pass"), *(_check(f"s{i}", 0.5, "pass") for i in range(7))]
    lone = correct([*checks, _check("s7", 0.01)], 0.05)
    assert lone[-1].verdict == "inconclusive"
    assert "Holm" in lone[-1].notes[0]
    assert correct([*checks, _check("s7", 0.003)], 0.05)[-1].verdict == "fail"
    raw = replace(_check("s7", 0.01), holm=False)
    assert correct([*checks, raw], 0.05)[-1].verdict == "fail"
    pooled = correct([_check(OVERALL, 0.02), *checks[1:]], 0.05)
    assert pooled[0].verdict == "fail"
    assert pooled[0].p_adjusted == pytest.approx(0.04)


def test_decide_orders_and_never_passes_on_nothing() -> None:
    assert decide([]) == ("not certified", ("nothing mandatory was judged",))
    assert decide([_check("a", 0.5, "pass")]) == ("pass", ())
    mixed = [_check("a", 0.5, "inconclusive"), _check("b", 0.5, "not certified"), _check("c", 0.0)]
    verdict, reasons = decide(mixed)
    assert verdict == "fail"
    assert [r.split(":")[0] for r in reasons] == ["c", "b", "a"]
    assert decide(mixed[:2])[0] == "not certified"
    assert decide([_check("a", 0.5, "fail", "advisory"), _check("b", 0.5, "pass")])[0] == "pass"
