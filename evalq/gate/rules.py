"""Which rule judges a slice: wildcards over nested slices, the most specific one wins."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

from evalq.errors import PlanError, nearest
from evalq.gate.policy import DEFAULT, Limit, LoadedPolicy, Policy, Role, SliceRule
from evalq.schema import slice_ancestors

__all__ = ["ResolvedRule", "matches", "resolve", "unmatched"]

WILD = ("*", "?", "[")
DEFAULT_MIN_ITEMS = 100


@dataclass(frozen=True, slots=True)
class ResolvedRule:
    """What is asked of one slice, with everything filled in.

    Args:
        name: the rule that won, as a path in the policy (``"slices.math/*"``).
        line: of it in the policy file.
        role: what its verdicts do.
        min_items: fewer make the slice advisory.
        holm: whether a fail has to survive Holm's correction.
        margin: the rule whose margin counts, or ``None`` when accuracy is not judged.
        limits: on fidelity and perplexity, by metric.
        exact: the rule names this very slice.
    """

    name: str
    line: int
    role: Role
    min_items: int
    holm: bool
    margin: SliceRule | None
    limits: Mapping[str, Limit]
    exact: bool


def matches(pattern: str, name: str) -> bool:
    """Whether a pattern covers a slice.

    ``*`` and ``?`` stay within one level; ``**`` stands for one level or more.

    >>> matches("multilingual/*", "multilingual/sw"), matches("multilingual/*", "multilingual")
    (True, False)
    >>> matches("math/*", "math/word/two"), matches("math/**", "math/word/two")
    (False, True)
    """
    return _levels(pattern.split("/"), name.split("/"))


def _levels(pattern: list[str], name: list[str]) -> bool:
    if not pattern or not name:
        return not pattern and not name
    if pattern[0] == "**":
        return any(_levels(pattern[1:], name[i:]) for i in range(1, len(name) + 1))
    return fnmatchcase(name[0], pattern[0]) and _levels(pattern[1:], name[1:])


def _specificity(pattern: str) -> tuple[int, int, int]:
    """No wildcard beats any; then more literal characters; then fewer ``**``."""
    literal = sum(c not in "*?[]" for c in pattern)
    return (int(not any(w in pattern for w in WILD)), literal, -pattern.count("**"))


def resolve(loaded: LoadedPolicy, name: str) -> ResolvedRule | None:
    """The rule for one slice, or ``None`` when no rule covers it.

    The most specific rule wins, and takes what it leaves open from ``default``.

    Raises:
        PlanError: two rules cover the slice and neither is the more specific.
    """
    rules = loaded.policy.slices
    found = [p for p in rules if p != DEFAULT and matches(p, name)]
    found.sort(key=_specificity, reverse=True)
    if len(found) > 1 and _specificity(found[0]) == _specificity(found[1]):
        raise PlanError(
            f"{loaded.path}:{loaded.line('slices', found[1])}: slice {name!r} is covered by both "
            f"{found[0]!r} and {found[1]!r}, and neither is more specific",
            hint=f"Add a rule for {name!r} itself.",
        )
    default = rules.get(DEFAULT)
    if found:
        own = rules[found[0]]
    elif default is not None:
        own = default
    else:
        return None
    base = default if default is not None else SliceRule()
    winner = found[0] if found else DEFAULT
    return ResolvedRule(
        name=f"slices.{winner}",
        line=loaded.line("slices", winner),
        role=own.asked or base.asked or "mandatory",
        min_items=own.min_items or base.min_items or DEFAULT_MIN_ITEMS,
        holm=(own.correction or base.correction or "holm") == "holm",
        margin=_first_margin(own, base),
        limits=_limits(own, base),
        exact=bool(found) and found[0] == name,
    )


def _limits(own: SliceRule, base: SliceRule) -> dict[str, Limit]:
    found = {n: getattr(own, n) or getattr(base, n) for n in ("ppl_ratio", "kl_mean", "top1")}
    return {n: limit for n, limit in found.items() if limit is not None}


def _first_margin(*rules: SliceRule) -> SliceRule | None:
    for rule in rules:
        if rule.margin_pp is not None or rule.margin_relative is not None:
            return rule
    return None


def unmatched(loaded: LoadedPolicy, slices: Iterable[str]) -> list[PlanError]:
    """One error for each slice rule that covers none of ``slices``.

    A rule that names a slice which ``require`` lists as well is left to the gate: what was not
    run is then not certified, rather than a mistake in the policy.
    """
    known = sorted({a for name in slices for a in slice_ancestors(name)})
    out = []
    for pattern in loaded.policy.slices:
        if pattern == DEFAULT or any(matches(pattern, name) for name in known):
            continue
        if _is_required(loaded.policy, pattern):
            continue
        out.append(
            PlanError(
                f"{loaded.path}:{loaded.line('slices', pattern)}: the rule {pattern!r} matches no "
                "slice of the run",
                hint=nearest(pattern, known),
            )
        )
    return out


def _is_required(policy: Policy, pattern: str) -> bool:
    return any(r == pattern or pattern.startswith(r + "/") for r in policy.require)
