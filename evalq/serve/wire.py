"""What goes over the wire: bodies that are understood, and answers in OpenAI's form."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from evalq.models.vocabulary import Vocabulary
from evalq.serve.engine import Done, Told

__all__ = ["ChatBody", "CompletionBody", "Message", "chat_logprobs", "completion_logprobs", "usage"]

MAX_LOGPROBS = 20


class _Body(BaseModel):
    model_config = ConfigDict(extra="ignore")

    model: str = ""
    temperature: float = Field(1.0, ge=0, le=10)
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = 0
    seed: int | None = None
    stop: str | list[str] | None = None
    stream: bool = False
    n: Literal[1] = 1
    return_token_ids: bool = False
    return_tokens_as_token_ids: bool = False

    @property
    def stops(self) -> tuple[str, ...]:
        """Stop strings, as a tuple."""
        given = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return tuple(s for s in given if s)


class CompletionBody(_Body):
    """Of ``/v1/completions``; ``prompt`` is a text or token ids."""

    prompt: str | list[int]
    max_tokens: int = Field(16, ge=0)
    logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)
    echo: bool = False


class Message(BaseModel):
    """One message of a conversation."""

    model_config = ConfigDict(extra="ignore")

    role: str
    content: str


class ChatBody(_Body):
    """Of ``/v1/chat/completions``."""

    messages: list[Message] = Field(min_length=1)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool = False
    top_logprobs: int = Field(0, ge=0, le=MAX_LOGPROBS)


def _name(vocabulary: Vocabulary, token: int, as_ids: bool) -> str:
    return f"token_id:{token}" if as_ids else vocabulary.name(token)


def completion_logprobs(
    vocabulary: Vocabulary, told: Sequence[Told], as_ids: bool = False
) -> dict[str, Any]:
    """The columns of completions: tokens, their log-probabilities, the likeliest at each place."""
    names = [_name(vocabulary, t.token, as_ids) for t in told]
    offsets, at = [], 0
    for t in told:
        offsets.append(at)
        at += len(vocabulary.text([t.token]))
    return {
        "tokens": names,
        "token_logprobs": [t.logprob for t in told],
        "top_logprobs": [
            None
            if t.logprob is None
            # The token itself is listed even where it is none of the likeliest.
            else {
                **{_name(vocabulary, i, as_ids): v for i, v in t.top},
                _name(vocabulary, t.token, as_ids): t.logprob,
            }
            for t in told
        ],
        "text_offset": offsets,
    }


def _entry(vocabulary: Vocabulary, token: int, value: float | None, as_ids: bool) -> dict[str, Any]:
    return {
        "token": _name(vocabulary, token, as_ids),
        "logprob": value,
        "bytes": list(vocabulary.bytes_of(token)),
    }


def chat_logprobs(
    vocabulary: Vocabulary, told: Sequence[Told], as_ids: bool = False
) -> dict[str, Any]:
    """The list of chat: an entry a token, with the likeliest ones below it."""
    return {
        "content": [
            {
                **_entry(vocabulary, t.token, t.logprob, as_ids),
                "top_logprobs": [_entry(vocabulary, i, v, as_ids) for i, v in t.top],
            }
            for t in told
        ]
    }


def usage(prompt: int, done: Done) -> dict[str, int]:
    """Tokens read and written."""
    written = len(done.tokens)
    return {"prompt_tokens": prompt, "completion_tokens": written, "total_tokens": prompt + written}
