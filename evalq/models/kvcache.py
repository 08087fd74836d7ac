"""A key-value cache of few bits: keys in groups of a channel, values in groups of a token.

As KIVI (arXiv 2402.02750): keys have channels of large values, so each channel of 32 consecutive
tokens has its own scale and least value; values have none, so each token's do; the most recent
tokens stay as they are. What is stored is rounded here and kept dequantized: the loss is that of
the format, the speed and the memory are not.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from evalq.errors import PlanError
from evalq.schema import KV_BITS

__all__ = [
    "GROUP",
    "WINDOW",
    "check_bits",
    "first_exact",
    "round_keys",
    "round_values",
    "settings",
]

GROUP = 32
"""Numbers that share a scale and a least value, each of 16 bits."""

WINDOW = 128
"""Tokens before the one that is read that stay as they are, at least."""


def check_bits(bits: int) -> None:
    """Refuse a width that no cache is kept in.

    Raises:
        PlanError: naming those that are.
    """
    if bits not in KV_BITS:
        raise PlanError(
            f"a KV cache of {bits} bits",
            hint=f"Use {', '.join(map(str, KV_BITS))}, or leave it out.",
        )


def first_exact(position: int) -> int:
    """The first token that the one at ``position`` sees as it is; those before it are rounded.

    Whole groups leave the window, so it is the same for all positions of an aligned group: reading
    a prompt in such groups sees what decoding it token by token sees.
    """
    return max(0, position - WINDOW) // GROUP * GROUP


def _round(x: Tensor, axis: int, bits: int) -> Tensor:
    """``x`` on a grid between its least and largest value along ``axis``, each of 16 bits."""
    low, high = x.aminmax(dim=axis, keepdim=True)
    low = low.to(torch.float16)
    scale = ((high.float() - low.float()) / ((1 << bits) - 1)).to(torch.float16)
    # A group of one value has no scale: any gives the value back.
    step = torch.where(scale == 0, 1.0, scale.float())
    codes = ((x.float() - low.float()) / step).round().clamp(0, (1 << bits) - 1)
    return (codes * step + low.float()).to(x.dtype)


def round_keys(keys: Tensor, bits: int) -> Tensor:
    """Keys ``[rows, heads, tokens, width]`` rounded by channel, GROUP tokens at a time.

    ``tokens`` is a multiple of GROUP.
    """
    rows, heads, tokens, width = keys.shape
    grouped = keys.reshape(rows, heads, tokens // GROUP, GROUP, width)
    return _round(grouped, -2, bits).reshape(keys.shape)


def round_values(values: Tensor, bits: int) -> Tensor:
    """Values ``[rows, heads, tokens, width]`` rounded by token, GROUP channels at a time.

    A width that GROUP does not divide is one group.
    """
    width = values.shape[-1]
    size = GROUP if width % GROUP == 0 else width
    grouped = values.reshape(*values.shape[:-1], width // size, size)
    return _round(grouped, -1, bits).reshape(values.shape)


def settings(bits: int) -> dict[str, Any]:
    """What an engine's settings say of the cache."""
    return {"bits": bits, "group": GROUP, "window": WINDOW, "keys": "channel", "values": "token"}
