"""Which loop runs a model's prefill and decoding here, by a recorded rule."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from evalq.errors import EvalqError, ParentError, PlanError
from evalq.models.lean import eager, native
from evalq.models.lean.eager import Slots
from evalq.models.lean.spec import Decoder, describe

__all__ = ["LOOPS", "NATIVE_ROWS", "Runner", "make_runner"]

LOOPS = {
    "graph": "prefill in torch; decoding replayed from one CUDA graph over a static cache",
    "native": "prefill in torch; decoding in compiled C, one call a token (CPU)",
    "eager": "prefill and decoding in few torch operations over a static cache",
    "transformers": "the model's own forward pass and a growing cache",
}
"""Every loop, the fastest first; see ``make_runner``."""

NATIVE_ROWS = 16
"""Above so many rows torch's matrix products beat the compiled step (benchmarks/RESULTS.md)."""

_TOLERANCE = {torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 8e-2}
_PROBE = 8
_HELD = "_evalq_decoder"


class Runner(Protocol):
    """One batch of sequences of one length.

    ``loop`` is a key of ``LOOPS``, ``why`` a sentence on why it was chosen.
    """

    loop: str
    why: str

    def prefill(self, tokens: Tensor) -> Tensor:
        """Read int64 ``[rows, width]``; logits ``[rows, vocabulary]`` of what follows."""
        ...

    def step(self, tokens: Tensor) -> Tensor:
        """Read one more token a row, int64 ``[rows]``; logits ``[rows, vocabulary]``."""
        ...


class _Transformers:
    """The model's own forward pass."""

    loop = "transformers"

    def __init__(self, module: Any, why: str) -> None:
        self.why = why
        self._module = module
        self._cache: Any = None

    @torch.inference_mode()
    def prefill(self, tokens: Tensor) -> Tensor:
        """See ``Runner``."""
        return self._read(tokens)

    @torch.inference_mode()
    def step(self, tokens: Tensor) -> Tensor:
        """See ``Runner``."""
        return self._read(tokens[:, None])

    def _read(self, tokens: Tensor) -> Tensor:
        out = self._module(
            input_ids=tokens, past_key_values=self._cache, use_cache=True, logits_to_keep=1
        )
        self._cache = out.past_key_values
        logits: Tensor = out.logits[:, -1]
        return logits


class _Lean:
    """Prefill in torch, decoding by ``loop``, over one static cache."""

    def __init__(self, decoder: Decoder, rows: int, length: int, loop: str, why: str) -> None:
        self.loop, self.why = loop, why
        self._decoder = decoder
        self._slots = Slots(decoder, rows, length)
        self._step: Any = None
        if loop == "native":
            self._step = native.NativeStep(decoder, self._slots)
        elif loop == "graph":
            from evalq.models.lean.graph import GraphStep

            self._step = GraphStep(decoder, self._slots)

    def prefill(self, tokens: Tensor) -> Tensor:
        """See ``Runner``."""
        return eager.read(self._decoder, self._slots, tokens)

    def step(self, tokens: Tensor) -> Tensor:
        """See ``Runner``."""
        if self._step is None:
            return eager.read(self._decoder, self._slots, tokens[:, None])
        logits: Tensor = self._step(tokens)
        return logits


def _disagreement(decoder: Decoder, module: Any) -> str | None:
    """Whether the parts, put together here, give other logits than the module itself."""
    tokens = torch.arange(1, _PROBE + 1, device=decoder.device) * 7 % decoder.head.out_features
    with torch.inference_mode():
        own = module(input_ids=tokens[None], logits_to_keep=1).logits[0, -1].float()
        ours = eager.read(decoder, Slots(decoder, 1, _PROBE), tokens[None])[0].float()
    error = float((ours - own).norm() / own.norm().clamp_min(1e-30))
    limit = _TOLERANCE.get(decoder.dtype, 1e-3)
    # A NaN is a disagreement as well.
    return None if error <= limit else f"its logits differ from transformers' by {error:.2g}"


def _decoder(module: Any) -> Decoder:
    found: Decoder | None = module.__dict__.get(_HELD)
    if found is None:
        found = describe(module)
        wrong = _disagreement(found, module)
        if wrong is not None:
            raise ParentError(wrong)
        module.__dict__[_HELD] = found
    return found


def make_runner(module: Any, rows: int, length: int, loop: str = "auto") -> Runner:
    """A loop over ``rows`` sequences of up to ``length`` tokens.

    ``auto`` takes ``graph`` on CUDA; on a CPU ``native`` for up to ``NATIVE_ROWS`` rows where the
    compiled step can read the weights, else ``eager``; and ``transformers`` for what is no plain
    decoder (``spec``), or where the logits of a probe differ from transformers' own.

    Args:
        module: a transformers causal LM, its linear layers dense or packed.
        rows: sequences.
        length: tokens of the longest, generated ones included.
        loop: one of ``LOOPS``, or ``auto``.

    Raises:
        PlanError: an unknown loop, or more tokens than the model is made for.
        EvalqError: the loop that was named cannot run this model.
    """
    if loop not in ("auto", *LOOPS):
        raise PlanError(f"unknown loop {loop!r}", hint=f"Known: auto, {', '.join(LOOPS)}.")
    if loop == "transformers":
        return _Transformers(module, "asked for")
    try:
        decoder = _decoder(module)
    except EvalqError as error:
        if loop != "auto":
            raise
        return _Transformers(module, error.message)
    if loop != "auto":
        return _Lean(decoder, rows, length, loop, "asked for")
    if decoder.device.type == "cuda":
        return _Lean(decoder, rows, length, "graph", "a plain decoder on CUDA")
    reason = native.why_not(decoder)
    if reason is not None:
        return _Lean(decoder, rows, length, "eager", f"the compiled step {reason}")
    if rows > NATIVE_ROWS:
        return _Lean(decoder, rows, length, "eager", f"more than {NATIVE_ROWS} rows")
    return _Lean(decoder, rows, length, "native", "a plain decoder on a CPU")
