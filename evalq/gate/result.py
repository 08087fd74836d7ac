"""What a gate found: a verdict for each (variant, slice, metric), and over all."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from evalq.gate.policy import Role

__all__ = ["OVERALL", "Check", "Decision", "Example", "GateResult", "VariantResult", "worst"]

OVERALL = "overall"
"""The slice of everything."""

Decision = Literal["pass", "fail", "inconclusive", "not certified"]
BADNESS: Mapping[Decision, int] = {"pass": 0, "inconclusive": 1, "not certified": 2, "fail": 3}


def worst(decisions: Sequence[Decision]) -> Decision:
    """The worst of some decisions; nothing decided is never a pass."""
    return max(decisions, key=BADNESS.__getitem__, default="not certified")


@dataclass(frozen=True, slots=True)
class Example:
    """An item that was lost, cut to a readable length. Its texts are a model's: trust none."""

    task: str
    item_id: str
    prompt: str
    target: str
    baseline: str
    variant: str


@dataclass(frozen=True, slots=True)
class Check:
    """One rule applied to one slice and metric of a variant.

    Args:
        slice: its name, ``"overall"`` for everything.
        metric: as in the policy; ``required`` and ``negative_control`` are the policy's own.
        role: what the verdict does, after ``min_items`` has spoken.
        verdict: of this check.
        rule, line: the rule that judged, as a path in the policy, and its line in the file.
        kind: of the limit: ``margin``, ``max``, ``min``, ``max_ratio`` or ``min_ratio``.
        limit: in the unit of ``estimate``; a margin is in accuracy (0 to 1).
        estimate, ci: of the difference (accuracy), the ratio or the metric itself.
        value, baseline: the metric of the variant and of the baseline, where there are such.
        count, unit: what it is over: items, tokens, repeats.
        clusters: independent ones among them.
        lost, gained: flips.
        p: one-sided p of the loss, or of being beyond the limit.
        p_adjusted: after weighted Holm over the variant's checks.
        q: ``p`` after Benjamini-Hochberg over all slices, for display.
        detected_loss: the interval shows a loss, be it within the margin.
        items_needed: items, all told, that would settle it.
        notes: what a reader has to know.
        examples: lost items.
    """

    slice: str
    metric: str
    role: Role
    verdict: Decision
    rule: str
    line: int
    kind: str = ""
    limit: float | None = None
    estimate: float | None = None
    ci: tuple[float, float] | None = None
    value: float | None = None
    baseline: float | None = None
    count: int = 0
    unit: str = "items"
    clusters: int = 0
    lost: int | None = None
    gained: int | None = None
    p: float | None = None
    holm: bool = False
    p_adjusted: float | None = None
    q: float | None = None
    detected_loss: bool = False
    items_needed: int | None = None
    notes: tuple[str, ...] = ()
    examples: tuple[Example, ...] = ()

    @property
    def blocks(self) -> bool:
        """Whether this very check keeps the variant from passing."""
        if self.role == "mandatory":
            return self.verdict != "pass"
        return self.role == "supporting" and self.verdict == "fail"


@dataclass(frozen=True, slots=True)
class VariantResult:
    """One variant under the policy.

    Args:
        verdict: over all of its checks.
        reasons: why it is not a pass, worst first; empty for a pass.
        control: noise floor of the parent against itself, by metric; ``None`` without a control.
    """

    variant: str
    hash: str
    baseline: str
    verdict: Decision
    reasons: tuple[str, ...]
    checks: tuple[Check, ...]
    control: Mapping[str, float] | None


@dataclass(frozen=True, slots=True)
class GateResult:
    """A run under a policy.

    Args:
        exit_code: 0 pass, 1 fail, 3 (or the policy's ``on_inconclusive``) not decided.
        policy_path: as given; annotations point there.
        notes: about the whole gate.
    """

    run: str
    plan_hash: str
    baseline_run: str
    policy_path: str
    policy_hash: str
    alpha: float
    verdict: Decision
    exit_code: int
    variants: tuple[VariantResult, ...]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """The content of ``gate.json``. Nothing of the moment or the machine is in it."""
        from evalq import __version__

        return {
            "format_version": 1,
            "evalq_version": __version__,
            "run": self.run,
            "plan_hash": self.plan_hash,
            "baseline_run": self.baseline_run or None,
            "policy": {
                "file": self.policy_path.replace("\\", "/").rsplit("/", 1)[-1],
                "hash": self.policy_hash,
                "alpha": self.alpha,
            },
            "verdict": self.verdict,
            "exit_code": self.exit_code,
            "notes": list(self.notes),
            "variants": [_plain(asdict(v)) for v in self.variants],
        }


def _plain(value: Any) -> Any:
    """JSON has neither infinities nor NaN: ``None`` stands for an end that is open."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, list | tuple) else value
