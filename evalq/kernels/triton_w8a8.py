"""The kernel of W8A8: int8 weights with a scale a row, activations rounded to int8 a token."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from evalq.kernels.base import PackedWeight
from evalq.kernels.packing import QuantizedWeight
from evalq.kernels.triton_gpu import interpreted
from evalq.schema import PerChannel, WeightScheme

__all__ = ["INT8", "Int8Kernel"]

_MOST_COLUMNS = 65536
"""A row of activations is rounded by one program, and int32 sums stay exact to twice this."""


class Int8Kernel:
    """W8A8 in Triton."""

    name = "triton-int8"
    summary = "int8 times int8 on the tensor cores, exact int32 sums"

    def refuses(
        self,
        device: torch.device,
        dtype: torch.dtype,
        scheme: WeightScheme,
        shape: tuple[int, int],
        activation_bits: int | None,
    ) -> str | None:
        """See ``base.Kernel``."""
        if find_spec("triton") is None:
            return "needs the package triton"
        if device.type != "cuda" and not (device.type == "cpu" and interpreted()):
            return "runs on a CUDA device only"
        if activation_bits != 8:
            return "rounds activations to 8 bits, which the scheme does not ask for"
        if dtype not in (torch.bfloat16, torch.float16):
            return "takes bfloat16 and float16 activations only"
        if not (
            scheme.bits == 8 and scheme.symmetric and isinstance(scheme.granularity, PerChannel)
        ):
            return "takes symmetric 8-bit weights with one scale a channel only"
        if shape[1] > _MOST_COLUMNS:
            return f"takes at most {_MOST_COLUMNS} columns"
        return None

    def path(
        self, rows: int, scheme: WeightScheme, shape: tuple[int, int], dtype: torch.dtype
    ) -> str:
        """See ``base.Kernel``."""
        return "int8 tiles"

    def pack(
        self,
        weight: QuantizedWeight,
        device: torch.device,
        dtype: torch.dtype,
        activation_bits: int | None,
    ) -> PackedWeight:
        """Codes as int8 ``[out, in]`` about 0, scales float32 ``[out]``."""
        moved = weight.to(device)
        codes = (moved.codes.to(torch.int16) - 128).to(torch.int8)
        scales = moved.scales.flatten().to(torch.float32)
        return PackedWeight(
            self.name, (codes, scales), weight.scheme, weight.shape, dtype, activation_bits
        )

    def matmul(self, x: Tensor, packed: PackedWeight) -> Tensor:
        """See ``base.Kernel``."""
        from evalq.kernels.triton_int8 import int8_matmul, round_rows

        rows, columns = x.shape
        out = packed.shape[0]
        weight, scales = packed.tensors
        codes = torch.empty_like(x, dtype=torch.int8)
        row_scales = x.new_empty(rows, dtype=torch.float32)
        result = x.new_empty(rows, out)
        rounding: Any = round_rows
        product: Any = int8_matmul
        block = 1 << (columns - 1).bit_length()
        rounding[(rows,)](
            x, codes, row_scales, rows, columns, BLOCK=block, num_warps=4 if block <= 8192 else 8
        )
        few = rows <= 16
        bm, bn, bk = (16, 32, 256) if few else (64, 128, 128) if rows <= 64 else (128, 128, 128)
        grid = (-(-out // bn), -(-rows // bm))
        product[grid](
            codes, weight, row_scales, scales, result, rows, out, columns,
            BN=bn, BM=bm, BK=bk, STAGES=4 if few else 3, TURNS=-(-columns // bk),
            num_warps=2 if few else 4 if bm == 64 else 8,
        )  # fmt: skip
        return result


INT8 = Int8Kernel()
