"""Activations on a grid of few bits, one scale a token, as W8A8 artifacts are run."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["round_tokens"]


def round_tokens(x: Tensor, bits: int) -> Tensor:
    """``x`` on a symmetric grid of ``bits`` bits, with one scale for each vector of the last axis.

    As compressed-tensors does it for dynamic per-token activations: the scale is
    ``max|x| / ((2**bits - 1) / 2)`` and codes are clamped to ``[-2**(bits-1), 2**(bits-1) - 1]``.
    Engines differ in a hair here: vLLM divides by ``2**(bits-1) - 1``.

    Args:
        x: any floating dtype, ``[..., width]``.
        bits: width of the codes, 2 to 8.

    Returns:
        The dequantized values, of the shape and dtype of ``x``.
    """
    high = (1 << (bits - 1)) - 1
    scale = x.abs().amax(-1, keepdim=True) / (((1 << bits) - 1) / 2)
    scale = torch.where(scale == 0, torch.finfo(x.dtype).eps, scale)
    return (x / scale).round().clamp(-high - 1, high) * scale
