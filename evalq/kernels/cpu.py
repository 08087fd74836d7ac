"""The CPU kernel: codes packed sixteen rows to a vector, multiplied by compiled C.

Codes are kept in 2, 4 or 8 bits (3-bit codes take 4, 5 to 7 take 8) and multiplied as exact
integers: a product is ``scale * sum((code - zero) * x)`` over each group, summed in float32. Up to
``DECODE_ROWS`` rows of activations read the codes themselves; for more, the weight is dequantized
a panel of output rows at a time, in the activations' dtype, and torch multiplies; in bfloat16 on a
CPU with AMX or AVX512-BF16, compiled C multiplies each panel as it makes it.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from evalq.errors import KernelError
from evalq.kernels import native, reference
from evalq.kernels.base import PackedWeight
from evalq.kernels.bitpack import pack_rows
from evalq.kernels.packing import QuantizedWeight, group_count, group_size
from evalq.schema import PerGroup, WeightScheme

__all__ = [
    "DECODE_ROWS",
    "NATIVE",
    "PAIR_ROWS",
    "REFERENCE",
    "NativeKernel",
    "ReferenceKernel",
    "bfloat16_units",
    "decode_rows",
    "stored_bits",
    "unit_for_many_rows",
]

DECODE_ROWS = 24
"""Above so many rows, dequantizing once is faster than reading codes (benchmarks/RESULTS.md)."""

PAIR_ROWS = {2: 12, 4: 12, 8: 7}
"""The same by stored bits, for bfloat16 with AVX512-BF16 and no AMX."""

_LANES = 16
_PANEL_BYTES = 1 << 19
_KINDS = {torch.float32: 0, torch.bfloat16: 1}


def stored_bits(bits: int) -> int:
    """Bits that a code of ``bits`` bits is kept in: 2, 4 or 8."""
    return 2 if bits == 2 else 4 if bits <= 4 else 8


_BY_TORCH = "dequantize, then torch"
_WIDE = {"amx": "dequantize, then AMX", "pairs": "dequantize, then AVX512-BF16", "torch": _BY_TORCH}


@lru_cache(maxsize=1)
def bfloat16_units() -> tuple[str, ...]:
    """What multiplies bfloat16 in compiled C here, the fastest for many rows first.

    ``amx`` (tiles; also asks the system whether it lets a process use them) and ``pairs``
    (AVX512-BF16, dot products of pairs); empty on other CPUs and without a compiler.
    """
    if native.why_not() is not None:
        return ()
    found = native.library()
    has = {"amx": found.evalq_has_tiles(), "pairs": found.evalq_has_pairs()}
    return tuple(name for name, there in has.items() if there)


def unit_for_many_rows(dtype: torch.dtype) -> str:
    """``amx``, ``pairs`` or ``torch``: what multiplies more than ``decode_rows`` rows."""
    units = bfloat16_units() if dtype == torch.bfloat16 else ()
    return units[0] if units else "torch"


def decode_rows(dtype: torch.dtype, bits: int) -> int:
    """Up to how many rows codes of ``bits`` are read; beyond, dequantizing once is faster."""
    pairs = unit_for_many_rows(dtype) == "pairs"
    return PAIR_ROWS[stored_bits(bits)] if pairs else DECODE_ROWS


class NativeKernel:
    """Compiled C for a CPU."""

    name = "native"
    summary = "compiled C, exact integer codes, float32 sums"

    def refuses(
        self,
        device: torch.device,
        dtype: torch.dtype,
        scheme: WeightScheme,
        shape: tuple[int, int],
        activation_bits: int | None,
    ) -> str | None:
        """See ``base.Kernel``."""
        if device.type != "cpu":
            return "runs on a CPU only"
        if dtype not in _KINDS:
            return "takes float32 and bfloat16 activations only"
        if activation_bits not in (None, 8):
            return "rounds activations to 8 bits only"
        per = 32 // stored_bits(scheme.bits)
        size = group_size(scheme, shape[1])
        if isinstance(scheme.granularity, PerGroup) and size < shape[1] and size % per:
            return f"needs groups of a multiple of {per} columns at {scheme.bits} bits"
        missing = native.why_not()
        return None if missing is None else f"is not built ({missing})"

    def path(
        self, rows: int, scheme: WeightScheme, shape: tuple[int, int], dtype: torch.dtype
    ) -> str:
        """See ``base.Kernel``."""
        if rows > decode_rows(dtype, scheme.bits):
            return _WIDE[unit_for_many_rows(dtype)]
        pairs = dtype == torch.bfloat16 and "pairs" in bfloat16_units()
        return "codes, AVX512-BF16" if pairs else "codes"

    def pack(
        self,
        weight: QuantizedWeight,
        device: torch.device,
        dtype: torch.dtype,
        activation_bits: int | None,
    ) -> PackedWeight:
        """Codes int32 ``[blocks, words, 16]``; scales and zeros float32 ``[blocks, groups, 16]``.

        Rows are padded to a multiple of 16 with scales of 0, columns with codes of 0 that meet
        activations of 0.
        """
        out, columns = weight.shape
        bits = stored_bits(weight.scheme.bits)
        padded = -(-out // _LANES) * _LANES
        words = pack_rows(weight.codes.to("cpu"), bits)
        words = torch.nn.functional.pad(words, (0, 0, 0, padded - out))
        words = words.view(-1, _LANES, words.shape[1]).transpose(1, 2).contiguous()
        tensors = [words, self._spread(weight.scales, padded)]
        if weight.zeros is not None:
            tensors.append(self._spread(weight.zeros, padded))
        return PackedWeight(
            self.name, tuple(tensors), weight.scheme, (out, columns), dtype, activation_bits
        )

    @staticmethod
    def _spread(per_group: Tensor, rows: int) -> Tensor:
        wide = per_group.to("cpu", torch.float32)
        padded = torch.nn.functional.pad(wide, (0, 0, 0, rows - wide.shape[0]))
        return padded.view(-1, _LANES, wide.shape[1]).transpose(1, 2).contiguous()

    def matmul(self, x: Tensor, packed: PackedWeight) -> Tensor:
        """See ``base.Kernel``."""
        if packed.activation_bits is not None:
            x = reference.quantize_activations(x, packed.activation_bits)
        rows = x.shape[0]
        if rows > decode_rows(x.dtype, packed.scheme.bits):
            unit = unit_for_many_rows(x.dtype)
            if unit == "torch":
                return self._multiply_panels(x, packed)
            return self._multiply_bfloat16(x, packed, unit)
        result = x.new_empty(rows, packed.shape[0])
        failed = native.library().evalq_multiply(
            x.data_ptr(),
            result.data_ptr(),
            _KINDS[x.dtype],
            rows,
            packed.shape[1],
            *self._arguments(packed),
        )
        if failed:
            raise KernelError(f"no memory for {rows} rows of activations")
        return result

    def _multiply_bfloat16(self, x: Tensor, packed: PackedWeight, unit: str) -> Tensor:
        """Dequantizes to bfloat16 in the cache and multiplies there by ``unit``."""
        result = x.new_empty(x.shape[0], packed.shape[0])
        library = native.library()
        run = library.evalq_tiles if unit == "amx" else library.evalq_panels
        failed = run(
            x.data_ptr(), result.data_ptr(), x.shape[0], packed.shape[1], *self._arguments(packed)
        )
        if failed:
            raise KernelError(f"no memory, or no {unit} any more, for {x.shape[0]} rows")
        return result

    def _multiply_panels(self, x: Tensor, packed: PackedWeight) -> Tensor:
        """Dequantizes so many output rows at a time that they stay in the cache."""
        out, columns = packed.shape
        blocks = packed.tensors[0].shape[0]
        each = max(8, _PANEL_BYTES // (columns * x.element_size() * _LANES))
        arguments = self._arguments(packed)
        scratch = torch.empty(columns * min(each, blocks) * _LANES, dtype=packed.dtype)
        result = x.new_empty(x.shape[0], out)
        for first in range(0, blocks, each):
            last = min(first + each, blocks)
            panel = scratch[: columns * (last - first) * _LANES].view(columns, -1)
            native.library().evalq_dequantize(
                panel.data_ptr(), _KINDS[packed.dtype], columns, first, last, *arguments
            )
            start, stop = first * _LANES, min(last * _LANES, out)
            if stop - start == out:
                return x @ panel[:, :out]
            result[:, start:stop] = (x @ panel)[:, : stop - start]
        return result

    @staticmethod
    def _arguments(packed: PackedWeight) -> tuple[int | float | None, ...]:
        words, scales, *zeros = packed.tensors
        bits = stored_bits(packed.scheme.bits)
        columns = packed.shape[1]
        groups = group_count(packed.scheme, columns)
        width = words.shape[1]
        size = group_size(packed.scheme, columns)
        return (
            words.data_ptr(),
            scales.data_ptr(),
            zeros[0].data_ptr() if zeros else None,
            float(1 << (packed.scheme.bits - 1)),
            bits,
            packed.shape[0],
            width,
            groups,
            width if groups == 1 else size // (32 // bits),
            torch.get_num_threads(),
        )


class ReferenceKernel:
    """Dequantizes at every product: slow, on any device, and only run when asked for by name."""

    name = "reference"
    summary = "dequantizes at every product"

    def refuses(
        self,
        device: torch.device,
        dtype: torch.dtype,
        scheme: WeightScheme,
        shape: tuple[int, int],
        activation_bits: int | None,
    ) -> str | None:
        """See ``base.Kernel``."""
        return None if dtype.is_floating_point else "takes floating point activations only"

    def path(
        self, rows: int, scheme: WeightScheme, shape: tuple[int, int], dtype: torch.dtype
    ) -> str:
        """See ``base.Kernel``."""
        return "dequantize, then torch"

    def pack(
        self,
        weight: QuantizedWeight,
        device: torch.device,
        dtype: torch.dtype,
        activation_bits: int | None,
    ) -> PackedWeight:
        """The codes, scales and zeros as they are."""
        moved = weight.to(device)
        tensors: tuple[Tensor, ...] = (moved.codes, moved.scales)
        if moved.zeros is not None:
            tensors = (*tensors, moved.zeros)
        return PackedWeight(self.name, tensors, weight.scheme, weight.shape, dtype, activation_bits)

    def matmul(self, x: Tensor, packed: PackedWeight) -> Tensor:
        """See ``base.Kernel``."""
        codes, scales, *zeros = packed.tensors
        weight = QuantizedWeight(
            codes, scales, zeros[0] if zeros else None, packed.scheme, packed.shape
        )
        return reference.quantized_matmul(x, weight, packed.activation_bits)


NATIVE = NativeKernel()
REFERENCE = ReferenceKernel()
