"""GitLab's code-quality report: a finding a check that did not pass, on its line of the policy."""

from __future__ import annotations

import json
from typing import Any

from evalq.gate.result import Check, GateResult, VariantResult
from evalq.gate.text import limit_words, one_line, value_words
from evalq.schema import content_hash

__all__ = ["code_quality"]


def code_quality(result: GateResult) -> str:
    """The report as JSON; an empty list when everything passed."""
    found = [
        _finding(result, variant, check)
        for variant in result.variants
        for check in variant.checks
        if check.verdict != "pass"
    ]
    return json.dumps(found, indent=1, allow_nan=False) + "\n"


def _severity(check: Check) -> str:
    if not check.blocks:
        return "info" if check.verdict != "fail" else "minor"
    return "critical" if check.verdict == "fail" else "major"


def _finding(result: GateResult, variant: VariantResult, check: Check) -> dict[str, Any]:
    words = " ".join(x for x in (value_words(check), limit_words(check), *check.notes) if x)
    return {
        "description": one_line(
            f"{variant.variant}: {check.slice}: {check.metric}: {check.verdict}: {words}"
        ),
        "check_name": f"evalq/{check.metric}",
        # Of the rule and what it judged, not of the numbers: a finding keeps its identity.
        "fingerprint": content_hash([variant.variant, check.slice, check.metric, check.rule]),
        "severity": _severity(check),
        "location": {
            "path": result.policy_path.replace("\\", "/").removeprefix("./"),
            "lines": {"begin": check.line},
        },
    }
