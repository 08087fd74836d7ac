"""The one op: a product with a packed weight, whatever kernel it is packed for."""

from __future__ import annotations

import torch
from torch import Tensor

from evalq.errors import KernelError
from evalq.kernels.base import PackedWeight
from evalq.kernels.dispatch import KERNELS, choose
from evalq.kernels.packing import QuantizedWeight

__all__ = ["pack", "quantized_matmul"]


def pack(
    weight: QuantizedWeight,
    device: torch.device | str,
    dtype: torch.dtype,
    kernel: str | None = None,
    activation_bits: int | None = None,
) -> PackedWeight:
    """Repack a weight for the kernel that will run it.

    Args:
        weight: ``[out, in]``.
        device: where it will run.
        dtype: of the activations.
        kernel: a kernel by name; by default ``dispatch.choose`` decides.
        activation_bits: 8 rounds activations to int8, one scale a row, before each product.

    Raises:
        KernelError: no kernel, or not the named one, can run it.
        PlanError: no kernel of that name.
    """
    device = torch.device(device)
    if kernel is None:
        kernel = choose(device, dtype, weight.scheme, weight.shape, 1, activation_bits).name
    chosen = KERNELS.get(kernel)
    reason = chosen.refuses(device, dtype, weight.scheme, weight.shape, activation_bits)
    if reason is not None:
        raise KernelError(
            f"the kernel {kernel!r} cannot run {weight.scheme} of {weight.shape[0]} x "
            f"{weight.shape[1]} here: it {reason}",
            hint="Leave the kernel out to have one chosen; `evalq list kernels` shows which run.",
        )
    return chosen.pack(weight, device, dtype, activation_bits)


def quantized_matmul(x: Tensor, packed: PackedWeight) -> Tensor:
    """``x @ dequantize(packed).T``, by the kernel that packed the weight.

    Bitwise repeatable. NaN and infinities of a row of ``x`` reach that row of the result.

    Args:
        x: ``[..., in]`` of the packed dtype, on the device of the weight.
        packed: from ``pack``.

    Returns:
        ``[..., out]`` in the dtype of ``x``.

    Raises:
        KernelError: another dtype, device or inner size than the weight was packed for.
    """
    out, columns = packed.shape
    if x.shape[-1] != columns or x.dtype != packed.dtype or x.device.type != packed.device.type:
        raise KernelError(
            f"activations {tuple(x.shape)} of {x.dtype} on {x.device} do not fit a weight of "
            f"{out} x {columns} packed for {packed.dtype} on {packed.device}",
            hint="Pack the weight for the dtype and the device of the activations.",
        )
    rows = x.reshape(-1, columns).contiguous()
    if not rows.shape[0]:
        return x.new_empty(*x.shape[:-1], out)
    result = KERNELS.get(packed.kernel).matmul(rows, packed)
    return result.view(*x.shape[:-1], out)
