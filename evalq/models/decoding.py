"""Greedy and sampled generation in a loop of single steps; finished rows make room for others."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from evalq.models.encode import Encoder, Prompt
from evalq.models.forward import Forward
from evalq.models.lanes import Grown, Keeper, Lanes
from evalq.models.prefix import Prompts

__all__ = ["Generation", "Stops", "generate"]

_RETIRE = 0.125
"""Finished rows leave the batch, or take other prompts, when they are this share of it: leaving
copies the cache, and prompts are read faster together."""


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
    lanes: int | None = None,
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
        lanes: so many rows at once, each of which takes the next prompt when it has finished one;
            ``None`` reads all prompts together.

    Raises:
        KernelError: the model cannot be run over lanes.
    """
    reader = Prompts(forward, [p.tokens for p in prompts])
    if lanes is None:
        keeper: Keeper = Grown(forward, reader, len(prompts))
    else:
        length = max(len(p.tokens) + p.limit for p in prompts)
        keeper = Lanes(forward, reader, min(lanes, len(prompts)), length)
    return _Batch(forward, encoder, prompts, stops, ends, penalty).run(keeper)


class _Batch:
    """One call of ``generate``, with its arguments."""

    def __init__(
        self,
        forward: Forward,
        encoder: Encoder,
        prompts: Sequence[Prompt],
        stops: Sequence[Stops],
        ends: frozenset[int],
        penalty: float,
    ) -> None:
        self._forward, self._prompts, self._stops = forward, prompts, stops
        self._ends, self._penalty = ends, penalty
        self._watch = _Watch(encoder)
        self._samplers = [
            torch.Generator().manual_seed(s.seed) if s.temperature > 0 else None for s in stops
        ]
        self._done = [Generation() for _ in prompts]
        self._waiting = deque(range(len(prompts)))
        self._rows: list[int | None] = []
        """The prompt of each row; ``None`` where it is free."""

    def run(self, keeper: Keeper) -> list[Generation]:
        self._rows = [None] * keeper.rows
        self._fill(keeper)
        while any(prompt is not None for prompt in self._rows):
            last = [None if p is None else self._done[p].tokens[-1] for p in self._rows]
            logits = keeper.step(last)
            self._take(logits, list(range(keeper.rows)))
            free = self._rows.count(None)
            if self._waiting and (free >= _RETIRE * keeper.rows or free == keeper.rows):
                self._fill(keeper)
            elif not self._waiting and _RETIRE * keeper.rows <= free < keeper.rows:
                live = [i for i, prompt in enumerate(self._rows) if prompt is not None]
                self._rows = [self._rows[i] for i in keeper.keep(live)]
        return self._done

    def _fill(self, keeper: Keeper) -> None:
        """Read the next prompts into free rows, as many at once as a pass may read."""
        while self._waiting and None in self._rows:
            free = [i for i, prompt in enumerate(self._rows) if prompt is None]
            count = min(len(free), len(self._waiting))
            if keeper.refills:
                longest = len(self._prompts[self._waiting[0]].tokens)
                count = min(count, max(1, self._forward.tokens // longest))
            rows = free[:count]
            taken = [self._waiting.popleft() for _ in rows]
            logits = keeper.fill(rows, [self._prompts[i].tokens for i in taken])
            for row, prompt in zip(rows, taken, strict=True):
                self._rows[row] = prompt
            self._take(logits, rows)

    def _take(self, logits: Tensor, rows: Sequence[int]) -> None:
        """Choose the next token of these rows, from logits ``[rows, vocabulary]``."""
        of = [self._rows[row] for row in rows]
        places = [i for i, prompt in enumerate(of) if prompt is not None]
        prompts = [prompt for prompt in of if prompt is not None]
        if len(places) < len(rows):
            logits = logits[torch.tensor(places, device=logits.device)]
        if self._penalty != 1.0:
            held = [(*self._prompts[p].tokens, *self._done[p].tokens) for p in prompts]
            logits = _penalize(logits.float(), held, self._penalty)
        chosen = _choose(logits, prompts, self._stops, self._samplers)
        for place, prompt, token in zip(places, prompts, chosen, strict=True):
            out = self._done[prompt]
            out.tokens.append(token)
            if token in self._ends or self._watch.stopped(out.tokens, self._stops[prompt].strings):
                out.stopped = True
                self._rows[rows[place]] = None
            elif len(out.tokens) >= self._prompts[prompt].limit:
                self._rows[rows[place]] = None


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
