"""The vLLM engine: answers requests through vLLM's offline Python API.

vLLM is imported when an engine is made, never before. Used of it, and the same since version 0.6:
``LLM(model, …)``, ``LLM.generate(prompts, sampling_params, use_tqdm)`` with ``TokensPrompt``,
``SamplingParams(temperature, max_tokens, stop, seed, prompt_logprobs, repetition_penalty,
detokenize)``, ``RequestOutput.prompt_logprobs`` (a list of ``{token: Logprob}``, ``None`` first)
and ``CompletionOutput.token_ids``. lm-eval's own adapter (``lm_eval/models/vllm_causallms.py``)
asks in the same way.

Prompts are cut into tokens here, as for the transformers engine, so both read the same tokens.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

from evalq.errors import EvalqError, MissingDependencyError, ParentError
from evalq.models.encode import DEFAULT_MAX_TOKENS, Encoder, Prompt, Scored
from evalq.models.generation import (
    end_tokens,
    read_generation_config,
    readable,
    repetition_penalty,
)
from evalq.models.load import load_tokenizer
from evalq.plan import EnginePlan
from evalq.schema import Request, RequestKind, Response

__all__ = ["VllmEngine"]

_REVISION = 1
"""Counted up whenever this engine's answers may change in any bit."""

_KINDS: tuple[RequestKind, ...] = ("loglikelihood", "loglikelihood_rolling", "generate_until")
_BATCH = 512
"""Requests that are handed over and journalled together; vLLM batches within them by itself."""


class VllmEngine:
    """Answers requests with vLLM.

    What vLLM runs in one pass depends on what it is given at once, so a batch is run whole, like
    those of the transformers engine: a resumed run repeats an unbroken one as far as vLLM's own
    scheduling does.

    Args:
        path: a model directory: a parent's, or an artifact in a format that vLLM reads.
        plan: ``dtype``, ``max_length``, ``batch_tokens`` (of one step), ``gpu_memory``.

    Raises:
        MissingDependencyError: vLLM is not installed, or cannot be imported.
        ParentError: vLLM cannot load the model, or its generation settings are not applied here.
        PlanError: a ``max_length`` beyond the model's own.
    """

    def __init__(self, path: Path, plan: EnginePlan) -> None:
        self._vllm = _import_vllm()
        tokenizer = load_tokenizer(path, plan)
        config = AutoConfig.from_pretrained(path, trust_remote_code=plan.trust_remote_code)
        longest = readable(plan, config, tokenizer, str(path))
        # vLLM reads the scored tokens as a prompt and generates one more: both need room.
        self._encoder = Encoder(tokenizer, max(1, longest - 2))
        generation = read_generation_config(path, config)
        self._ends = sorted({self._encoder.eos, *end_tokens(generation)})
        self._penalty = repetition_penalty(generation)
        dtype = _dtype(plan, config)
        self._settings = {
            "engine": "vllm",
            "revision": _REVISION,
            "vllm": str(self._vllm.__version__),
            "torch": torch.__version__,
            "dtype": dtype,
            "softmax_dtype": "float32",
            "max_length": longest,
            "max_tokens": DEFAULT_MAX_TOKENS,
            "batch_tokens": plan.batch_tokens,
            "end_tokens": self._ends,
            "repetition_penalty": self._penalty,
        }
        try:
            self._llm = self._vllm.LLM(
                model=str(path),
                tokenizer=str(path),
                dtype=dtype,
                max_model_len=longest,
                max_num_batched_tokens=max(plan.batch_tokens, longest),
                gpu_memory_utilization=plan.gpu_memory,
                trust_remote_code=plan.trust_remote_code,
                seed=0,
            )
        except (RuntimeError, ValueError, OSError, KeyError, ImportError) as error:
            text = " ".join(str(error).split())[:300]
            raise ParentError(
                f"vLLM cannot load {path}: {text}",
                hint="See vLLM's own messages above; engine.gpu_memory bounds what it takes.",
            ) from error

    @property
    def settings(self) -> Mapping[str, Any]:
        """All that changes an answer, as JSON values."""
        return self._settings

    def close(self) -> None:
        """Free the GPU: the next model is loaded by someone else."""
        from_vllm = import_module("vllm.distributed")
        self._llm = None
        from_vllm.cleanup_dist_env_and_memory()
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def supports(self, kind: RequestKind) -> bool:
        """Whether requests of that kind can be answered: all of lm-eval's three."""
        return kind in _KINDS

    def plan(self, requests: Sequence[Request]) -> list[list[int]]:
        """Requests of one kind in their order, so many at a time."""
        batches = []
        for kind in _KINDS:
            chosen = [i for i, r in enumerate(requests) if r.kind == kind]
            batches += [chosen[at : at + _BATCH] for at in range(0, len(chosen), _BATCH)]
        return batches

    def answer(self, requests: Sequence[Request]) -> list[Response]:
        """The responses to one batch, in its order.

        Raises:
            TaskError: a request that the model cannot be asked (no tokens, or too many).
            EvalqError: an answer that lacks the log-probabilities that were asked for.
        """
        out: list[Response | None] = [None] * len(requests)
        for kind, run in zip(_KINDS, (self._score, self._roll, self._generate), strict=True):
            chosen = [i for i, r in enumerate(requests) if r.kind == kind]
            if not chosen:
                continue
            start = time.perf_counter()
            found = run([requests[i] for i in chosen])
            share = (time.perf_counter() - start) / len(chosen)
            for i, (text, logprob, greedy, read, written, cut) in zip(chosen, found, strict=True):
                out[i] = Response(text, logprob, greedy, read, written, cut, share)
        return [r for r in out if r is not None]

    def _ask(self, prompts: Sequence[Sequence[int]], params: Sequence[Any]) -> list[Any]:
        tokens = [self._vllm.TokensPrompt(prompt_token_ids=list(p)) for p in prompts]
        found = list(self._llm.generate(tokens, list(params), use_tqdm=False))
        if len(found) != len(prompts):
            raise EvalqError(f"vLLM gave {len(found)} answers to {len(prompts)} prompts")
        return found

    def _sums(self, rows: Sequence[Scored]) -> list[tuple[float, bool]]:
        """Log-probability of each row's scored tokens, and whether each is the likeliest."""
        params = self._vllm.SamplingParams(
            temperature=0.0, max_tokens=1, prompt_logprobs=1, detokenize=False
        )
        asked = [(*row.head, *row.scored) for row in rows]
        outputs = self._ask(asked, [params] * len(rows))
        return [_sum(row, output) for row, output in zip(rows, outputs, strict=True)]

    def _score(self, requests: Sequence[Request]) -> list[tuple[Any, ...]]:
        rows = self._encoder.pairs(requests)
        return [
            ("", value, greedy, row.context, len(row.scored), row.truncated)
            for row, (value, greedy) in zip(rows, self._sums(rows), strict=True)
        ]

    def _roll(self, requests: Sequence[Request]) -> list[tuple[Any, ...]]:
        windows = [self._encoder.windows(r.context) for r in requests]
        sums = iter(self._sums([w for own in windows for w in own]))
        return [
            ("", sum(next(sums)[0] for _ in own), None, 0, sum(len(w.scored) for w in own), False)
            for own in windows
        ]

    def _generate(self, requests: Sequence[Request]) -> list[tuple[Any, ...]]:
        prompts = self._encoder.prompts(requests)
        params = [self._sampling(r, p) for r, p in zip(requests, prompts, strict=True)]
        outputs = self._ask([p.tokens for p in prompts], params)
        found: list[tuple[Any, ...]] = []
        for request, prompt, output in zip(requests, prompts, outputs, strict=True):
            answer = output.outputs[0]
            ids = list(answer.token_ids)
            cut = prompt.truncated or answer.finish_reason == "length"
            text = self._encoder.text(ids, request.until)
            found.append((text, None, None, len(prompt.tokens), len(ids), cut))
        return found

    def _sampling(self, request: Request, prompt: Prompt) -> Any:
        return self._vllm.SamplingParams(
            temperature=request.temperature,
            seed=request.seed if request.temperature > 0 else None,
            max_tokens=prompt.limit,
            stop=[s for s in request.until if s] or None,
            stop_token_ids=self._ends,
            repetition_penalty=self._penalty,
            skip_special_tokens=False,
        )


def _sum(row: Scored, output: Any) -> tuple[float, bool]:
    found = output.prompt_logprobs
    total, greedy = 0.0, True
    for place, token in enumerate(row.scored, start=len(row.head)):
        entry = found[place] if found and place < len(found) else None
        if not entry or token not in entry:
            raise EvalqError(
                f"vLLM gave no log-probability of token {place} of a prompt",
                hint="Its prompt_logprobs is what log-likelihoods are made of.",
            )
        value = float(entry[token].logprob)
        total += value
        # The likeliest token is always listed, beside the prompt's own.
        greedy = greedy and value >= max(float(e.logprob) for e in entry.values())
    return total, greedy


def _import_vllm() -> Any:
    try:
        return import_module("vllm")
    except ImportError as error:
        raise MissingDependencyError(
            f"engine.kind is vllm, and vLLM cannot be imported: {error}",
            hint="Install it into this environment (pip install vllm; it needs a GPU), or leave "
            "engine.kind out.",
        ) from None


def _dtype(plan: EnginePlan, config: Any) -> str:
    """The plan's, or the one of the files: vLLM's own ``auto`` would turn float32 into 16 bits."""
    if plan.dtype != "auto":
        return plan.dtype
    stored = getattr(config, "dtype", None)
    return "bfloat16" if stored is None else str(stored).removeprefix("torch.")
