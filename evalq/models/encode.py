"""Text to tokens and back, split and cut exactly as lm-eval's HFLM does it.

Followed: ``TemplateLM.loglikelihood``, ``TemplateLM._encode_pair``, ``HFLM.tok_encode``,
``HFLM.tok_batch_encode``, ``HFLM._loglikelihood_tokens``, ``HFLM.loglikelihood_rolling`` and
``HFLM.generate_until`` of lm-eval 0.4.13. Where HFLM's answer depends on the batch (it looks for a
BOS in the first prompt of a batch only), batch size 1 is followed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PretrainedConfig, PreTrainedTokenizerBase

from evalq.errors import ParentError, TaskError
from evalq.schema import Request

__all__ = ["DEFAULT_MAX_TOKENS", "Encoder", "Prompt", "Scored", "move_spaces", "resolve_max_length"]

DEFAULT_MAX_TOKENS = 256
"""New tokens of a generation that names no limit (HFLM's ``max_gen_toks``)."""

_DEFAULT_MAX_LENGTH = 2048
_UNSET_LENGTH = 1_000_000_000_000_000_019_884_624_838_656


@dataclass(frozen=True, slots=True)
class Scored:
    """Tokens whose probability is asked.

    Args:
        head: what is read before the first scored token; at least one token.
        scored: the tokens that are scored; the last of them is never read.
        context: tokens of the prompt as it was given, before any cut.
        truncated: the prompt was cut at the left.
    """

    head: tuple[int, ...]
    scored: tuple[int, ...]
    context: int
    truncated: bool

    @property
    def tail(self) -> tuple[int, ...]:
        """What is read after the head to score all of ``scored`` but its first token."""
        return self.scored[:-1]


@dataclass(frozen=True, slots=True)
class Prompt:
    """Tokens that a generation starts from.

    Args:
        tokens: the prompt; at least one token.
        limit: at most so many new tokens.
        truncated: the prompt was cut at the left.
    """

    tokens: tuple[int, ...]
    limit: int
    truncated: bool


def resolve_max_length(config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase) -> int:
    """Tokens a model can read, found as lm-eval's ``resolve_max_length`` finds it."""
    text = getattr(config, "text_config", None) or config
    for name in ("n_positions", "max_position_embeddings", "n_ctx"):
        value = getattr(text, name, None)
        if value is not None:
            return int(value)
    length = getattr(tokenizer, "model_max_length", None)
    if length is not None and length != _UNSET_LENGTH:
        return int(length)
    return _DEFAULT_MAX_LENGTH


class Encoder:
    """A tokenizer as HFLM uses it.

    Args:
        tokenizer: of the model.
        max_length: tokens the model can read.

    Raises:
        ParentError: a tokenizer with neither a BOS nor an EOS token; nothing could stand before the
            first token of a text.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_length: int) -> None:
        if tokenizer.eos_token_id is None:
            raise ParentError(
                "the tokenizer has no end-of-text token",
                hint="Set eos_token in tokenizer_config.json.",
            )
        self._tokenizer: Any = tokenizer
        self.max_length = max_length
        self.eos: int = tokenizer.eos_token_id
        bos = tokenizer.bos_token_id
        self.prefix: int = self.eos if bos is None else bos
        self._prefix_text = str(tokenizer.decode(self.prefix))
        self._bos_text: str | None = tokenizer.bos_token
        self.eos_text = str(tokenizer.decode(self.eos, skip_special_tokens=False))

    def _encode(self, texts: Sequence[str], special: bool | None) -> list[list[int]]:
        if not texts:
            return []
        extra = {} if special is None else {"add_special_tokens": special}
        # Same ids as encode() one by one, but fast tokenizers do it in one call.
        ids = self._tokenizer(list(texts), return_attention_mask=False, **extra)["input_ids"]
        return [list(row) for row in ids]

    def _encode_scoring(self, texts: Sequence[str]) -> dict[str, list[int]]:
        # HFLM.tok_encode: no second BOS before a text that starts with one.
        unique = list(dict.fromkeys(texts))
        own = [t for t in unique if t.startswith(self._prefix_text)]
        other = [t for t in unique if not t.startswith(self._prefix_text)]
        found = dict(zip(own, self._encode(own, False), strict=True))
        found.update(zip(other, self._encode(other, None), strict=True))
        return found

    def pairs(self, requests: Sequence[Request]) -> list[Scored]:
        """Tokens of ``loglikelihood`` requests.

        Raises:
            TaskError: a continuation without tokens, or with more than the model can read.
        """
        split = [move_spaces(r.context, r.continuation) for r in requests]
        given = [pair for pair, r in zip(split, requests, strict=True) if r.context]
        encoded = self._encode_scoring([*(c + k for c, k in given), *(c for c, _ in given)])
        bare = [r.continuation for r in requests if not r.context]
        encoded_bare = dict(zip(bare, self._encode(bare, False), strict=True))
        out = []
        for (context, continuation), request in zip(split, requests, strict=True):
            if request.context:
                head = encoded[context]
                scored = encoded[context + continuation][len(head) :]
            else:
                head, scored = [self.prefix], encoded_bare[continuation]
                if scored and scored[0] == self.prefix:
                    head, scored = scored[:1], scored[1:]
            out.append(self._cut(head, scored, request))
        return out

    def _cut(self, head: list[int], scored: list[int], request: Request) -> Scored:
        if not scored or not head:
            what = "continuation" if head else "prompt"
            raise TaskError(
                f"the {what} of a request has no tokens: {request.context[-60:]!r} then "
                f"{request.continuation[:60]!r}",
                hint="Every choice needs text of its own.",
            )
        if len(scored) > self.max_length:
            raise TaskError(
                f"a continuation of {len(scored)} tokens is longer than the model's "
                f"{self.max_length}: {request.continuation[:60]!r}",
                hint="Shorten it, or raise engine.max_length if the model can read more.",
            )
        total = len(head) + len(scored)
        kept = (head + scored)[-(self.max_length + 1) :]
        truncated = total > self.max_length + 1
        return Scored(tuple(kept[: -len(scored)]), tuple(scored), len(head), truncated)

    def windows(self, text: str) -> list[Scored]:
        """A text cut into windows that score each of its tokens once, with one token of overlap.

        The split is lm-eval's ``get_rolling_token_windows`` with ``context_len=1``, made disjoint.
        """
        tokens = self._encode_scoring([text])[text]
        size, out, done = self.max_length, [], 0
        while done < len(tokens):
            if done == 0:
                scored = tokens[:size]
                head = [self.prefix]
            else:
                # A last, shorter window reaches back so that its input is full.
                end = done + min(len(tokens) - done, size)
                scored = tokens[done:end]
                head = tokens[end - size - 1 : done]
            out.append(Scored(tuple(head), tuple(scored), len(head), False))
            done += len(scored)
        return out

    def prompts(self, requests: Sequence[Request]) -> list[Prompt]:
        """Tokens of ``generate_until`` requests.

        Raises:
            TaskError: a prompt without tokens, or a limit of new tokens that leaves no room for a
                prompt.
        """
        bos = self._bos_text
        texts = list(dict.fromkeys(r.context for r in requests))
        own = [t for t in texts if bos is not None and t.startswith(bos)]
        other = [t for t in texts if bos is None or not t.startswith(bos)]
        found = dict(zip(own, self._encode(own, False), strict=True))
        found.update(zip(other, self._encode(other, None), strict=True))
        return [self._prompt(found[r.context], r) for r in requests]

    def _prompt(self, tokens: list[int], request: Request) -> Prompt:
        limit = DEFAULT_MAX_TOKENS if request.max_tokens is None else request.max_tokens
        room = self.max_length - limit
        if room < 1 or limit < 1:
            raise TaskError(
                f"{limit} new tokens cannot be generated by a model that reads {self.max_length}",
                hint="Set max_gen_toks of the task (generation_kwargs) to less.",
            )
        if not tokens:
            raise TaskError(
                "a prompt to generate from is empty", hint="Every prompt needs a token."
            )
        return Prompt(tuple(tokens[-room:]), limit, len(tokens) > room)

    def piece(self, token: int) -> str:
        """The text of one token by itself."""
        text: str = self._tokenizer.decode([token], skip_special_tokens=False)
        return text

    def width(self, stop: str) -> int:
        """Tokens that HFLM looks back for a stop string: its own and two more."""
        return len(self._tokenizer.encode(stop, add_special_tokens=False)) + 2

    def raw(self, tokens: Sequence[int]) -> str:
        """The text of the tokens, special ones included: what stop strings are looked for in."""
        text: str = self._tokenizer.decode(list(tokens))
        return text

    def text(self, tokens: Sequence[int], until: Sequence[str]) -> str:
        """What was generated: special tokens dropped, cut before the first of each stop string."""
        text: str = self._tokenizer.decode(list(tokens), skip_special_tokens=True)
        for stop in (*until, self.eos_text):
            if stop:
                text = text.split(stop)[0]
        return text


def move_spaces(context: str, continuation: str) -> tuple[str, str]:
    """Spaces at the end of a prompt belong to the word that follows (TemplateLM._encode_pair)."""
    spaces = len(context) - len(context.rstrip())
    if spaces:
        return context[:-spaces], context[-spaces:] + continuation
    return context, continuation
