"""The transformers engine: answers lm-eval's requests as lm-eval's HFLM does, with less work."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

import torch
import transformers

from evalq.errors import EvalqError, KernelError
from evalq.memory import cache_shape
from evalq.models import kvcache
from evalq.models.base import LoadedModel
from evalq.models.batching import Budget, Shape, pack
from evalq.models.decoding import Generation, Stops, generate
from evalq.models.encode import DEFAULT_MAX_TOKENS, Encoder, Prompt, Scored
from evalq.models.forward import Forward
from evalq.models.generation import end_tokens, readable, repetition_penalty
from evalq.models.scoring import score
from evalq.plan import EnginePlan
from evalq.schema import Request, RequestKind, Response

__all__ = ["TransformersEngine"]

_REVISION = 3
"""Counted up whenever this engine's answers may change in any bit."""

_KINDS: tuple[RequestKind, ...] = ("loglikelihood", "loglikelihood_rolling", "generate_until")
_LOGITS_BYTES = 1 << 30
_ROWS = 256
_KEPT = 4
_KEPT_BYTES = 1 << 30
"""Keys and values that are held at once on a CPU, at most."""
_KEPT_SHARE = 0.125
"""The same on a GPU, as a share of its memory."""
_WAVES = 4
"""A batch of generations has so many times the prompts that run at once: rows that finish early
take the next ones."""

_Encoded = Scored | Prompt | list[Scored]
_Item = TypeVar("_Item")
_Answer = TypeVar("_Answer")


class TransformersEngine:
    """Answers requests with a transformers causal LM.

    Prompts that several requests share (the choices of a question, the examples of a few-shot
    prompt) are read once; generation runs rows of one batch in step and drops the finished ones.

    Args:
        model: from ``load_parent`` or ``load_artifact``.
        plan: ``batch_tokens`` bounds the tokens of a pass, ``max_length`` what the model reads
            (the default is the model's own limit), ``threads`` torch's threads on a CPU.

    Raises:
        ParentError: an architecture or a tokenizer that cannot be run this way, or settings of
            generation (``generation_config.json``) that are not applied here.
        PlanError: a ``max_length`` beyond the model's own.
    """

    def __init__(self, model: LoadedModel, plan: EnginePlan) -> None:
        if plan.threads is not None:
            torch.set_num_threads(plan.threads)
        max_length = readable(plan, model.module.config, model.tokenizer, model.name)
        vocabulary = model.module.config.get_text_config().vocab_size
        logits = max(1, _LOGITS_BYTES // (4 * vocabulary))
        self._forward = Forward(model.module, plan.batch_tokens, logits, model.kv_bits)
        self._encoder = Encoder(model.tokenizer, max_length)
        generation = getattr(model.module, "generation_config", None)
        self._ends = frozenset({self._encoder.eos, *end_tokens(generation)})
        self._penalty = repetition_penalty(generation)
        room = _kept_bytes(model.device) // _kv_bytes(model)
        self._kept = max(1, min(plan.batch_tokens * _KEPT, room))
        enough = self._forward.enough
        self._scoring = Budget(plan.batch_tokens, self._kept, logits, 4 * _ROWS, enough)
        # Prompts are read in spans of columns that fit, so only what is kept bounds a generation.
        self._lanes = self._forward.gaps and model.kv_bits is None
        waves = _WAVES if self._lanes else 1
        self._running = max(1, room) if model.device.type == "cuda" else self._kept
        kept = self._running * waves
        self._generating = Budget(kept, kept, logits, _ROWS * waves)
        self._encoded: dict[Request, _Encoded] = {}
        self.events: list[str] = []
        """What happened on the way that a reader of the results should know (out of memory)."""
        self._settings = {
            "engine": "transformers",
            "revision": _REVISION,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "device": _device_name(model.device),
            "threads": torch.get_num_threads() if model.device.type == "cpu" else None,
            "dtype": str(model.dtype).removeprefix("torch."),
            "attention": model.module.config._attn_implementation,
            "execution": model.execution,
            "softmax_dtype": "float32",
            "max_length": max_length,
            "max_tokens": DEFAULT_MAX_TOKENS,
            "batch_tokens": plan.batch_tokens,
            "kept_tokens": self._running,
            "end_tokens": sorted(self._ends),
            "repetition_penalty": self._penalty,
        }
        if model.kv_bits is not None:
            self._settings["kv_cache"] = kvcache.settings(model.kv_bits)

    @property
    def settings(self) -> Mapping[str, Any]:
        """All that changes an answer, as JSON values."""
        return self._settings

    def supports(self, kind: RequestKind) -> bool:
        """Whether requests of that kind can be answered: all of lm-eval's three."""
        return kind in _KINDS

    def plan(self, requests: Sequence[Request]) -> list[list[int]]:
        """Batches of indices into ``requests``, by the requests alone.

        Requests of one kind and, for generations, one limit of tokens go together; those that share
        a prompt are never parted unless one batch cannot hold them.

        Raises:
            TaskError: a request that the model cannot be asked (no tokens, or too many).
        """
        self._encode(requests)
        batches: list[list[int]] = []
        for kind in _KINDS:
            chosen = [i for i, r in enumerate(requests) if r.kind == kind]
            if kind == "generate_until":
                limits = sorted({self._prompt(requests[i]).limit for i in chosen})
                for limit in limits:
                    same = [i for i in chosen if self._prompt(requests[i]).limit == limit]
                    shapes = [Shape(self._prompt(requests[i]).tokens, 1, limit, 1) for i in same]
                    cut = self._cut(shapes, self._generating)
                    batches.extend([same[j] for j in batch] for batch in cut)
            elif kind == "loglikelihood":
                batches.extend(self._plan_scoring(requests, chosen))
            else:
                batches.extend(self._plan_rolling(requests, chosen))
        return batches

    def _plan_scoring(self, requests: Sequence[Request], chosen: list[int]) -> list[list[int]]:
        by_head: dict[tuple[int, ...], list[int]] = {}
        for i in chosen:
            by_head.setdefault(self._scored(requests[i]).head, []).append(i)
        groups = list(by_head.values())
        shapes = []
        for head, group in by_head.items():
            longest = max(len(self._scored(requests[i]).scored) for i in group)
            shapes.append(Shape(head, len(group), longest - 1, longest))
        cut = self._cut(shapes, self._scoring)
        return [[i for j in batch for i in groups[j]] for batch in cut]

    def _plan_rolling(self, requests: Sequence[Request], chosen: list[int]) -> list[list[int]]:
        shapes = []
        for i in chosen:
            windows = self._windows(requests[i])
            longest = max((len(w.scored) for w in windows), default=1)
            head = max((w.head for w in windows), default=(0,), key=len)
            shapes.append(Shape(head, max(1, len(windows)), longest, longest))
        return [[chosen[j] for j in batch] for batch in self._cut(shapes, self._scoring)]

    def _cut(self, shapes: Sequence[Shape], budget: Budget) -> list[list[int]]:
        """Batches; of prompts of one length where a rounded cache must not be padded."""
        if self._forward.kv_bits is None:
            return pack(shapes, budget)
        lengths: dict[int, list[int]] = {}
        for i, shape in enumerate(shapes):
            lengths.setdefault(len(shape.head), []).append(i)
        return [
            [same[j] for j in batch]
            for _, same in sorted(lengths.items())
            for batch in pack([shapes[i] for i in same], budget)
        ]

    def answer(self, requests: Sequence[Request]) -> list[Response]:
        """The responses to one batch, in its order.

        Out of memory, the batch is halved until it fits; ``events`` tells of it.

        Raises:
            TaskError: as for ``plan``.
            EvalqError: a single request does not fit into memory.
        """
        self._encode(requests)
        out: list[Response | None] = [None] * len(requests)
        for kind in _KINDS:
            chosen = [i for i, r in enumerate(requests) if r.kind == kind]
            if not chosen:
                continue
            start = time.perf_counter()
            asked = [requests[i] for i in chosen]
            if kind == "generate_until":
                found = self._generate(asked)
            elif kind == "loglikelihood":
                found = self._halving(asked, self._score)
            else:
                found = self._halving(asked, self._roll)
            share = (time.perf_counter() - start) / len(chosen)
            for i, (text, logprob, greedy, read, written, cut) in zip(chosen, found, strict=True):
                out[i] = Response(text, logprob, greedy, read, written, cut, share)
        for request in requests:
            self._encoded.pop(request, None)
        return [r for r in out if r is not None]

    def _score(self, requests: Sequence[Request]) -> list[tuple[Any, ...]]:
        rows = [self._scored(r) for r in requests]
        found = score(self._forward, rows)
        return [
            ("", value, greedy, row.context, len(row.scored), row.truncated)
            for row, (value, greedy) in zip(rows, found, strict=True)
        ]

    def _roll(self, requests: Sequence[Request]) -> list[tuple[Any, ...]]:
        windows = [(i, w) for i, r in enumerate(requests) for w in self._windows(r)]
        sums = [0.0] * len(requests)
        # Sorted by length and cut by budget; one long text alone may need several passes.
        windows.sort(key=lambda pair: -len(pair[1].head) - len(pair[1].scored))
        width = max((len(w.head) + len(w.scored) for _, w in windows), default=1)
        size = max(1, self._kept // width)
        lengths = {len(w.head) for _, w in windows} if self._forward.kv_bits else {None}
        parts = []
        for length in sorted(lengths, key=str):
            same = [pair for pair in windows if length in (None, len(pair[1].head))]
            parts += [same[start : start + size] for start in range(0, len(same), size)]
        for part in parts:
            for (i, _), (value, _) in zip(
                part, score(self._forward, [w for _, w in part]), strict=True
            ):
                sums[i] += value
        return [
            ("", value, None, 0, sum(len(w.scored) for w in self._windows(r)), False)
            for r, value in zip(requests, sums, strict=True)
        ]

    def _generate(self, requests: Sequence[Request]) -> list[tuple[Any, ...]]:
        prompts = [self._prompt(r) for r in requests]
        eos = self._encoder.eos_text
        stops = [Stops((*r.until, eos), r.temperature, r.seed) for r in requests]
        return [
            (
                self._encoder.text(g.tokens, r.until),
                None,
                None,
                len(p.tokens),
                len(g.tokens),
                p.truncated or not g.stopped,
            )
            for r, p, g in zip(requests, prompts, self._generations(prompts, stops), strict=True)
        ]

    def _generations(self, prompts: Sequence[Prompt], stops: Sequence[Stops]) -> list[Generation]:
        """All of a batch, as many at once as there is room for; out of memory, half as many."""
        rows = max(1, self._running // max(len(p.tokens) + p.limit for p in prompts))
        rows = min(rows, _ROWS, len(prompts))
        while True:
            try:
                return self._in_rows(prompts, stops, rows)
            except (RuntimeError, MemoryError) as error:
                reason = _out_of_memory(error)
                if not reason:
                    raise
            self._freed(reason, rows)
            rows = (rows + 1) // 2

    def _in_rows(
        self, prompts: Sequence[Prompt], stops: Sequence[Stops], rows: int
    ) -> list[Generation]:
        run = partial(
            generate, self._forward, self._encoder, ends=self._ends, penalty=self._penalty
        )
        if self._lanes:
            try:
                return run(prompts, stops, lanes=rows)
            except KernelError as error:
                # Of this batch alone: a resumed run, which begins with another, decides alike.
                event = f"{error.message}: rows that finish take no other prompts"
                if event not in self.events:
                    self.events.append(event)
        parts = [slice(start, start + rows) for start in range(0, len(prompts), rows)]
        return [g for part in parts for g in run(prompts[part], stops[part])]

    def _freed(self, reason: str, count: int) -> None:
        """Note that so many rows were too many, and give back what they took.

        Raises:
            EvalqError: it was a single one.
        """
        if count == 1:
            raise EvalqError(
                f"one request alone does not fit into memory: {reason}",
                hint="Lower engine.max_length or engine.batch_tokens, or use another device.",
            )
        if self._forward.device.type == "cuda":
            torch.cuda.empty_cache()
        self.events.append(f"out of memory with {count} requests at once: halved")

    def _halving(
        self, items: Sequence[_Item], run: Callable[[Sequence[_Item]], list[_Answer]]
    ) -> list[_Answer]:
        try:
            return run(items)
        except (RuntimeError, MemoryError) as error:
            reason = _out_of_memory(error)
            if not reason:
                raise
        self._freed(reason, len(items))
        half = len(items) // 2
        return self._halving(items[:half], run) + self._halving(items[half:], run)

    def _encode(self, requests: Sequence[Request]) -> None:
        new = [r for r in dict.fromkeys(requests) if r not in self._encoded]
        pairs = [r for r in new if r.kind == "loglikelihood"]
        prompts = [r for r in new if r.kind == "generate_until"]
        self._encoded.update(zip(pairs, self._encoder.pairs(pairs), strict=True))
        self._encoded.update(zip(prompts, self._encoder.prompts(prompts), strict=True))
        for request in new:
            if request.kind == "loglikelihood_rolling":
                self._encoded[request] = self._encoder.windows(request.context)

    def _scored(self, request: Request) -> Scored:
        found = self._encoded[request]
        assert isinstance(found, Scored)
        return found

    def _prompt(self, request: Request) -> Prompt:
        found = self._encoded[request]
        assert isinstance(found, Prompt)
        return found

    def _windows(self, request: Request) -> list[Scored]:
        found = self._encoded[request]
        assert isinstance(found, list)
        return found


def _kv_bytes(model: LoadedModel) -> int:
    """Bytes that a token of one row keeps in all layers; 1 where the configuration says too little.

    A window is not counted as less: a batch is planned for the longest that it may hold.
    """
    try:
        shape = cache_shape(model.module.config.to_dict())
    except EvalqError:
        return 1
    layers = shape.full + len(shape.windows)
    return max(1, layers * shape.values * (torch.finfo(model.dtype).bits // 8))


def _kept_bytes(device: torch.device) -> int:
    """Bytes of keys and values that are held at once, by the device alone: not by what is free."""
    if device.type != "cuda":
        return _KEPT_BYTES
    total = torch.cuda.get_device_properties(device).total_memory
    return max(_KEPT_BYTES, int(total * _KEPT_SHARE))


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _out_of_memory(error: BaseException) -> str:
    """What an error says of memory; empty where it is of something else."""
    text = str(error).splitlines()[0] if str(error) else "out of memory"
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return text
    known = "DefaultCPUAllocator: can't allocate memory" in str(error)
    return text if known or "out of memory" in str(error).lower() else ""
