"""Which kernel runs what: one explicit rule, with its reasons.

The kernels of a device are asked in a fixed order, and the first that does not refuse is chosen.
What none can run is a ``KernelError`` that names every reason: nothing is dequantized behind the
caller's back.
"""

from __future__ import annotations

import torch

from evalq.errors import KernelError
from evalq.kernels.base import Kernel, KernelChoice, Rejection
from evalq.registry import Registry
from evalq.schema import WeightScheme

__all__ = ["KERNELS", "ORDER", "choose"]

KERNELS: Registry[Kernel] = Registry("kernel")
"""Every kernel by name."""

KERNELS.add(
    "native",
    "evalq.kernels.cpu:NATIVE",
    "compiled C on a CPU: 2 to 8 bits, float32 and bfloat16",
)
KERNELS.add(
    "torch-int4",
    "evalq.kernels.torch_cpu:INT4",
    "PyTorch's _weight_int4pack_mm_for_cpu: symmetric 4 bits, bfloat16",
)
KERNELS.add(
    "torch-int8",
    "evalq.kernels.torch_cpu:INT8",
    "PyTorch's _weight_int8pack_mm: symmetric 8 bits a channel, bfloat16",
)
KERNELS.add(
    "triton",
    "evalq.kernels.triton_gpu:TRITON",
    "Triton on CUDA, codes dequantized in registers: 2, 3, 4, 6 and 8 bits, bfloat16 and float16",
)
KERNELS.add(
    "triton-int8",
    "evalq.kernels.triton_w8a8:INT8",
    "Triton on CUDA, int8 weights times int8 activations (W8A8)",
)
KERNELS.add(
    "reference",
    "evalq.kernels.cpu:REFERENCE",
    "dequantizes the weight at every product, on any device; only run when asked for by name",
)

ORDER: dict[str, tuple[str, ...]] = {
    "cpu": ("native", "torch-int4", "torch-int8"),
    "cuda": ("triton-int8", "triton"),
}
"""Kernels by type of device, the fastest first (benchmarks/RESULTS.md)."""


def choose(
    device: torch.device | str,
    dtype: torch.dtype,
    scheme: WeightScheme,
    shape: tuple[int, int],
    rows: int = 1,
    activation_bits: int | None = None,
) -> KernelChoice:
    """The kernel for a weight of this scheme and shape ``(out, in)``.

    Args:
        device, dtype: where, and in what, the activations come.
        scheme: how the weight is stored.
        shape: ``(out, in)``.
        rows: of activations in one product; it decides the path within the kernel, never the
            kernel, since the weight is packed before the rows are known.
        activation_bits: 8 for W8A8.

    Raises:
        KernelError: no kernel can run it; the message lists each one's reason.
    """
    device = torch.device(device)
    rejected: list[Rejection] = []
    for name in ORDER.get(device.type, ()):
        kernel = KERNELS.get(name)
        reason = kernel.refuses(device, dtype, scheme, shape, activation_bits)
        if reason is None:
            why = KERNELS.summary(name)
            if rejected:
                why += "; " + "; ".join(f"{r.name} {r.reason}" for r in rejected)
            else:
                why += f"; first in the order for {device.type}"
            path = kernel.path(rows, scheme, shape, dtype)
            return KernelChoice(name, why, path, tuple(rejected))
        rejected.append(Rejection(name, reason))
    kind = str(dtype).removeprefix("torch.")
    what = f"{scheme}{'' if activation_bits is None else f'-a{activation_bits}'}"
    reasons = "; ".join(f"{r.name} {r.reason}" for r in rejected) or "none is written for it"
    raise KernelError(
        f"no kernel runs {what} of {shape[0]} x {shape[1]} with {kind} activations on "
        f"{device.type}: {reasons}",
        hint="Run the artifact dequantized, or ask for the kernel 'reference' by name.",
    )
