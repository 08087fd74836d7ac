"""A prompt's own log-probabilities, as the completions API gives them back with ``echo``."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from evalq.models.transport import Refused

__all__ = [
    "Columns",
    "Scored",
    "counted_border",
    "find_border",
    "read_columns",
    "score_columns",
]

_BYTES = re.compile(r"bytes:((?:\\x[0-9a-f]{2})+)")
"""How OpenAI names a token that is no whole character."""


@dataclass(frozen=True, slots=True)
class Scored:
    """The end of a prompt.

    Args:
        logprob: sum in nats.
        greedy: every token is the likeliest at its place.
        tokens: that were scored.
        before: tokens of the prompt before them.
    """

    logprob: float
    greedy: bool
    tokens: int
    before: int


@dataclass(frozen=True, slots=True)
class Columns:
    """The three columns of ``logprobs``, of equal length: the prompt's tokens, then generated ones.

    Args:
        tokens: names.
        values: log-probabilities; ``None`` for a first token that nothing stands before.
        tops: the likeliest tokens at each place.
    """

    tokens: tuple[str, ...]
    values: tuple[float | None, ...]
    tops: tuple[Mapping[str, float], ...]


def _unfit(what: str) -> Refused:
    return Refused(
        f"the endpoint cannot score prompts: {what}",
        200,
        hint="Use a completions endpoint that serves echo with logprobs, or generation tasks only.",
    )


def read_columns(choice: Mapping[str, Any]) -> Columns:
    """The columns of one choice.

    Raises:
        Refused: it has none, or none that fit each other.
    """
    found = choice.get("logprobs")
    found = found if isinstance(found, dict) else {}
    tokens, values, tops = (
        found.get(name) for name in ("tokens", "token_logprobs", "top_logprobs")
    )
    if not (isinstance(tokens, list) and isinstance(values, list) and isinstance(tops, list)):
        raise _unfit("it returns no log-probabilities of the prompt's tokens")
    if not tokens or not len(tokens) == len(values) == len(tops):
        raise _unfit("its columns of log-probabilities differ in length")
    try:
        return Columns(
            tuple(str(t) for t in tokens),
            tuple(None if v is None else float(v) for v in values),
            tuple({str(k): float(v) for k, v in (top or {}).items()} for top in tops),
        )
    except (TypeError, ValueError, AttributeError):
        raise _unfit("its log-probabilities are no numbers") from None


def _raw(token: str) -> bytes:
    named = _BYTES.fullmatch(token)
    if named:
        return bytes.fromhex(named[1].replace("\\x", ""))
    return token.encode("utf-8", "surrogatepass")


def find_border(tokens: Sequence[str], context: str, text: str) -> tuple[int, int] | None:
    """Which tokens are of ``text`` beyond ``context``: ``[first, end)``.

    A token that reaches over the border counts: it holds the beginning of what is scored. A BOS may
    stand before the text.

    >>> find_border(["<s>", "ab", "cd", "e", "!"], "abc", "abcde")
    (2, 4)

    Returns:
        ``None`` where the names do not make up the text: tokens that are no whole characters come
        as U+FFFD from some servers, and SentencePiece's without their spaces.
    """
    whole, start = text.encode("utf-8"), len(context.encode("utf-8"))
    pieces = [_raw(t) for t in tokens]
    for skipped in range(min(2, len(pieces))):
        at, first = 0, -1
        for i in range(skipped, len(pieces) + 1):
            if at >= len(whole):
                return (i if first < 0 else first), i
            if i == len(pieces) or not whole.startswith(pieces[i], at):
                break
            at += len(pieces[i])
            if at > start and first < 0:
                first = i
    return None


def counted_border(columns: Columns, before: int, count: int) -> tuple[int, int]:
    """The same by the endpoint's own counts of tokens, as lm-eval splits a prompt.

    Args:
        columns: of an answer of at most one new token.
        before: tokens of the context alone.
        count: tokens of the whole prompt.

    Raises:
        Refused: the columns are not of a prompt of so many tokens.
    """
    if not 0 < count <= len(columns.tokens) <= count + 1:
        raise _unfit("its tokens do not make up the prompt")
    return before, count


def score_columns(columns: Columns, first: int, end: int, rolling: bool) -> Scored:
    """Sum the log-probabilities of the tokens ``[first, end)``.

    Args:
        columns: of the answer.
        first, end: which tokens.
        rolling: a first token that nothing stands before goes without a probability.

    Raises:
        Refused: a token that has none, or places without the likeliest token.
    """
    if not 0 <= first < end <= len(columns.tokens):
        raise _unfit(f"it counts {end} tokens in the prompt and {first} before what is scored")
    total, greedy, count = 0.0, True, 0
    for i in range(first, end):
        value, top = columns.values[i], columns.tops[i]
        if value is None:
            # Without a BOS nothing stands before a text's first token, so it has no
            # probability: a perplexity goes without it, a choice cannot.
            if rolling and i == 0:
                continue
            raise _unfit("a scored token has no log-probability: is the prompt empty?")
        if not top:
            raise _unfit("it returns no top_logprobs")
        total += value
        greedy = greedy and value >= max(top.values())
        count += 1
    return Scored(total, greedy, count, first)
