"""The plain product with a quantized weight that every faster kernel is tested against."""

from __future__ import annotations

import torch
from torch import Tensor

from evalq.errors import KernelError
from evalq.kernels.packing import QuantizedWeight

__all__ = ["quantize_activations", "quantized_matmul"]


def quantized_matmul(
    x: Tensor, weight: QuantizedWeight, activation_bits: int | None = None
) -> Tensor:
    """``x @ dequantize(weight).T``, summed in float32 (float64 for float64 inputs).

    Args:
        x: floating point ``[..., in]``.
        weight: ``[out, in]``.
        activation_bits: 8 rounds ``x`` to int8 with one scale a row first (W8A8).

    Returns:
        ``[..., out]`` in the dtype of ``x``.

    Raises:
        KernelError: an inner size that does not fit, or an ``x`` that is no floating point tensor.
    """
    if not x.is_floating_point() or x.shape[-1] != weight.shape[1]:
        raise KernelError(
            f"{x.dtype} of shape {tuple(x.shape)} cannot be multiplied with a weight of "
            f"{weight.shape[0]} x {weight.shape[1]}"
        )
    accumulate = torch.promote_types(x.dtype, torch.float32)
    if activation_bits is not None:
        x = quantize_activations(x, activation_bits)
    return (x.to(accumulate) @ weight.dequantize(accumulate).T).to(x.dtype)


def quantize_activations(x: Tensor, bits: int = 8) -> Tensor:
    """``x`` rounded to ``bits`` with one symmetric scale a token, found from the token itself.

    As compressed-tensors computes dynamic per-token activations: scale = max|x| / ((2**bits-1)/2),
    codes rounded half to even and clamped to ``[-2**(bits-1), 2**(bits-1)-1]``.

    Args:
        x: floating point ``[..., in]``.
        bits: 2 to 8.

    Returns:
        The rounded values in the dtype of ``x``, the same shape.

    Raises:
        KernelError: a width outside 2 to 8.
    """
    if not 2 <= bits <= 8:
        raise KernelError(f"activations of {bits} bits are not supported", hint="Use 8.")
    high = (1 << (bits - 1)) - 1
    scale = x.abs().amax(dim=-1, keepdim=True) / ((2 * high + 1) / 2)
    # A token of zeros has no scale; any positive one gives zeros back.
    scale = torch.where(scale == 0, torch.finfo(x.dtype).eps, scale)
    return torch.clamp(torch.round(x / scale), -high - 1, high) * scale
