"""A policy against a run, before anything is judged: rules without slices, margins out of reach."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass

import numpy as np

from evalq import stats
from evalq.compare import Comparison, Run, SliceResult, compare
from evalq.gate.checks import slices_of
from evalq.gate.decide import check_run
from evalq.gate.evidence import design_effect_of, fidelity_frame, has_control, margin_of
from evalq.gate.policy import LoadedPolicy, SliceRule
from evalq.gate.result import OVERALL
from evalq.gate.rules import resolve, unmatched

__all__ = ["Resolution", "draft_policy", "policy_problems", "resolutions"]

MIN_ITEMS = 100
FEWEST_FLIPS = 10
BROKEN = 0.05
"""A variant that loses more of its accuracy is no candidate for a release."""
KL_REFERENCE = ((0.0014, "q8_0"), (0.0055, "q6_K"), (0.031, "q4_K_M"), (0.10, "q3_K_M"))
"""Nats a token of Llama-3-8B, as llama.cpp publishes them."""


@dataclass(frozen=True, slots=True)
class Resolution:
    """What the items of one slice can resolve, and what its rule asks.

    Args:
        slice: its name, ``"overall"`` for everything.
        rule, line: that asks.
        margin, detectable: in accuracy (0 to 1), at a power of 80 %.
        items, needed: at hand, and for the margin.
        variant: the one that flips least, whose flip rate was taken.
        flip_rate: of it.
    """

    slice: str
    rule: str
    line: int
    margin: float
    detectable: float
    items: int
    needed: int
    variant: str
    flip_rate: float

    @property
    def reached(self) -> bool:
        """Whether the items resolve the margin."""
        return self.needed <= self.items


def policy_problems(loaded: LoadedPolicy, run: Run) -> list[str]:
    """What is wrong with a policy for this run: rules that match no slice, slices not there.

    Raises:
        StoreError: as ``check_run``.
        PlanError: two rules that claim one slice alike.
    """
    check_run(run)
    known = slices_of(run)
    out = [f"{e.message}. {e.hint}" for e in unmatched(loaded, known)]
    suites = {str(s) for s in run.items["suite"].astype(str).unique()}
    for index, name in enumerate(loaded.policy.require):
        if name not in known and name not in suites:
            line = loaded.line("require", index)
            out.append(f"{loaded.path}:{line}: {name!r} is required and the run does not have it")
    if loaded.policy.negative_control == "required" and not has_control(run):
        line = loaded.line("negative_control")
        out.append(
            f"{loaded.path}:{line}: a negative control is required and the run has none: "
            "every gate would end as not certified"
        )
    for name in known:
        resolve(loaded, name)
    return out


def _comparisons(run: Run, variant: str | None, confidence: float) -> list[Comparison]:
    labels = [variant] if variant else [v for v in run.measured if v != run.parent]
    return [compare(run, label, "parent", confidence) for label in labels]


@dataclass(frozen=True, slots=True)
class _Seen:
    """One variant's result on a slice, with the flip rate to plan on and the design effect."""

    comparison: Comparison
    result: SliceResult

    @property
    def rate(self) -> float:
        """Flip rate, not taken below what so few items can tell."""
        flips, items = self.result.lost + self.result.gained, self.result.items
        return flips / items if flips >= FEWEST_FLIPS else (flips + 1) / (items + 2)

    @property
    def effect(self) -> float:
        name = self.result.slice
        return design_effect_of(self.comparison, None if name == OVERALL else name)


def _seen(comparisons: list[Comparison], slice_: str) -> list[_Seen]:
    out = []
    for c in comparisons:
        result = c.overall if slice_ == OVERALL else c.slices.get(slice_)
        if result is not None:
            out.append(_Seen(c, result))
    return out


def _calmest(comparisons: list[Comparison], slice_: str) -> _Seen | None:
    """The variant that flips least: no other has a better chance to keep a margin."""
    found = _seen(comparisons, slice_)
    return min(found, key=lambda s: (s.rate, s.comparison.variant), default=None)


def _liveliest(comparisons: list[Comparison], slice_: str) -> _Seen | None:
    """The variant that flips most: what it resolves, all of them do."""
    return max(_seen(comparisons, slice_), key=lambda s: s.rate, default=None)


def resolutions(loaded: LoadedPolicy, run: Run, variant: str | None = None) -> list[Resolution]:
    """For every margin of the policy, whether the run's items can resolve it.

    The flip rate is that of ``variant``, or on each slice of the variant that flips least, with
    no true loss assumed: the best case. Slices below ``min_items`` are left out.

    Raises:
        StoreError, ComparisonError, PlanError: as ``gate``.
    """
    check_run(run)
    comparisons = _comparisons(run, variant, loaded.policy.confidence)
    out = []
    accuracy = loaded.policy.metrics.accuracy
    if accuracy is not None:
        rule = SliceRule(**accuracy.model_dump(exclude={"role", "mandatory"}))
        place = ("metrics.accuracy", loaded.line("metrics", "accuracy"))
        out += _resolution(loaded, _calmest(comparisons, OVERALL), OVERALL, rule, place)
    for name in slices_of(run):
        resolved = resolve(loaded, name)
        if resolved is None or resolved.margin is None:
            continue
        found = _calmest(comparisons, name)
        if found is not None and found.result.items >= resolved.min_items:
            place = (resolved.name, resolved.line)
            out += _resolution(loaded, found, name, resolved.margin, place)
    return out


def _resolution(
    loaded: LoadedPolicy,
    found: _Seen | None,
    slice_: str,
    rule: SliceRule,
    place: tuple[str, int],
) -> list[Resolution]:
    if found is None:
        return []
    result, rate, effect = found.result, found.rate, found.effect
    margin, level = margin_of(rule, result.parent_accuracy), loaded.policy.confidence
    return [
        Resolution(
            slice=slice_,
            rule=place[0],
            line=place[1],
            margin=margin,
            detectable=stats.detectable_margin(
                rate, result.items, confidence=level, design_effect=effect
            ),
            items=result.items,
            needed=stats.items_needed(rate, margin, confidence=level, design_effect=effect),
            variant=found.comparison.variant,
            flip_rate=rate,
        )
    ]


def _candidates(comparisons: list[Comparison]) -> list[Comparison]:
    """The variants that somebody may want to release: those that are not broken.

    Where all are, the calmest one.
    """
    near = [c for c in comparisons if c.overall and c.overall.delta > -BROKEN]
    if near:
        return near
    calmest = _calmest(comparisons, OVERALL)
    return comparisons if calmest is None else [calmest.comparison]


def _margin_pp(seen: _Seen, confidence: float) -> float:
    """The least margin that the items resolve, rounded up to half a point."""
    found = stats.detectable_margin(
        seen.rate, seen.result.items, confidence=confidence, design_effect=seen.effect
    )
    return min(99.0, max(0.5, math.ceil(200 * found - 1e-9) / 2))


def _quoted(name: str) -> str:
    """A YAML key that is read back as this very text."""
    words = ("null", "true", "false", "yes", "no", "on", "off", "y", "n")
    plain = re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]*(/[A-Za-z0-9_-]+)*", name)
    return name if plain and name.lower() not in words else json.dumps(name)


def draft_policy(run: Run, variant: str | None = None, alpha: float = 0.05) -> str:
    """A commented policy with margins that this run can resolve at a power of 80 %.

    Args:
        variant: whose flip rates are taken. Left out, on each slice those of the variant that
            flips most among the variants within 5 pp of the parent: what it resolves, they all do.

    Raises:
        StoreError: as ``check_run``.
        ComparisonError: no such variant, or records that cannot be paired.
    """
    check_run(run)
    level = 1 - 2 * alpha
    label = None if variant is None else run.resolve(variant)
    comparisons = _candidates(_comparisons(run, label, level))
    names = ", ".join(c.variant for c in comparisons)
    lines = [
        "# What a release may lose. Written by `evalq policy init`; the margins are the least that",
        "# the items of this run resolve with a power of 80 % when nothing is lost in truth.",
        f"# Flip rates are those of {json.dumps(names)}.",
        "# A tighter margin needs more items: evalq stats power --flip-rate P --margin-pp M",
        "policy_version: 1",
        f"alpha: {alpha:g}                # one-sided error of a pass, and of all fails together",
        "on_inconclusive: 3         # exit code when the items do not settle it",
        "cluster_by: document_id    # items of one document are not independent",
        "metrics:",
    ]
    metrics = _metric_lines(run, comparisons, level)
    lines += metrics if metrics else []
    if not metrics:
        lines[-1] = "metrics: {}"
    lines += _slice_lines(run, comparisons, level)
    if not has_control(run):
        lines.append("negative_control: optional # this run has none; 'required' is the default")
    else:
        lines.append("negative_control: required # the parent against itself: the noise floor")
    return "\n".join(lines) + "\n"


def _metric_lines(run: Run, comparisons: list[Comparison], level: float) -> list[str]:
    lines = []
    seen = _liveliest(comparisons, OVERALL)
    if seen is not None:
        margin = _margin_pp(seen, level)
        lines.append(
            f"  accuracy: {{margin_pp: {margin:g}, mandatory: true}}"
            f"  # {seen.result.items:,} items, {100 * seen.rate:.1f} % flip"
        )
    measured = [v for v in run.variants if v != run.parent and len(fidelity_frame(run, v))]
    if measured:
        kls = [float(np.mean(fidelity_frame(run, v)["kl"])) for v in measured]
        words = ", ".join(f"{name} {value:g}" for value, name in KL_REFERENCE)
        lines += [
            f"  # Nats a token on the upper bound. Llama-3-8B: {words}.",
            f"  # This run: {min(kls):.3g} to {max(kls):.3g}.",
            "  kl_mean: {max: 0.05, role: supporting}",
            "  ppl_ratio: {max: 1.05, role: supporting}",
            "  # top1: {min: 0.90}",
        ]
    if lines and len(run.costs):
        lines.append("  # bytes_on_disk: {max_ratio: 0.6}    # of the baseline's")
    return lines


def _slice_lines(run: Run, comparisons: list[Comparison], level: float) -> list[str]:
    found = [(name, _liveliest(comparisons, name)) for name in slices_of(run)]
    usable = [(n, f) for n, f in found if f is not None]
    if not usable:
        return []
    lines = ["slices:", f"  default: {{min_items: {MIN_ITEMS}, role: advisory, correction: holm}}"]
    required = []
    for name, seen in usable:
        few = seen.result.items < MIN_ITEMS
        top = "/" not in name
        role = "mandatory" if top and not few else "advisory"
        if role == "mandatory":
            required.append(name)
        comment = f"# {seen.result.items:,} items, {100 * seen.rate:.1f} % flip"
        if few:
            comment += f": fewer than {MIN_ITEMS}, so advisory whatever is written here"
        margin = _margin_pp(seen, level)
        lines.append(f"  {_quoted(name)}: {{margin_pp: {margin:g}, role: {role}}}  {comment}")
    names = ", ".join(_quoted(n) for n in required)
    lines.append(f"require: [{names}]  # not run = not certified")
    return lines
