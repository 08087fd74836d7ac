"""A run and a policy in, a verdict out.

A variant passes when every mandatory check passes at alpha (intersection-union: no correction is
due). It fails when a mandatory or supporting check fails, and that fail survives Holm's procedure
over all of the variant's checks: the pooled ones come first and hold half of alpha, the slices
share the other half, and what is rejected hands its share on. So the chance to fail a variant that
lost nothing is at most alpha, whatever the slices share.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pandas as pd

from evalq import stats
from evalq.compare import Run, compare
from evalq.compare.adaptive import stops_of
from evalq.errors import ComparisonError, StoreError, nearest
from evalq.gate.checks import Case, checks_of, slices_of
from evalq.gate.evidence import has_control, noise_floor
from evalq.gate.policy import LoadedPolicy
from evalq.gate.result import OVERALL, Check, Decision, GateResult, VariantResult, worst
from evalq.gate.rules import unmatched
from evalq.schema import FORMAT_VERSION

__all__ = ["check_run", "correct", "decide", "gate"]

POOLED_SHARE = 0.5
SECOND = "@baseline"


def check_run(run: Run) -> None:
    """Refuse a run that nothing can be concluded from.

    Raises:
        StoreError: another format version, or not finished.
    """
    if run.info.get("format_version") != FORMAT_VERSION:
        raise StoreError(
            f"{run.path} has format version {run.info.get('format_version')!r}; this evalq gates "
            f"version {FORMAT_VERSION}",
            hint="Run the plan again with this evalq.",
        )
    if not run.finished:
        raise StoreError(
            f"{run.path} is not finished (status {run.info['status']!r})",
            hint="Resume it with `evalq run`, then gate it.",
        )


def correct(checks: Sequence[Check], alpha: float) -> list[Check]:
    """Checks after the corrections for many slices.

    Weighted Holm over what can fail the variant and carries a p-value; a fail that does not
    survive it becomes inconclusive. Benjamini-Hochberg over all slices gives ``q``, for display.
    """
    changes: list[dict[str, Any]] = [{} for _ in checks]
    family = [
        i for i, c in enumerate(checks) if c.holm and c.p is not None and c.role != "advisory"
    ]
    weights = _weights([checks[i] for i in family])
    adjusted = stats.weighted_holm([_p(checks[i]) for i in family], weights)
    for index, p in zip(family, adjusted.tolist(), strict=True):
        changes[index]["p_adjusted"] = p
        if checks[index].verdict == "fail" and p > alpha:
            note = f"alone it would fail; among {len(family)} checks its p becomes {p:.3g} (Holm)"
            changes[index]["verdict"] = "inconclusive"
            changes[index]["notes"] = (*checks[index].notes, note)
    shown = [i for i, c in enumerate(checks) if c.p is not None and c.slice != OVERALL]
    q_values = stats.benjamini_hochberg([_p(checks[i]) for i in shown]).tolist()
    for index, q in zip(shown, q_values, strict=True):
        changes[index]["q"] = q
    return [
        replace(c, **change) if change else c for c, change in zip(checks, changes, strict=True)
    ]


def _p(check: Check) -> float:
    return 1.0 if check.p is None else check.p


def _weights(family: Sequence[Check]) -> list[float]:
    pooled = sum(c.slice == OVERALL for c in family)
    slices = len(family) - pooled
    share = POOLED_SHARE if pooled and slices else 1.0
    return [
        share / pooled if c.slice == OVERALL else (1 - share if pooled else 1.0) / slices
        for c in family
    ]


def decide(checks: Sequence[Check]) -> tuple[Decision, tuple[str, ...]]:
    """The verdict over a variant's corrected checks, and what keeps it from passing."""
    blocking = [c for c in checks if c.blocks]
    reasons = [
        f"{c.slice}: {c.metric}: {c.verdict}" for d in _ORDER for c in blocking if c.verdict == d
    ]
    verdict: Decision = worst([c.verdict for c in blocking]) if blocking else "pass"
    judged = [
        c
        for c in checks
        if c.role != "advisory" and c.metric not in ("required", "negative_control")
    ]
    if verdict == "pass" and not any(c.role == "mandatory" for c in judged):
        return "not certified", ("nothing mandatory was judged",)
    return verdict, tuple(reasons)


_ORDER: tuple[Decision, ...] = ("fail", "not certified", "inconclusive")


def gate(
    run: Run,
    loaded: LoadedPolicy,
    variant: str | None = None,
    baseline: Run | None = None,
    baseline_variant: str | None = None,
) -> GateResult:
    """Judge a run under a policy.

    Args:
        run: an opened, finished run.
        loaded: the policy.
        variant: one label; all variants but the parent when left out. Each is a release of its
            own; the gate's verdict is the worst of them.
        baseline: another run whose variant is the baseline, in the place of the run's own parent.
        baseline_variant: its label there; by default the same as the variant's, and without
            ``baseline`` another variant of ``run``.

    Raises:
        StoreError: a run of another format version, or one that is not finished.
        PlanError: a rule that matches no slice, or two that claim one alike.
        ComparisonError: no such variant, or prompts, targets or items that differ.
    """
    for opened in (run, baseline):
        if opened is not None:
            check_run(opened)
    errors = unmatched(loaded, slices_of(run))
    if errors:
        raise errors[0]
    labels = _labels(run, variant, baseline is not None or baseline_variant is not None)
    results = tuple(_judge(run, loaded, v, baseline, baseline_variant) for v in labels)
    verdict = worst([r.verdict for r in results])
    codes = {"pass": 0, "fail": 1, "inconclusive": loaded.policy.on_inconclusive}
    notes = []
    if not has_control(run):
        notes.append(
            "No negative control: the parent was not run against itself, so nothing here is "
            "measured against the noise floor."
        )
    if run.info.get("adaptive"):
        notes.append(
            "The run was adaptive: slices stopped as soon as they were decided. Their intervals "
            "and p-values hold at any stopping time."
        )
    if variant is None and len(results) > 1:
        notes.append("Each variant is judged as a release of its own; the worst verdict counts.")
    return GateResult(
        run=str(run.info["name"]),
        plan_hash=str(run.info.get("plan_hash", "")),
        baseline_run="" if baseline is None else str(baseline.info["name"]),
        policy_path=loaded.path,
        policy_hash=loaded.policy.hash,
        alpha=loaded.policy.alpha,
        verdict=verdict,
        exit_code=codes.get(verdict, 3),
        variants=results,
        notes=tuple(notes),
    )


def _labels(run: Run, variant: str | None, other_baseline: bool) -> tuple[str, ...]:
    if variant is not None:
        label = run.resolve(variant)
        if label == run.parent and not other_baseline:
            raise ComparisonError(
                f"{variant!r} is the parent, which is the baseline",
                hint="Name a variant, or another baseline.",
            )
        return (label,)
    labels = tuple(v for v in run.variants if v != run.parent)
    if not labels:
        raise ComparisonError(f"{run.path} has no variant but the parent")
    return labels


def _judge(
    run: Run,
    loaded: LoadedPolicy,
    label: str,
    baseline: Run | None,
    baseline_variant: str | None,
) -> VariantResult:
    confidence = loaded.policy.confidence
    if baseline is None:
        other = run.resolve(baseline_variant or "parent")
        joined, against, base = run, other, (run, other)
    else:
        wanted = label if baseline_variant is None else baseline_variant
        if baseline_variant is None and label not in baseline.variants and label == run.parent:
            wanted = "parent"
        if wanted != "parent" and wanted not in baseline.variants:
            raise ComparisonError(
                f"the baseline {baseline.path} has no variant {wanted!r}",
                hint=nearest(wanted, baseline.variants) + " Name it with --baseline-variant.",
            )
        other = baseline.resolve(wanted)
        base = (baseline, other)
        joined, against = _join(run, label, baseline, other)
    case = Case(loaded, run, joined, label, base, compare(joined, label, against, confidence))
    checks = correct(checks_of(case), loaded.policy.alpha)
    verdict, reasons = decide(checks)
    return VariantResult(
        variant=label,
        hash=str(run.variant_info(label).get("hash", "")),
        baseline=other if baseline is None else f"{baseline.info['name']}: {other}",
        verdict=verdict,
        reasons=reasons,
        checks=tuple(checks),
        control=noise_floor(run),
    )


def _join(run: Run, label: str, baseline: Run, other: str) -> tuple[Run, str]:
    """One run that holds the variant's records and, under a label of its own, the baseline's."""
    against = other + SECOND
    while against in run.variants:
        against += SECOND
    frames = []
    for opened, wanted, name in ((run, label, label), (baseline, other, against)):
        frame = opened.items[opened.items["variant"] == wanted]
        plain = {c: str for c in frame.columns if isinstance(frame[c].dtype, pd.CategoricalDtype)}
        frames.append(frame.astype(plain).assign(variant=name))
    items = pd.concat(frames, ignore_index=True)
    for column in run.items.columns:
        if isinstance(run.items[column].dtype, pd.CategoricalDtype):
            items[column] = items[column].astype("category")
    entry = {**baseline.variant_info(other), "name": against}
    info = {**run.info, "variants": [*run.info["variants"], entry]}
    stops = stops_of(baseline, other)
    if stops is not None:
        own = (run.info.get("adaptive") or {}).get("variants") or {}
        info["adaptive"] = {**(run.info.get("adaptive") or {}), "variants": {**own, against: stops}}
    return Run(run.path, info, items, run.fidelity, run.costs), against
