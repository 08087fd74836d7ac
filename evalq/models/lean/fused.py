"""A decoding step on a GPU whose operations between products are few fused kernels."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from evalq.kernels.triton_gpu import interpreted
from evalq.models.lean.eager import Slots
from evalq.models.lean.spec import Decoder, side_by_side

__all__ = ["FusedStep", "why_not"]

_TILE = 64
"""Slots that one program of the attention looks at."""


def why_not(decoder: Decoder) -> str | None:
    """Why the fused kernels cannot run this model, in words that end a sentence; else ``None``."""
    if find_spec("triton") is None:
        return "need the package triton"
    if decoder.device.type != "cuda" and not interpreted():
        return "run on a CUDA device only"
    size = decoder.head_dim
    if size & (size - 1) or not 16 <= size <= 256:
        return f"need heads of a power of two from 16 to 256 (these are {size} wide)"
    return None


class FusedStep:
    """Logits after one more token a row; the shapes of what it does never change.

    Args:
        decoder: the model. slots: its keys and values; slot ``at`` is written by a call.
    """

    def __init__(self, decoder: Decoder, slots: Slots) -> None:
        self._decoder, self._slots = decoder, slots
        self._splits = -(-slots.length // _TILE)
        units = slots.rows * decoder.heads
        like = {"dtype": torch.float32, "device": decoder.device}
        self._most = torch.empty(units, self._splits, **like)  # type: ignore[call-overload]
        self._sum = torch.empty_like(self._most)
        self._mixed = torch.empty(units, self._splits, decoder.head_dim, **like)  # type: ignore[call-overload]
        capable = decoder.device.type == "cuda" and torch.cuda.get_device_capability() >= (9, 0)
        self._extra = {"PDL": capable, "launch_pdl": capable}

    def _norm(self, h: Tensor, delta: Tensor | None, weight: Tensor) -> Tensor:
        from evalq.kernels.triton_decode import add_norm

        kernel: Any = add_norm
        out = torch.empty_like(h)
        block = 1 << (h.shape[1] - 1).bit_length()
        kernel[(h.shape[0],)](
            h, h if delta is None else delta, weight, out, h.shape[1], self._decoder.epsilon,
            ADD=delta is not None, BLOCK=block, num_warps=8 if block >= 2048 else 4, **self._extra,
        )  # fmt: skip
        return out

    def _attend(self, qkv: Tensor, layer: int, at: Tensor) -> Tensor:
        from evalq.kernels.triton_decode import attend, combine, turn_store

        turned: Any = turn_store
        attended: Any = attend
        combined: Any = combine
        decoder, slots = self._decoder, self._slots
        block = decoder.blocks[layer]
        rows, size, few = slots.rows, decoder.head_dim, decoder.kv_heads
        group = decoder.heads // few
        q = qkv.new_empty(rows, decoder.heads, size)
        keys, values = slots.keys[layer], slots.values[layer]
        normed = block.q_norm is not None
        turned[(rows, decoder.heads + 2 * few)](
            qkv, slots.cos, slots.sin, at, block.q_norm if normed else qkv,
            block.k_norm if normed else qkv, q, keys, values, slots.length, decoder.epsilon,
            HEADS=decoder.heads, FEW=few, HALF=size // 2, NORM=normed, num_warps=1, **self._extra,
        )  # fmt: skip
        attended[(rows * few, self._splits)](
            q, keys, values, at, self._most, self._sum, self._mixed, slots.length, size**-0.5,
            self._splits, GROUP=group, WIDE=max(16, 1 << (group - 1).bit_length()), SIZE=size,
            TILE=_TILE, num_warps=4, **self._extra,
        )  # fmt: skip
        out = qkv.new_empty(rows, decoder.heads * size)
        combined[(rows * decoder.heads,)](
            self._most, self._sum, self._mixed, out, self._splits, SIZE=size,
            SPLITS=1 << (self._splits - 1).bit_length(), num_warps=2, **self._extra,
        )  # fmt: skip
        return out

    def _gated(self, x: Tensor) -> Tensor:
        from evalq.kernels.triton_decode import silu_mul

        kernel: Any = silu_mul
        rows, inner = x.shape[0], x.shape[1] // 2
        out = x.new_empty(rows, inner)
        kernel[(rows, -(-inner // 512))](x, out, inner, BLOCK=512, num_warps=4, **self._extra)
        return out

    def __call__(self, tokens: Tensor, at: Tensor) -> Tensor:
        """As ``graph.step``: tokens int64 ``[rows]``, at int64 ``[1]``."""
        decoder = self._decoder
        h = functional.embedding(tokens, decoder.embedding)
        delta: Tensor | None = None
        for layer, block in enumerate(decoder.blocks):
            x = self._norm(h, delta, block.attention_norm)
            delta = block.o(self._attend(side_by_side(block.qkv, x), layer, at))
            x = self._norm(h, delta, block.feed_forward_norm)
            delta = block.down(self._gated(side_by_side(block.gate_up, x)))
        logits: Tensor = decoder.head(self._norm(h, delta, decoder.norm))
        return logits
