"""Decoding on a GPU: one step over static buffers, captured once and replayed."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from evalq.errors import KernelError
from evalq.models.lean import fused
from evalq.models.lean.eager import Slots, normalize, rotate
from evalq.models.lean.spec import Block, Decoder, side_by_side

__all__ = ["GraphStep", "step"]


def _attend(
    decoder: Decoder, block: Block, x: Tensor, slots: Slots, layer: int, at: Tensor, seen: Tensor
) -> Tensor:
    rows, size, group = slots.rows, decoder.head_dim, decoder.heads // decoder.kv_heads
    few = decoder.kv_heads
    every = side_by_side(block.qkv, x).view(rows, decoder.heads + 2 * few, size)
    q, v = every[:, : decoder.heads], every[:, decoder.heads + few :]
    k = every[:, decoder.heads : decoder.heads + few]
    if block.q_norm is not None and block.k_norm is not None:
        q = normalize(q, block.q_norm, decoder.epsilon)
        k = normalize(k, block.k_norm, decoder.epsilon)
    cos = slots.cos.index_select(0, at).to(x.dtype)
    sin = slots.sin.index_select(0, at).to(x.dtype)
    q = rotate(q, cos, sin)
    keys, values = slots.keys[layer], slots.values[layer]
    keys.index_copy_(2, at, rotate(k, cos, sin)[:, :, None])
    values.index_copy_(2, at, v[:, :, None])
    grouped = q.view(rows, decoder.kv_heads, group, size)
    scores = (grouped @ keys.transpose(-1, -2)).float() * size**-0.5 + seen
    mixed = functional.softmax(scores, -1).to(x.dtype) @ values
    return mixed.reshape(rows, -1)


def step(decoder: Decoder, slots: Slots, tokens: Tensor, at: Tensor) -> Tensor:
    """Logits after one more token a row, by operations whose shapes never change.

    Args:
        decoder: the model.
        slots: its keys and values; slot ``at`` is written.
        tokens: int64 ``[rows]``.
        at: int64 ``[1]``, the slot, on the device.

    Returns:
        ``[rows, vocabulary]`` in the model's dtype.
    """
    columns = torch.arange(slots.length, device=tokens.device)
    seen = torch.where(columns <= at, 0.0, float("-inf"))
    h = functional.embedding(tokens, decoder.embedding)
    for layer, block in enumerate(decoder.blocks):
        x = normalize(h, block.attention_norm, decoder.epsilon)
        h = h + block.o(_attend(decoder, block, x, slots, layer, at, seen))
        x = normalize(h, block.feed_forward_norm, decoder.epsilon)
        gate, up = side_by_side(block.gate_up, x).chunk(2, -1)
        h = h + block.down(functional.silu(gate) * up)
    logits: Tensor = decoder.head(normalize(h, decoder.norm, decoder.epsilon))
    return logits


class GraphStep:
    """Reads one token a row by replaying a CUDA graph.

    Args:
        decoder: the model, on CUDA.
        slots: its keys and values; filled further by every step.

    Raises:
        KernelError: the model is not on CUDA.
    """

    name = "graph"

    def __init__(self, decoder: Decoder, slots: Slots) -> None:
        if decoder.device.type != "cuda":
            raise KernelError("CUDA graphs run on a CUDA device only")
        self._slots = slots
        self._tokens = torch.zeros(slots.rows, dtype=torch.int64, device=decoder.device)
        self._at = torch.zeros(1, dtype=torch.int64, device=decoder.device)
        reason = fused.why_not(decoder)
        self.kernels = "fused" if reason is None else f"torch: the fused kernels {reason}"
        """What runs between the products."""
        run: Callable[[Tensor, Tensor], Tensor]
        run = fused.FusedStep(decoder, slots) if reason is None else partial(step, decoder, slots)
        # Replays write into its buffers: they must not be freed while the graph is there.
        self._run = run
        self._graph = torch.cuda.CUDAGraph()
        with torch.inference_mode():
            stream = torch.cuda.Stream(decoder.device)  # type: ignore[no-untyped-call]
            stream.wait_stream(torch.cuda.current_stream(decoder.device))
            with torch.cuda.stream(stream):
                for _ in range(2):
                    run(self._tokens, self._at)
            torch.cuda.current_stream(decoder.device).wait_stream(stream)
            with torch.cuda.graph(self._graph):
                self._logits = run(self._tokens, self._at)
        # The capture's runs wrote slot 0.
        slots.keys[:, :, :, 0] = 0
        slots.values[:, :, :, 0] = 0

    @torch.inference_mode()
    def __call__(self, tokens: Tensor) -> Tensor:
        """Logits ``[rows, vocabulary]``; overwritten by the next step.

        Raises:
            KernelError: no slot is left.
        """
        if self._slots.filled >= self._slots.length:
            raise KernelError(f"all {self._slots.length} slots are filled")
        self._tokens.copy_(tokens)
        self._at.fill_(self._slots.filled)
        self._graph.replay()
        self._slots.filled += 1
        return self._logits
