"""GitHub annotations: workflow commands on the lines of the policy that were not kept.

The escaping is that of GitHub's toolkit (``packages/core/src/command.ts``).
"""

from __future__ import annotations

from evalq.gate.result import Check, GateResult, VariantResult
from evalq.gate.text import limit_words, one_line, value_words

__all__ = ["command", "github_annotations"]

MOST = 10
"""GitHub shows ten errors and ten warnings of a step and drops the rest."""
LONGEST = 2000


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")


def command(level: str, message: str, **properties: str) -> str:
    """One workflow command, ``::error file=P.yaml,line=3,title=…::message``.

    >>> command("error", "50% lost\\n::set-env", file="a,b:c.yaml", line="3")
    '::error file=a%2Cb%3Ac.yaml,line=3::50%25 lost%0A::set-env'
    """
    settings = ",".join(f"{k}={_property(v)}" for k, v in properties.items() if v)
    return f"::{level}{' ' + settings if settings else ''}::{_data(message)}"


def github_annotations(result: GateResult) -> list[str]:
    """At most ten errors and ten warnings, worst first, and one notice of the verdict."""
    errors, warnings = [], []
    for variant in result.variants:
        for check in variant.checks:
            if check.verdict == "pass":
                continue
            if check.blocks:
                errors.append(
                    (check.verdict != "fail", _annotation("error", variant, check, result))
                )
            else:
                warnings.append(
                    (check.verdict != "fail", _annotation("warning", variant, check, result))
                )
    out = []
    for level, found in (("error", errors), ("warning", warnings)):
        found.sort(key=lambda pair: pair[0])
        lines = [line for _, line in found]
        if len(lines) > MOST:
            more = f"{len(lines) - MOST + 1} more checks: see gate.json and the summary"
            lines = [*lines[: MOST - 1], command(level, more, title="evalq gate")]
        out += lines
    words = ", ".join(f"{one_line(v.variant)}: {v.verdict}" for v in result.variants)
    return [*out, command("notice", words[:LONGEST], title=f"evalq gate: {result.verdict}")]


def _annotation(level: str, variant: VariantResult, check: Check, result: GateResult) -> str:
    title = f"{check.verdict}: {one_line(variant.variant)}, {one_line(check.slice)}, {check.metric}"
    lines = [f"{value_words(check)} {limit_words(check)}".strip(), *check.notes]
    if check.items_needed is not None:
        lines.append(f"about {check.items_needed:,} items would settle it")
    for example in check.examples[:1]:
        lines.append(
            f"lost, for example {one_line(example.task)} {one_line(example.item_id)}: "
            f"{one_line(example.prompt)} — expected {one_line(example.target)}, "
            f"got {one_line(example.variant)}"
        )
    message = "\n".join(line for line in lines if line)[:LONGEST]
    return command(level, message, file=result.policy_path, line=str(check.line), title=title[:200])
