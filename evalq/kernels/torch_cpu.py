"""PyTorch's own packed products on a CPU, for machines without a C compiler.

Both ops take scales in the dtype of the activations; in bfloat16, the only dtype they are fast in,
a scale that bfloat16 does not hold would be rounded behind the user's back, so it is an error.
"""

from __future__ import annotations

import torch
from torch import Tensor

from evalq.errors import KernelError
from evalq.kernels.base import PackedWeight
from evalq.kernels.packing import QuantizedWeight
from evalq.schema import PerChannel, PerGroup, WeightScheme

__all__ = ["INT4", "INT8", "TorchInt4Kernel", "TorchInt8Kernel"]

_GROUPS = (32, 64, 128, 256)


def _common_refusal(
    device: torch.device, dtype: torch.dtype, scheme: WeightScheme, activation_bits: int | None
) -> str | None:
    if device.type != "cpu":
        return "runs on a CPU only"
    if dtype != torch.bfloat16:
        return "is fast in bfloat16 only (in float32 it takes 10 to 100 times as long as dense)"
    if not scheme.symmetric:
        return "rounds zero points to bfloat16; symmetric schemes only"
    return "keeps activations as they are" if activation_bits is not None else None


def _exact_scales(weight: QuantizedWeight, kernel: str) -> Tensor:
    scales = weight.scales.to("cpu", torch.bfloat16)
    if not torch.equal(scales.to(torch.float32), weight.scales.to("cpu", torch.float32)):
        raise KernelError(
            f"the kernel {kernel!r} holds scales in bfloat16, and those of this weight are finer",
            hint="Install a C compiler for the kernel 'native', or run the artifact dequantized.",
        )
    return scales


class TorchInt4Kernel:
    """``_weight_int4pack_mm_for_cpu``."""

    name = "torch-int4"
    summary = "PyTorch's packed int4 product"

    def refuses(
        self,
        device: torch.device,
        dtype: torch.dtype,
        scheme: WeightScheme,
        shape: tuple[int, int],
        activation_bits: int | None,
    ) -> str | None:
        """See ``base.Kernel``."""
        if scheme.bits not in (3, 4):
            return "holds 4 bits only"
        common = _common_refusal(device, dtype, scheme, activation_bits)
        if common is not None:
            return common
        granularity = scheme.granularity
        if not isinstance(granularity, PerGroup) or granularity.size not in _GROUPS:
            return "takes groups of 32, 64, 128 or 256 only"
        if shape[1] % granularity.size or shape[0] % 16:
            return "needs columns in whole groups and rows in multiples of 16"
        return None

    def path(
        self, rows: int, scheme: WeightScheme, shape: tuple[int, int], dtype: torch.dtype
    ) -> str:
        """See ``base.Kernel``."""
        return "codes"

    def pack(
        self,
        weight: QuantizedWeight,
        device: torch.device,
        dtype: torch.dtype,
        activation_bits: int | None,
    ) -> PackedWeight:
        """Codes in torch's order, and ``[groups, out, 2]`` of scale and offset.

        The op reads ``(code - 8) * scale + offset``: a 3-bit code is stored 4 higher, so that its
        zero of 4 is the op's zero of 8 and no offset is needed.

        Raises:
            KernelError: a scale that bfloat16 does not hold exactly.
        """
        scales = _exact_scales(weight, self.name)
        raised = weight.codes.to("cpu", torch.int32) + (8 - (1 << (weight.scheme.bits - 1)))
        words = torch._convert_weight_to_int4pack_for_cpu(raised, 1)
        pair = torch.stack([scales.T, torch.zeros_like(scales.T)], dim=-1).contiguous()
        return PackedWeight(self.name, (words, pair), weight.scheme, weight.shape, dtype)

    def matmul(self, x: Tensor, packed: PackedWeight) -> Tensor:
        """See ``base.Kernel``."""
        words, pair = packed.tensors
        size = packed.shape[1] // pair.shape[0]
        result: Tensor = torch._weight_int4pack_mm_for_cpu(x, words, size, pair)
        return result


class TorchInt8Kernel:
    """``_weight_int8pack_mm``."""

    name = "torch-int8"
    summary = "PyTorch's packed int8 product"

    def refuses(
        self,
        device: torch.device,
        dtype: torch.dtype,
        scheme: WeightScheme,
        shape: tuple[int, int],
        activation_bits: int | None,
    ) -> str | None:
        """See ``base.Kernel``."""
        if scheme.bits < 5:
            return "is slower than 4 bits where 4 bits do"
        common = _common_refusal(device, dtype, scheme, activation_bits)
        if common is not None:
            return common
        if not isinstance(scheme.granularity, PerChannel):
            return "takes one scale a channel only"
        return None

    def path(
        self, rows: int, scheme: WeightScheme, shape: tuple[int, int], dtype: torch.dtype
    ) -> str:
        """See ``base.Kernel``."""
        return "codes"

    def pack(
        self,
        weight: QuantizedWeight,
        device: torch.device,
        dtype: torch.dtype,
        activation_bits: int | None,
    ) -> PackedWeight:
        """Codes as int8 ``[out, in]`` about 0, scales ``[out]``.

        Raises:
            KernelError: a scale that bfloat16 does not hold exactly.
        """
        scales = _exact_scales(weight, self.name).flatten()
        centred = weight.codes.to("cpu", torch.int16) - (1 << (weight.scheme.bits - 1))
        tensors = (centred.to(torch.int8), scales)
        return PackedWeight(self.name, tensors, weight.scheme, weight.shape, dtype)

    def matmul(self, x: Tensor, packed: PackedWeight) -> Tensor:
        """See ``base.Kernel``."""
        codes, scales = packed.tensors
        result: Tensor = torch._weight_int8pack_mm(x, codes, scales)
        return result


INT4 = TorchInt4Kernel()
INT8 = TorchInt8Kernel()
