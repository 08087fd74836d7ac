"""Greedy and sampled generation in a loop of single steps; finished rows leave the batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from evalq.models.encode import Encoder, Prompt
from evalq.models.forward import Forward
from evalq.models.scoring import prefill

__all__ = ["Generation", "Stops", "generate"]

_RETIRE = 0.125
"""Finished rows leave the batch when they are this share of it: each time copies the cache."""


@dataclass(frozen=True, slots=True)
class Stops:
    """Where a generation ends.

    Args:
        strings: stop strings; the end-of-text string is always one of them.
        temperature: 0 is greedy.
        seed: of the samples, for a temperature above 0.
    """

    strings: tuple[str, ...]
    temperature: float
    seed: int


@dataclass(slots=True)
class Generation:
    """Tokens generated so far, and whether they ended at a stop rather than at the limit."""

    tokens: list[int] = field(default_factory=list)
    stopped: bool = False


class _Watch:
    """Sees when a stop string is complete.

    Text is decoded only when the newest token can be the end of a stop string. Missing one would
    cost steps, not change a text: what is returned is cut at the first stop string of the whole.
    """

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder
        self._ends: dict[tuple[str, ...], dict[int, bool]] = {}
        self._widths: dict[str, int] = {}

    def _may_end(self, token: int, strings: tuple[str, ...]) -> bool:
        known = self._ends.setdefault(strings, {})
        if token not in known:
            piece = self._encoder.piece(token)
            # Spaces may be dropped from a token decoded alone, and half a character shows as
            # U+FFFD; both are looked at in context.
            known[token] = not piece.strip() or "\ufffd" in piece
            known[token] |= any(s[-1] in piece or s[-1].isspace() for s in strings if s)
        return known[token]

    def stopped(self, tokens: list[int], strings: tuple[str, ...]) -> bool:
        if not self._may_end(tokens[-1], strings):
            return False
        for stop in strings:
            if not stop:
                continue
            if stop not in self._widths:
                self._widths[stop] = self._encoder.width(stop)
            if stop in self._encoder.raw(tokens[-self._widths[stop] :]):
                return True
        return False


def generate(
    forward: Forward,
    encoder: Encoder,
    prompts: Sequence[Prompt],
    stops: Sequence[Stops],
    ends: frozenset[int],
    penalty: float = 1.0,
) -> list[Generation]:
    """Generate from every prompt until a stop string, an end token or the limit.

    Greedy decoding takes the lowest token id at a tie. A sample is drawn by inverting the
    cumulative distribution, in float64, at a uniform number of the row's own seeded generator, so
    that it depends neither on the other rows nor on their number.

    Args:
        forward: the model.
        encoder: its tokenizer.
        prompts: where to start; the common prefix of all is read once.
        stops: one for each prompt.
        ends: tokens that end a generation.
        penalty: repetition penalty (arXiv 1909.05858, 4.1, as transformers applies it): scores of
            tokens that a row holds already are divided by it, or multiplied where negative.
    """
    done = [Generation() for _ in prompts]
    watch = _Watch(encoder)
    samplers = [torch.Generator().manual_seed(s.seed) if s.temperature > 0 else None for s in stops]
    state, logits = prefill(forward, [p.tokens for p in prompts])
    rows = list(range(len(prompts)))
    live = set(rows)
    while True:
        if penalty != 1.0:
            held = [(*prompts[row].tokens, *done[row].tokens) for row in rows]
            logits = _penalize(logits.float(), held, penalty)
        chosen = _choose(logits, rows, stops, samplers)
        for row, token in zip(rows, chosen, strict=True):
            if row not in live:
                continue
            out = done[row]
            out.tokens.append(token)
            if token in ends or watch.stopped(out.tokens, stops[row].strings):
                out.stopped = True
                live.discard(row)
            elif len(out.tokens) >= prompts[row].limit:
                live.discard(row)
        if not live:
            return done
        if len(live) <= (1 - _RETIRE) * len(rows):
            keep = [i for i, row in enumerate(rows) if row in live]
            state.select(keep)
            rows, chosen = [rows[i] for i in keep], [chosen[i] for i in keep]
        logits = forward.step(state, torch.tensor(chosen, device=forward.device))


def _penalize(logits: Tensor, held: Sequence[Sequence[int]], penalty: float) -> Tensor:
    """Scores ``[rows, vocabulary]`` with those of the tokens that each row holds made smaller."""
    seen = torch.zeros(logits.shape, dtype=torch.bool)
    for i, tokens in enumerate(held):
        seen[i, torch.tensor(tokens)] = True
    smaller = torch.where(logits < 0, logits * penalty, logits / penalty)
    return torch.where(seen.to(logits.device), smaller, logits)


def _choose(
    logits: Tensor,
    rows: Sequence[int],
    stops: Sequence[Stops],
    samplers: Sequence[torch.Generator | None],
) -> list[int]:
    """The next token of each row, from logits ``[rows, vocabulary]``."""
    chosen: list[int] = logits.float().argmax(-1).tolist()
    for i, row in enumerate(rows):
        sampler = samplers[row]
        if sampler is None:
            continue
        weights = (logits[i].to("cpu", torch.float64) / stops[row].temperature).softmax(-1)
        point = torch.rand((), generator=sampler, dtype=torch.float64)
        cumulative = weights.cumsum(-1)
        index = torch.searchsorted(cumulative, point * cumulative[-1], right=True)
        chosen[i] = min(int(index), logits.shape[-1] - 1)
    return chosen
