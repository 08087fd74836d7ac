"""Batched decoding with everything an endpoint may be asked to tell: log-probabilities, echo."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from evalq.errors import NonFiniteError
from evalq.models.base import LoadedModel
from evalq.models.encode import resolve_max_length
from evalq.models.forward import Forward
from evalq.models.prefix import Prompts
from evalq.models.vocabulary import Vocabulary

__all__ = ["Done", "Job", "ServeEngine", "Told"]

_TOKENS = 8192


@dataclass(frozen=True, slots=True)
class Told:
    """One token of an answer (or of an echoed prompt).

    Args:
        token: id.
        logprob: in nats at temperature 1, before any cut of the distribution; ``None`` for the
            first token of a prompt, which nothing stands before.
        top: the likeliest tokens with theirs, best first.
    """

    token: int
    logprob: float | None
    top: tuple[tuple[int, float], ...] = ()


@dataclass(slots=True)
class Job:
    """One completion that is asked for.

    Args:
        prompt: token ids, at least one.
        max_tokens: at most so many new tokens; 0 for the prompt's own log-probabilities only.
        temperature: 0 is greedy.
        top_p: smallest set of likeliest tokens with this much probability; 1 keeps all.
        top_k: 0 keeps all.
        seed: of the samples.
        stops: the text is cut before the first of these.
        logprobs: so many top log-probabilities a token; ``None`` for none at all.
        echo: the prompt's log-probabilities are wanted, too.
        emit: is told each token as it is chosen, in the engine's thread.
        cancelled: nobody waits for the answer any more.
    """

    prompt: tuple[int, ...]
    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0
    stops: tuple[str, ...] = ()
    logprobs: int | None = None
    echo: bool = False
    emit: Callable[[Told], None] | None = None
    cancelled: bool = False


@dataclass(slots=True)
class Done:
    """An answer.

    Args:
        tokens: chosen, an end token included.
        prompt: of the prompt's tokens, where ``echo`` was asked.
        text: of the tokens, cut before a stop string, special tokens left out.
        reason: ``"stop"`` or ``"length"``.
    """

    tokens: list[Told] = field(default_factory=list)
    prompt: list[Told] = field(default_factory=list)
    text: str = ""
    reason: str = "length"


class ServeEngine:
    """Runs jobs in one batch, in step; finished rows leave it.

    Args:
        model: a parent or an artifact, loaded.
    """

    def __init__(self, model: LoadedModel) -> None:
        self.model = model
        self.max_length = resolve_max_length(model.module.config, model.tokenizer)
        size = model.module.config.get_text_config().vocab_size
        self._forward = Forward(model.module, _TOKENS, max(1, (1 << 28) // size))
        self.vocabulary = Vocabulary(model.tokenizer)
        ends = getattr(getattr(model.module, "generation_config", None), "eos_token_id", None)
        listed = ends if isinstance(ends, (list, tuple)) else [ends]
        self.ends = frozenset(
            int(e) for e in (*listed, model.tokenizer.eos_token_id) if e is not None
        )

    def run(self, jobs: Sequence[Job]) -> list[Done]:
        """The answers to one batch, in its order.

        Raises:
            NonFiniteError: the model computes a NaN.
        """
        done = [Done() for _ in jobs]
        for job, out in zip(jobs, done, strict=True):
            if job.echo:
                out.prompt = self._echo(job)
        live = [i for i, job in enumerate(jobs) if job.max_tokens > 0]
        if live:
            self._decode(jobs, done, live)
        for job, out in zip(jobs, done, strict=True):
            self._finish(job, out)
        return done

    def _decode(self, jobs: Sequence[Job], done: list[Done], live: list[int]) -> None:
        samplers = {i: torch.Generator().manual_seed(jobs[i].seed) for i in live}
        heads = [jobs[i].prompt for i in live]
        state, logits = Prompts(self._forward, heads).read(heads)
        rows = list(live)
        while True:
            told = self._choose(logits, [jobs[i] for i in rows], [samplers[i] for i in rows])
            keep = []
            for place, (i, token) in enumerate(zip(rows, told, strict=True)):
                job, out = jobs[i], done[i]
                out.tokens.append(token)
                if job.emit is not None:
                    job.emit(token)
                if not self._over(job, out):
                    keep.append(place)
            if not keep:
                return
            chosen = [told[place].token for place in keep]
            if len(keep) < len(rows):
                state.select(keep)
                rows = [rows[place] for place in keep]
            logits = self._forward.step(state, torch.tensor(chosen, device=self._forward.device))

    def _over(self, job: Job, out: Done) -> bool:
        if out.tokens[-1].token in self.ends or (
            job.stops and any(s in self.vocabulary.text(_ids(out)) for s in job.stops)
        ):
            out.reason = "stop"
        return out.reason == "stop" or job.cancelled or len(out.tokens) >= job.max_tokens

    def _choose(
        self, logits: Tensor, jobs: Sequence[Job], samplers: Sequence[torch.Generator]
    ) -> list[Told]:
        """The next token of each row from logits ``[rows, vocabulary]``."""
        logp = torch.log_softmax(logits.float(), -1)
        if torch.isnan(logp).any():
            raise NonFiniteError(f"{self.model.name} computes a NaN")
        greedy = logp.argmax(-1).tolist()
        out = []
        for row, job, sampler, best in zip(logp, jobs, samplers, greedy, strict=True):
            token = best if job.temperature == 0 else _sample(row, job, sampler)
            out.append(_told(row, token, job.logprobs))
        return out

    @torch.inference_mode()
    def _echo(self, job: Job) -> list[Told]:
        ids = torch.tensor([job.prompt], device=self._forward.device)
        logits = self.model.module(input_ids=ids, use_cache=False).logits[0, :-1]
        logp = torch.log_softmax(logits.float(), -1)
        rest = [
            _told(row, token, job.logprobs) for row, token in zip(logp, job.prompt[1:], strict=True)
        ]
        return [Told(job.prompt[0], None), *rest]

    def _finish(self, job: Job, out: Done) -> None:
        ids = _ids(out)
        if ids and ids[-1] in self.ends:
            ids = ids[:-1]
        text = self.vocabulary.text(ids)
        found = [text.find(s) for s in job.stops if s in text]
        out.text = text[: min(found)] if found else text


def _ids(out: Done) -> list[int]:
    return [t.token for t in out.tokens]


def _told(row: Tensor, token: int, count: int | None) -> Told:
    if count is None:
        return Told(token, None)
    top: tuple[tuple[int, float], ...] = ()
    if count:
        values, ids = row.topk(min(count, row.shape[-1]))
        top = tuple(zip(ids.tolist(), values.tolist(), strict=True))
    return Told(token, float(row[token]), top)


def _sample(row: Tensor, job: Job, sampler: torch.Generator) -> int:
    """Invert the cumulative distribution in float64 at a number of the row's own generator."""
    weights = (row.to("cpu", torch.float64) / job.temperature).softmax(-1)
    if job.top_k or job.top_p < 1:
        values, order = weights.sort(descending=True)
        kept = values.cumsum(-1) - values < job.top_p
        if job.top_k:
            kept[job.top_k :] = False
        kept[0] = True
        weights = torch.zeros_like(weights).scatter(0, order[kept], values[kept])
    cumulative = weights.cumsum(-1)
    point = torch.rand((), generator=sampler, dtype=torch.float64) * cumulative[-1]
    return min(int(torch.searchsorted(cumulative, point, right=True)), row.shape[-1] - 1)
