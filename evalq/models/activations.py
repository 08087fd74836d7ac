"""Rounds the inputs of linear layers to few bits at run time, one scale a token."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from evalq.errors import ArtifactError

__all__ = ["quantize_inputs", "round_tokens"]


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


def quantize_inputs(module: nn.Module, bits: Mapping[str, int]) -> str:
    """Make linear layers round their inputs; returns the sentence that reports say of it.

    Args:
        module: is changed in place.
        bits: width by layer name.

    Raises:
        ArtifactError: a name that is no layer of ``module``.
    """
    for name, width in bits.items():
        try:
            layer = module.get_submodule(name)
        except AttributeError:
            raise ArtifactError(
                f"the artifact quantizes the inputs of {name!r}, which the model does not have"
            ) from None
        layer.register_forward_pre_hook(_hook(width))
    widths = " and ".join(str(w) for w in sorted(set(bits.values())))
    return (
        f"The inputs of {len(bits)} layers are rounded to {widths} bits, one scale a token, as the "
        "format's own kernels do; the products are taken in floating point."
    )


def _hook(bits: int) -> Any:
    def rounded(layer: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return (round_tokens(inputs[0], bits), *inputs[1:])

    return rounded
