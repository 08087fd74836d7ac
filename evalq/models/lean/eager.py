"""A plain decoder in few torch operations, over keys and values in buffers of a fixed length."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from evalq.errors import PlanError
from evalq.models.lean.spec import Block, Decoder, side_by_side

__all__ = ["Slots", "normalize", "read", "rotate"]


class Slots:
    """Keys and values of some rows, and how much of them is filled.

    Args:
        decoder: whose.
        rows: sequences.
        length: tokens that a row can hold.

    Raises:
        PlanError: more tokens than the model is made for.
    """

    def __init__(self, decoder: Decoder, rows: int, length: int) -> None:
        if length > decoder.length:
            raise PlanError(
                f"{length} tokens are more than the {decoder.length} that the model can read",
                hint="Ask for fewer.",
            )
        shape = (len(decoder.blocks), rows, decoder.kv_heads, length, decoder.head_dim)
        self.keys = torch.zeros(shape, dtype=decoder.dtype, device=decoder.device)
        self.values = torch.zeros_like(self.keys)
        self.cos, self.sin = decoder.tables(length)
        self.rows, self.length, self.filled = rows, length, 0

    @property
    def bytes(self) -> int:
        """Memory of keys and values."""
        return 2 * self.keys.numel() * self.keys.element_size()


def normalize(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """RMS norm over the last axis (arXiv 1910.07467)."""
    return functional.rms_norm(x, (x.shape[-1],), weight, epsilon)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """``x`` ``[..., width, head_dim]`` turned by its position (arXiv 2104.09864)."""
    half = x.shape[-1] // 2
    turned = torch.cat((-x[..., half:], x[..., :half]), -1)
    return x * cos + turned * sin


def _attend(decoder: Decoder, block: Block, x: Tensor, slots: Slots, layer: int) -> Tensor:
    rows, width, _ = x.shape
    start, end = slots.filled, slots.filled + width
    heads, few = decoder.heads, decoder.kv_heads
    every = side_by_side(block.qkv, x).view(rows, width, heads + 2 * few, decoder.head_dim)
    q, v = every[:, :, :heads], every[:, :, heads + few :]
    k = every[:, :, heads : heads + few]
    if block.q_norm is not None and block.k_norm is not None:
        q = normalize(q, block.q_norm, decoder.epsilon)
        k = normalize(k, block.k_norm, decoder.epsilon)
    cos = slots.cos[start:end].to(x.dtype)
    sin = slots.sin[start:end].to(x.dtype)
    q = rotate(q.transpose(1, 2), cos, sin)
    slots.keys[layer, :, :, start:end] = rotate(k.transpose(1, 2), cos, sin)
    slots.values[layer, :, :, start:end] = v.transpose(1, 2)
    keys, values = slots.keys[layer, :, :, :end], slots.values[layer, :, :, :end]
    mask = None
    if start and width > 1:
        columns = torch.arange(end, device=x.device)
        mask = columns[None] <= columns[start:, None]
    out = functional.scaled_dot_product_attention(
        q, keys, values, mask, is_causal=not start and width > 1, enable_gqa=True
    )
    return out.transpose(1, 2).reshape(rows, width, -1)


@torch.inference_mode()
def read(decoder: Decoder, slots: Slots, tokens: Tensor) -> Tensor:
    """Read tokens into every row.

    Args:
        decoder: the model.
        slots: is filled further.
        tokens: int64 ``[rows, width]``.

    Returns:
        Logits after the last column, ``[rows, vocabulary]``, in the model's dtype.

    Raises:
        PlanError: more tokens than there are slots.
    """
    width = tokens.shape[1]
    if slots.filled + width > slots.length:
        raise PlanError(f"{slots.filled + width} tokens do not fit into {slots.length} slots")
    h = functional.embedding(tokens, decoder.embedding)
    for layer, block in enumerate(decoder.blocks):
        x = normalize(h, block.attention_norm, decoder.epsilon)
        h = h + block.o(_attend(decoder, block, x, slots, layer))
        x = normalize(h, block.feed_forward_norm, decoder.epsilon)
        gate, up = side_by_side(block.gate_up, x).chunk(2, -1)
        h = h + block.down(functional.silu(gate) * up)
    slots.filled += width
    logits: Tensor = decoder.head(normalize(h[:, -1], decoder.norm, decoder.epsilon))
    return logits
