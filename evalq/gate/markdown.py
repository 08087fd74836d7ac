"""Markdown for a pull request comment and for ``$GITHUB_STEP_SUMMARY``."""

from __future__ import annotations

from evalq.gate.result import Check, GateResult, VariantResult
from evalq.gate.text import code, limit_words, markdown, value_words

__all__ = ["COMMENT_LIMIT", "SUMMARY_LIMIT", "render_markdown"]

SUMMARY_LIMIT = 1 << 20
"""Bytes of a step summary that GitHub takes; it drops a longer one whole."""
COMMENT_LIMIT = 65_536
"""Characters of a comment that GitHub takes; a byte count keeps well within."""

SIGNS = {"pass": "✅", "fail": "❌", "inconclusive": "⚠️", "not certified": "⛔"}
CUT = "\n\n*Cut here: the rest is in gate.json.*\n"


def render_markdown(result: GateResult, limit: int = COMMENT_LIMIT) -> str:
    """A verdict, a table for each variant, and what was lost, in at most ``limit`` bytes.

    Whole blocks are left out at the end where there is no room, and the text says so.
    """
    blocks = [_head(result)]
    for variant in result.variants:
        blocks.append(_table(variant))
    for variant in result.variants:
        blocks += [_examples(variant, c) for c in variant.checks if c.examples and c.blocks]
    out, room = "", limit - len(CUT.encode())
    for block in blocks:
        if len((out + block).encode()) > room:
            return out + CUT
        out += block
    return out


def _head(result: GateResult) -> str:
    lines = [
        f"## {SIGNS[result.verdict]} evalq gate: {result.verdict}",
        "",
        f"Run {code(result.run)}, policy {code(result.policy_path.rsplit('/', 1)[-1])}, "
        f"one-sided alpha {result.alpha:g}.",
        "",
    ]
    if len(result.variants) > 1:
        lines += ["| variant | verdict |", "| --- | --- |"]
        lines += [
            f"| {code(v.variant)} | {SIGNS[v.verdict]} {v.verdict} |" for v in result.variants
        ]
        lines.append("")
    lines += [f"> {markdown(note)}" for note in result.notes]
    return "\n".join(lines) + "\n"


def _table(variant: VariantResult) -> str:
    lines = [
        "",
        f"### {code(variant.variant)} against {code(variant.baseline)}: {variant.verdict}",
        "",
        "| | slice | metric | found | asked | role | rule | notes |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    order = sorted(variant.checks, key=lambda c: not c.blocks)
    lines += [_row(c) for c in order]
    return "\n".join(lines) + "\n"


def _row(check: Check) -> str:
    notes = list(check.notes)
    if check.detected_loss and check.verdict == "pass":
        notes.insert(0, "a loss is detected, within the margin")
    if check.items_needed is not None:
        notes.append(f"about {check.items_needed:,} items would settle it")
    cells = (
        f"{SIGNS[check.verdict]} {check.verdict}",
        code(check.slice),
        code(check.metric),
        markdown(value_words(check)),
        markdown(limit_words(check)),
        check.role,
        f"{code(check.rule)} (line {check.line})",
        markdown("; ".join(notes)),
    )
    return "| " + " | ".join(cells) + " |"


def _examples(variant: VariantResult, check: Check) -> str:
    lines = [
        "",
        f"<details><summary>Lost by {code(variant.variant)} on {code(check.slice)}</summary>",
        "",
        "| item | prompt | expected | baseline | variant |",
        "| --- | --- | --- | --- | --- |",
    ]
    for e in check.examples:
        cells = (f"{e.task} {e.item_id}", e.prompt, e.target, e.baseline, e.variant)
        lines.append("| " + " | ".join(code(c) for c in cells) + " |")
    return "\n".join([*lines, "", "</details>", ""])
