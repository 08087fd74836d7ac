"""Answers of an endpoint, in any of the forms that servers give them, taken apart and stored."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from evalq.models.transport import Malformed

__all__ = ["Answer", "Shown", "journal_line", "parse_answer"]


@dataclass(frozen=True, slots=True)
class Shown:
    """One served token as the endpoint names it.

    Args:
        name: its text, ``token_id:…`` or ``bytes:…``; ``None`` where only an id is given.
        token: its id, where it is given.
        top: log-probabilities by name (or by id, as text ``token_id:…``).
    """

    name: str | None
    token: int | None
    top: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back.

    Args:
        text: as served, the key taken out should it be in it.
        shown: a served token each; ``None`` where the endpoint names none.
        ended: the model ended by itself (``finish_reason`` is ``stop``).
        prompt_tokens, completion_tokens: as counted by the endpoint; ``None`` where it does not.
        prompt_ids: the prompt as tokens, where the endpoint tells.
        fingerprint: of the endpoint's build.
        seconds: it took.
    """

    text: str
    shown: tuple[Shown, ...] | None = None
    ended: bool = False
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_ids: tuple[int, ...] | None = None
    fingerprint: str = ""
    seconds: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        """JSON values, for the journal."""
        out = asdict(self)
        out["shown"] = (
            None if self.shown is None else [[s.name, s.token, s.top] for s in self.shown]
        )
        return out

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Answer:
        """From ``as_dict``."""
        shown = data["shown"]
        ids = data["prompt_ids"]
        return cls(
            **{
                **data,
                "prompt_ids": None if ids is None else tuple(ids),
                "shown": None
                if shown is None
                else tuple(
                    Shown(name, token, tuple((str(n), float(v)) for n, v in top))
                    for name, token, top in shown
                ),
            }
        )


def parse_answer(raw: Any) -> Answer:
    """An answer in any of the forms that servers give it (OpenAI, vLLM, llama.cpp).

    Raises:
        Malformed: not one choice with a text.
    """
    if not isinstance(raw, dict):
        raise Malformed("no JSON object")
    choices = raw.get("choices")
    if not isinstance(choices, list) or len(choices) != 1 or not isinstance(choices[0], dict):
        raise Malformed("not exactly one choice")
    choice = choices[0]
    message = choice.get("message")
    text = message.get("content") if isinstance(message, dict) else choice.get("text")
    if text is None and choice.get("finish_reason") == "length":
        text = ""
    if not isinstance(text, str):
        raise Malformed("no text in its choice")
    usage = raw.get("usage")
    usage = usage if isinstance(usage, dict) else {}
    prompt_ids = choice.get("prompt_token_ids")
    fingerprint = raw.get("system_fingerprint")
    return Answer(
        text=text,
        shown=_shown(choice),
        ended=choice.get("finish_reason") == "stop",
        prompt_tokens=_count(usage.get("prompt_tokens")),
        completion_tokens=_count(usage.get("completion_tokens")),
        prompt_ids=_ids(prompt_ids),
        fingerprint=fingerprint[:200] if isinstance(fingerprint, str) else "",
    )


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _ids(value: Any) -> tuple[int, ...] | None:
    if isinstance(value, list) and value and all(_count(v) is not None for v in value):
        return tuple(value)
    return None


def _shown(choice: Mapping[str, Any]) -> tuple[Shown, ...] | None:
    """Tokens with their log-probabilities, from the columns of completions, the list of chat
    (which llama.cpp gives for both), or a bare list of ids."""
    ids = _ids(choice.get("token_ids"))
    found = choice.get("logprobs")
    out: list[Shown] | None = None
    if isinstance(found, dict) and isinstance(found.get("content"), list):
        out = [_entry(e) for e in found["content"] if isinstance(e, dict)]
    elif isinstance(found, dict) and isinstance(found.get("tokens"), list):
        tokens, tops = found["tokens"], found.get("top_logprobs")
        tops = tops if isinstance(tops, list) and len(tops) == len(tokens) else [None] * len(tokens)
        out = [
            Shown(t if isinstance(t, str) else None, _id_of(t), _top(top))
            for t, top in zip(tokens, tops, strict=True)
        ]
    if ids is not None:
        if out is None or len(out) < len(ids):
            return tuple(Shown(None, i) for i in ids)
        if len(out) == len(ids):
            return tuple(replace(s, token=i) for s, i in zip(out, ids, strict=True))
    return tuple(out) if out else None


def _entry(entry: Mapping[str, Any]) -> Shown:
    tops = entry.get("top_logprobs")
    pairs = []
    for top in tops if isinstance(tops, list) else ():
        if isinstance(top, dict) and _finite(top.get("logprob")):
            pairs.append((_called(top), float(top["logprob"])))
    token = _count(entry.get("id"))
    name = _called(entry)
    return Shown(name, token if token is not None else _id_of(name), tuple(pairs))


def _called(entry: Mapping[str, Any]) -> str:
    """A token's name that leads back to it: its id, else its bytes, else its text."""
    token = _count(entry.get("id"))
    if token is not None:
        return f"token_id:{token}"
    name = entry.get("token")
    if isinstance(name, str) and name.startswith("token_id:"):
        return name
    raw = entry.get("bytes")
    if isinstance(raw, list) and raw and all(isinstance(b, int) and 0 <= b < 256 for b in raw):
        return "bytes:" + "".join(f"\\x{b:02x}" for b in raw)
    return name if isinstance(name, str) else ""


def _id_of(name: Any) -> int | None:
    if isinstance(name, str) and name.startswith("token_id:"):
        digits = name.removeprefix("token_id:")
        return int(digits) if digits.isascii() and digits.isdigit() else None
    return None


def _finite(value: Any) -> bool:
    return (
        isinstance(value, (int, float))
        and not isinstance(value, bool)
        and math.isfinite(value)
        and value <= 1e-3
    )


def _top(column: Any) -> tuple[tuple[str, float], ...]:
    if not isinstance(column, dict):
        return ()
    return tuple((str(k), float(v)) for k, v in column.items() if _finite(v))


def journal_line(value: Mapping[str, Any]) -> str:
    """One line of the journal."""
    return json.dumps(value, ensure_ascii=True, separators=(",", ":"))
