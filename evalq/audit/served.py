"""From an answer to the tokens that were served, as the local tokenizer names them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from evalq.audit.answers import Answer, Shown
from evalq.models.vocabulary import Vocabulary

__all__ = ["Served", "doubtful", "read_served"]

Source = Literal["ids", "names", "text"]


@dataclass(frozen=True, slots=True)
class Served:
    """Tokens of one answer.

    Args:
        tokens: ids; empty where none could be made out.
        tops: for each token, ids and log-probabilities that the endpoint gave; empty without.
        source: ids and names are what was served; a text was tokenized again.
    """

    tokens: tuple[int, ...]
    tops: tuple[tuple[tuple[int, float], ...], ...]
    source: Source


def read_served(
    answer: Answer, vocabulary: Vocabulary, tokenizer: Any, prompt: str, ends: Sequence[int]
) -> Served:
    """The served tokens, by what the endpoint tells of them.

    An end token that is not shown is added where the answer ended by itself and only one token
    ends an answer. A text that was tokenized again loses its last token, which may be a part of
    one, and everything from a cut character on.

    Args:
        answer: as it came.
        vocabulary, tokenizer: the parent's.
        prompt: as it was rendered; the text's tokens are taken after it.
        ends: the parent's end tokens.
    """
    tail = (ends[0],) if answer.ended and len(ends) == 1 else ()
    shown = answer.shown
    if shown:
        ids = [_token(s, vocabulary) for s in shown]
        known = [i for i in ids if i is not None and i < len(vocabulary)]
        if len(known) == len(ids) and _tells_the_text(known, answer.text, vocabulary, ends):
            by_id = all(s.token is not None for s in shown)
            tops = tuple(_tops(s, vocabulary) for s in shown)
            if not any(tops):
                tops = ()
            if tail and known[-1] not in ends:
                known.append(tail[0])
                tops = (*tops, ()) if tops else ()
            return Served(tuple(known), tops, "ids" if by_id else "names")
    text = answer.text.split("\ufffd")[0]
    head = list(tokenizer(prompt)["input_ids"])
    whole = list(tokenizer(prompt + text)["input_ids"])
    tokens = whole[len(head) :] if whole[: len(head)] == head else _plain(tokenizer, text)
    if text == answer.text and tail:
        return Served((*tokens, *tail), (), "text")
    return Served(tuple(tokens[:-1]), (), "text")


def _plain(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def _token(shown: Shown, vocabulary: Vocabulary) -> int | None:
    if shown.token is not None:
        return shown.token
    return None if shown.name is None else vocabulary.find(shown.name)


def _tells_the_text(
    ids: Sequence[int], text: str, vocabulary: Vocabulary, ends: Sequence[int]
) -> bool:
    """Whether the tokens make up the text, stop strings and cut characters aside."""
    plain = [i for i in ids if i not in ends]
    made = vocabulary.text(plain).rstrip("\ufffd").strip()
    return made.startswith(text.rstrip("\ufffd").strip()) or text.strip().startswith(made)


def _tops(shown: Shown, vocabulary: Vocabulary) -> tuple[tuple[int, float], ...]:
    found: dict[int, float] = {}
    for name, value in shown.top:
        token = vocabulary.find(name)
        if token is not None:
            found[token] = value
    return tuple(found.items())


def doubtful(
    served: Served, best: NDArray[np.int64], flip: NDArray[np.bool_], vocabulary: Vocabulary
) -> NDArray[np.bool_]:
    """Positions that a text tokenized again cannot decide.

    A flip is none where the model's own likeliest token begins the text that was served: the
    endpoint may have served that token, and only the tokenizer cuts the text elsewhere.

    Returns:
        Booleans ``[tokens]``.
    """
    out = np.zeros(len(served.tokens), dtype=np.bool_)
    if served.source != "text":
        return out
    pieces = [vocabulary.bytes_of(t) for t in served.tokens]
    for i in np.flatnonzero(flip):
        rest = b"".join(pieces[i : i + 12])
        mine = vocabulary.bytes_of(int(best[i]))
        out[i] = bool(mine) and rest.startswith(mine)
    # What follows a doubtful place is read after tokens that were perhaps never served.
    for i in np.flatnonzero(out):
        out[i : i + 3] = True
    return out
