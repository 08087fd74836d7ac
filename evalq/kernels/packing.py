"""The one form of a quantized weight in evalq, whatever made it and however it is stored."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from evalq.errors import NonFiniteError, QuantizationError
from evalq.schema import PerGroup, WeightScheme

__all__ = ["QuantizedWeight", "group_count", "group_index", "group_size"]

_SCALE_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def group_size(scheme: WeightScheme, columns: int) -> int:
    """Input columns that share one scale: the group size, or all columns of a row."""
    granularity = scheme.granularity
    return granularity.size if isinstance(granularity, PerGroup) else columns


def group_count(scheme: WeightScheme, columns: int) -> int:
    """Scales a row: ``ceil(columns / size)``. A last group may hold fewer columns."""
    return math.ceil(columns / group_size(scheme, columns)) if columns else 0


def group_index(scheme: WeightScheme, columns: int, device: torch.device | None = None) -> Tensor:
    """Group of each input column: int64 ``[columns]``."""
    return torch.arange(columns, device=device) // max(1, group_size(scheme, columns))


@dataclass(frozen=True, slots=True, eq=False)
class QuantizedWeight:
    """A weight matrix as codes and scales: ``w[o, i] = (codes[o, i] - zero) * scale``.

    Args:
        codes: uint8 ``[out, in]``, in ``[0, 2**bits)``.
        scales: float32, bfloat16 or float16 ``[out, groups]``, finite, with
            ``groups = ceil(in / size)``.
        zeros: uint8 ``[out, groups]`` in ``[0, 2**bits)``, or ``None`` for a symmetric scheme,
            whose zero is ``2**(bits-1)``.
        scheme: how the weight is stored.
        shape: ``(out, in)``.

    Raises:
        QuantizationError: a tensor whose dtype, shape or range is not as above.
        NonFiniteError: a scale that is NaN or infinite.
    """

    codes: Tensor
    scales: Tensor
    zeros: Tensor | None
    scheme: WeightScheme
    shape: tuple[int, int]

    def __post_init__(self) -> None:
        out, columns = self.shape
        groups = group_count(self.scheme, columns)
        levels = 1 << self.scheme.bits
        self._check("codes", self.codes, (torch.uint8,), (out, columns))
        self._check("scales", self.scales, _SCALE_DTYPES, (out, groups))
        if (self.zeros is None) != self.scheme.symmetric:
            kind = "symmetric" if self.scheme.symmetric else "asymmetric"
            stored = "no zeros" if self.zeros is None else "zeros"
            raise QuantizationError(f"{stored} were given for the {kind} scheme {self.scheme}")
        if self.codes.numel() and int(self.codes.max()) >= levels:
            raise QuantizationError(
                f"codes reach {int(self.codes.max())}, but {self.scheme} holds 0 to {levels - 1}"
            )
        if self.zeros is not None:
            self._check("zeros", self.zeros, (torch.uint8,), (out, groups))
            if self.zeros.numel() and int(self.zeros.max()) >= levels:
                raise QuantizationError(
                    f"zeros reach {int(self.zeros.max())}; {self.scheme} holds 0 to {levels - 1}"
                )
        if not bool(torch.isfinite(self.scales).all()):
            raise NonFiniteError("a scale is NaN or infinite")

    def _check(
        self, name: str, tensor: Tensor, dtypes: tuple[torch.dtype, ...], shape: tuple[int, int]
    ) -> None:
        if tensor.dtype not in dtypes:
            known = ", ".join(str(d).removeprefix("torch.") for d in dtypes)
            raise QuantizationError(f"{name} are {tensor.dtype}, not {known}")
        if tuple(tensor.shape) != shape:
            raise QuantizationError(
                f"{name} have the shape {tuple(tensor.shape)}, but {self.scheme} over "
                f"{self.shape[0]} x {self.shape[1]} needs {shape}"
            )

    @property
    def groups(self) -> int:
        """Scales a row."""
        return group_count(self.scheme, self.shape[1])

    @property
    def bits_total(self) -> int:
        """Bits of information stored: codes, scales and zeros, without padding of words."""
        rows, columns = self.shape
        bits = self.scheme.bits
        total = rows * columns * bits + self.scales.numel() * self.scales.element_size() * 8
        return total + (0 if self.zeros is None else self.zeros.numel() * bits)

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The weight ``[out, in]`` in ``dtype``.

        The product is taken in float32 and rounded once, except that scales of ``dtype`` itself
        give the same bits either way: a code has at most 8 bits.
        """
        index = group_index(self.scheme, self.shape[1], self.codes.device)
        codes = self.codes.to(torch.float32)
        if self.zeros is None:
            centred = codes - float(1 << (self.scheme.bits - 1))
        else:
            centred = codes - self.zeros.to(torch.float32)[:, index]
        return (centred * self.scales.to(torch.float32)[:, index]).to(dtype)

    def float_zeros(self) -> Tensor:
        """Zeros as float32 ``[out, groups]``, whether they are stored or not."""
        if self.zeros is not None:
            return self.zeros.float()
        middle = float(1 << (self.scheme.bits - 1))
        return torch.full_like(self.scales, middle, dtype=torch.float32)

    def with_codes(self, codes: Tensor) -> QuantizedWeight:
        """The same weight with other codes: uint8 ``[out, in]``."""
        return QuantizedWeight(codes, self.scales, self.zeros, self.scheme, self.shape)

    def with_scales(self, scales: Tensor) -> QuantizedWeight:
        """The same weight with other scales ``[out, groups]``, rounded to the dtype of its own.

        They are kept positive and finite.
        """
        limits = torch.finfo(self.scales.dtype)
        stored = scales.clamp(limits.tiny, limits.max).to(self.scales.dtype)
        return QuantizedWeight(self.codes, stored, self.zeros, self.scheme, self.shape)

    def rows(self, start: int, stop: int) -> QuantizedWeight:
        """Output channels ``start`` to ``stop`` (not included) as a weight of their own."""
        zeros = None if self.zeros is None else self.zeros[start:stop]
        codes = self.codes[start:stop]
        return QuantizedWeight(
            codes, self.scales[start:stop], zeros, self.scheme, (len(codes), self.shape[1])
        )

    def to(self, device: torch.device | str) -> QuantizedWeight:
        """The same weight with its tensors on ``device``."""
        zeros = None if self.zeros is None else self.zeros.to(device)
        return QuantizedWeight(
            self.codes.to(device), self.scales.to(device), zeros, self.scheme, self.shape
        )
