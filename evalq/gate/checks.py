"""The checks of one variant: every rule of the policy applied to what the run shows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import pandas as pd

from evalq import stats
from evalq.compare import Comparison, Run, SliceResult
from evalq.errors import StatisticsError
from evalq.gate import evidence
from evalq.gate.evidence import Measured
from evalq.gate.policy import Limit, LoadedPolicy, Role, SliceRule
from evalq.gate.result import OVERALL, Check, Decision, Example
from evalq.gate.rules import ResolvedRule, resolve
from evalq.schema import slice_ancestors

__all__ = ["Case", "checks_of", "judge_accuracy", "slices_of"]

EXAMPLES = 3
TEXT = 400
FIDELITY = ("kl_mean", "top1", "ppl_ratio")
COSTS = (
    "bytes_on_disk",
    "bits_per_weight",
    "peak_memory_bytes",
    "prefill_tokens_per_second",
    "decode_tokens_per_second",
)
LOSSLESS = 5
"""Items the baseline has to get right before five one-sided flips can occur."""


@dataclass(frozen=True)
class Case:
    """One variant to judge.

    Args:
        run: the run of the variant; ``joined`` is the one that the pairs are of (with a baseline
            of another run, both runs' records).
        baseline: the run and the label that costs are compared with.
        comparison: item by item.
    """

    loaded: LoadedPolicy
    run: Run
    joined: Run
    label: str
    baseline: tuple[Run, str]
    comparison: Comparison

    @property
    def confidence(self) -> float:
        """Of every interval."""
        return self.loaded.policy.confidence


def slices_of(run: Run) -> tuple[str, ...]:
    """Every slice that the run has or was to have, ancestors too, sorted."""
    leaves = {str(s) for s in run.items["slice"].unique()}
    leaves |= {str(s) for s in run.fidelity["slice"].unique()}
    for suite in run.info.get("suites", []):
        leaves |= {str(task["slice"]) for task in suite.get("tasks", []) if task.get("slice")}
    return tuple(sorted({a for leaf in leaves for a in slice_ancestors(leaf)}))


def checks_of(case: Case) -> list[Check]:
    """All checks of a variant, raw: no correction for many slices has been made yet."""
    out = list(_pooled(case))
    judged: dict[str, ResolvedRule] = {}
    for name in slices_of(case.run):
        rule = resolve(case.loaded, name)
        if rule is not None:
            judged[name] = rule
            out += _slice_checks(case, name, rule)
    out += _required(case, judged)
    out += _control(case)
    return out


def _pooled(case: Case) -> Iterator[Check]:
    metrics = case.loaded.policy.metrics
    if metrics.accuracy is not None:
        rule = SliceRule(**metrics.accuracy.model_dump(exclude={"role", "mandatory"}))
        place = (OVERALL, "metrics.accuracy", case.loaded.line("metrics", "accuracy"))
        role = metrics.accuracy.asked or "mandatory"
        if case.comparison.overall is None:
            note = "no item has a score"
            yield Check(OVERALL, "accuracy", role, "not certified", *place[1:], notes=(note,))
        else:
            yield _accuracy(case, case.comparison.overall, rule, role, place)
    for metric in (*FIDELITY, *COSTS):
        limit: Limit | None = getattr(metrics, metric)
        if limit is None:
            continue
        role = limit.asked or "mandatory"
        place = (OVERALL, f"metrics.{metric}", case.loaded.line("metrics", metric))
        if metric in COSTS:
            found = evidence.cost(
                case.run, case.label, case.baseline, metric, limit, case.confidence
            )
            yield _limited(found, limit, metric, role, place)
            continue
        yield from _fidelity(case, metric, limit, role, place)


def _fidelity(
    case: Case, metric: str, limit: Limit, role: Role, place: tuple[str, str, int]
) -> Iterator[Check]:
    """Held-out text, and for the perplexity ratio the perplexity tasks too."""
    slice_ = None if place[0] == OVERALL else place[0]
    frame = evidence.fidelity_frame(case.run, case.label, slice_)
    tasks = None
    if metric == "ppl_ratio":
        tasks = evidence.perplexity_tasks(case.comparison, slice_, limit, case.confidence)
    if slice_ is None or len(frame):
        found = evidence.fidelity(frame, metric, limit, case.confidence)
        if len(frame) or tasks is None:
            yield _limited(found, limit, metric, role, place)
    if tasks is not None:
        yield _limited(tasks, limit, "ppl_ratio_tasks", role, place)


def _limited(
    found: Measured, limit: Limit, metric: str, role: Role, place: tuple[str, str, int]
) -> Check:
    verdict: Decision = "not certified"
    if found.ci is not None:
        bound = {"maximum": limit.value} if limit.is_max else {"minimum": limit.value}
        verdict = stats.threshold_verdict(found.ci, **bound)
    return Check(
        slice=place[0],
        metric=metric,
        role=role,
        verdict=verdict,
        rule=place[1],
        line=place[2],
        kind=limit.given[0],
        limit=limit.value,
        estimate=found.estimate,
        ci=found.ci,
        value=found.value,
        baseline=found.baseline,
        count=found.count,
        unit=found.unit,
        clusters=found.clusters,
        p=found.p,
        holm=True,
        notes=found.notes,
    )


def _slice_checks(case: Case, name: str, rule: ResolvedRule) -> Iterator[Check]:
    place = (name, rule.name, rule.line)
    result = case.comparison.slices.get(name)
    if rule.margin is not None:
        if result is not None:
            yield _on_slice(case, result, rule, place)
        elif _was_planned(case.run, name) and name not in case.comparison.perplexity:
            note = "the run has no item of this slice"
            yield Check(
                name, "accuracy", rule.role, "not certified", rule.name, rule.line, notes=(note,)
            )
    for metric, limit in rule.limits.items():
        for check in _fidelity(case, metric, limit, limit.asked or rule.role, place):
            yield replace(check, holm=rule.holm)


def _was_planned(run: Run, name: str) -> bool:
    tasks = [t for suite in run.info.get("suites", []) for t in suite.get("tasks", [])]
    return any(name in slice_ancestors(str(t.get("slice", ""))) for t in tasks)


def _on_slice(
    case: Case, result: SliceResult, rule: ResolvedRule, place: tuple[str, str, int]
) -> Check:
    if rule.margin is None:
        raise StatisticsError(f"slice {place[0]!r} has no margin")
    check = _accuracy(case, result, rule.margin, rule.role, place)
    check = replace(check, holm=rule.holm)
    if result.size < rule.min_items and rule.role != "advisory":
        note = (
            f"{result.size} items, fewer than min_items {rule.min_items}: advisory, not {rule.role}"
        )
        check = replace(check, role="advisory", notes=(*check.notes, note))
    return check


def _accuracy(
    case: Case, result: SliceResult, rule: SliceRule, role: Role, place: tuple[str, str, int]
) -> Check:
    margin = evidence.margin_of(rule, result.parent_accuracy)
    check = judge_accuracy(result, margin, role, place)
    if check.verdict == "pass":
        return check
    slice_ = None if place[0] == OVERALL else place[0]
    needed = None
    if check.verdict == "inconclusive":
        needed = _needed(case, result, margin, slice_)
    return replace(
        check,
        items_needed=needed,
        examples=_examples(case, slice_),
    )


def judge_accuracy(
    result: SliceResult, margin: float, role: Role, place: tuple[str, str, int]
) -> Check:
    """One slice's difference against a margin, raw: no correction for many slices is made.

    Args:
        margin: in accuracy (0 to 1).
        place: slice, rule and its line.
    """
    found = result.verdict(margin)
    verdict: Decision = found.verdict
    notes = list(result.warnings)
    if result.planned is not None:
        notes.append(
            f"adaptive: {result.items} of {result.planned} items asked; the interval holds at any "
            "stopping time"
        )
    if result.ci is None:
        verdict = "not certified"
    elif verdict == "pass" and result.parent_accuracy <= margin:
        verdict = "not certified"
        notes.append(
            f"the baseline is right on {100 * result.parent_accuracy:.1f} % only: a loss of the "
            f"margin, {100 * margin:g} pp, could not even occur"
        )
    right = round(result.parent_accuracy * result.items)
    if result.items >= LOSSLESS > right:
        notes.append(f"the baseline gets {right} items right: {LOSSLESS} cannot be lost")
    return Check(
        slice=place[0],
        metric="accuracy",
        role=role,
        verdict=verdict,
        rule=place[1],
        line=place[2],
        kind="margin",
        limit=margin,
        estimate=result.delta,
        ci=result.ci,
        value=result.accuracy,
        baseline=result.parent_accuracy,
        count=result.items,
        clusters=result.clusters,
        lost=result.lost,
        gained=result.gained,
        p=result.p_worse,
        holm=True,
        detected_loss=found.detected_loss,
        notes=tuple(notes),
    )


def _needed(case: Case, result: SliceResult, margin: float, slice_: str | None) -> int | None:
    rate = (result.lost + result.gained) / result.items
    if result.planned is not None:  # another rule stops such a run, and other intervals judge it
        return None
    if rate < abs(result.delta) or margin >= 1:
        return None
    effect = evidence.design_effect_of(case.comparison, slice_)
    found = stats.items_to_settle(
        result.delta, rate, result.items, margin, result.confidence, design_effect=effect
    )
    return found.items


def _cut(text: object) -> str:
    value = str(text)
    return value if len(value) <= TEXT else value[:TEXT] + "…"


def _examples(case: Case, slice_: str | None) -> tuple[Example, ...]:
    frame = evidence.within(case.comparison.pairs.scored, slice_)
    frame = frame[frame["variant_score"] < frame["baseline_score"]]
    frame = frame.astype({"task": str, "item_id": str}).sort_values(["task", "item_id"])
    return tuple(_example(case.joined.items, row) for row in frame.head(EXAMPLES).itertuples())


def _example(items: pd.DataFrame, row: object) -> Example:
    base = items.iloc[int(getattr(row, "baseline_row"))]  # noqa: B009 - a generated class
    mine = items.iloc[int(getattr(row, "variant_row"))]  # noqa: B009
    return Example(
        task=_cut(base["task"]),
        item_id=_cut(base["item_id"]),
        prompt=_cut(base["prompt"]),
        target=_cut(base["target"]),
        baseline=_cut(base["response"]),
        variant=_cut(mine["response"]),
    )


def _required(case: Case, judged: Mapping[str, ResolvedRule]) -> Iterator[Check]:
    suites = case.run.items["suite"].astype(str)
    mine = case.run.items["variant"] == case.label
    present = {str(s) for s in suites[mine].unique()}
    for index, name in enumerate(case.loaded.policy.require):
        result = case.comparison.slices.get(name)
        likely = case.comparison.perplexity.get(name)
        count = result.size if result else likely.items if likely else 0
        if not count and name in present:
            count = int((suites[mine] == name).sum())
        need = judged[name].min_items if name in judged else 1
        note = ""
        if count == 0:
            note = f"{name!r} is required and was not run"
        elif count < need:
            note = f"{name!r} is required and has {count} of the {need} items it takes"
        yield Check(
            name,
            "required",
            "mandatory",
            "not certified" if note else "pass",
            f"require.{index}",
            case.loaded.line("require", index),
            count=count,
            items_needed=need if note else None,
            notes=(note,) if note else (),
        )


def _control(case: Case) -> Iterator[Check]:
    """The parent against itself: whether it was run, and whether it keeps the limits itself."""
    policy = case.loaded.policy
    place = ("negative_control", case.loaded.line("negative_control"))
    frame = evidence.fidelity_frame(case.run, case.run.control)
    required = policy.negative_control == "required"
    role: Role = "mandatory" if required else "advisory"
    asked = evidence.items_of_control(case.run)
    if asked is not None:
        note = f"the parent asked again scores otherwise on {asked[1]} of {asked[0]} items"
        yield Check(
            OVERALL, "negative_control", role, "pass", *place,
            count=asked[0], unit="items", notes=(note,),
        )  # fmt: skip
        return
    if frame.empty:
        note = "the parent was not run against itself, so the noise floor is unknown" + (
            " (negative_control: required)" if required else ""
        )
        yield Check(
            OVERALL, "negative_control", role, "not certified", *place, unit="tokens", notes=(note,)
        )
        return
    notes = []
    for metric in FIDELITY:
        limit: Limit | None = getattr(policy.metrics, metric)
        if limit is None:
            continue
        found = evidence.fidelity(frame, metric, limit, case.confidence)
        if _limited(found, limit, metric, role, (OVERALL, *place)).verdict != "pass":
            notes.append(f"the parent against itself does not keep the limit on {metric}")
    yield Check(
        OVERALL,
        "negative_control",
        role,
        "not certified" if notes else "pass",
        *place,
        count=len(frame),
        unit="tokens",
        notes=tuple(notes),
    )
