"""Phase 0: does the endpoint read the very tokens that the parent would?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from evalq.audit.answers import Answer

__all__ = ["Rendering", "check_rendering"]


@dataclass(frozen=True, slots=True)
class Rendering:
    """How the endpoint reads prompts, as far as it tells.

    Args:
        shift: tokens more than the parent's own rendering that it counts before a text: 1 where it
            adds a BOS that the parent's tokenizer does not, -1 where it leaves one out.
        known: at least one prompt was counted.
        counted: prompt lengths that it counted, and what was expected.
        problem: why nothing can be compared; empty where it can.
        note: worth a line in the report.
    """

    shift: int = 0
    known: bool = False
    counted: tuple[tuple[int, int], ...] = ()
    problem: str = ""
    note: str = ""

    def apply(self, ids: tuple[int, ...], tokenizer: Any) -> tuple[int, ...]:
        """A prompt as the endpoint reads it."""
        if self.shift == 1 and tokenizer.bos_token_id is not None:
            return (int(tokenizer.bos_token_id), *ids)
        return ids[1:] if self.shift == -1 else ids


def check_rendering(
    before: Rendering, pairs: Sequence[tuple[tuple[int, ...], Answer]], tokenizer: Any
) -> Rendering:
    """Compare counts (and tokens, where they are told) with the local rendering.

    Args:
        before: what was found so far.
        pairs: the local tokens of prompts, and their answers.
        tokenizer: the parent's.
    """
    told = [(ids, a.prompt_ids) for ids, a in pairs if a.prompt_ids is not None]
    counted = [(len(ids), a.prompt_tokens) for ids, a in pairs if a.prompt_tokens is not None]
    if not told and not counted:
        return before
    offsets = {theirs - mine for mine, theirs in counted}
    all_counted = before.counted + tuple((m, t) for m, t in counted)
    found = replace(before, known=True, counted=all_counted)
    if len({t - m for m, t in all_counted}) > 1:
        return replace(
            found,
            problem="the endpoint counts prompt tokens otherwise than the parent's tokenizer, by "
            f"{min(offsets)} to {max(offsets)}: another tokenizer, template or model",
        )
    shift = next(iter(offsets)) if offsets else 0
    if shift == 0:
        for mine, theirs in told:
            if theirs is not None and theirs != mine:
                return replace(found, problem="the endpoint reads other tokens than the parent's")
        return found
    bos = tokenizer.bos_token_id
    if shift == 1 and bos is not None and all(ids[:1] != (bos,) for ids, _ in pairs):
        return replace(found, shift=1, note="the endpoint puts a BOS token before every prompt")
    if shift == -1 and bos is not None and all(ids[:1] == (bos,) for ids, _ in pairs):
        return replace(found, shift=-1, note="the endpoint leaves out the BOS token")
    return replace(
        found,
        problem=f"the endpoint reads {shift:+d} tokens with every prompt that nobody sent: a "
        "hidden system prompt, or another template",
    )
