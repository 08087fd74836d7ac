"""What a kernel is: it says what it cannot run, repacks a weight for itself, and multiplies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from evalq.kernels.packing import QuantizedWeight
from evalq.schema import WeightScheme

__all__ = ["Kernel", "KernelChoice", "PackedWeight", "Rejection"]


@dataclass(frozen=True, slots=True)
class Rejection:
    """A kernel that was not chosen, and why."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class KernelChoice:
    """Which kernel runs a weight, and why that one.

    Args:
        name: of the kernel, as in ``packed:<name>``.
        why: one sentence.
        path: the part of the kernel that runs the number of rows that was asked about.
        rejected: the kernels that come before it in the order and cannot run this.
    """

    name: str
    why: str
    path: str
    rejected: tuple[Rejection, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class PackedWeight:
    """A quantized weight in the layout of one kernel, on the device where it runs.

    Args:
        kernel: name of the kernel that packed it, the only one that can read it.
        tensors: whatever that kernel needs; their layout is its own affair.
        scheme: how the weight was stored before.
        shape: ``(out, in)``.
        dtype: of the activations it multiplies.
        activation_bits: 8 where activations are rounded to int8 with one scale a row (W8A8).
    """

    kernel: str
    tensors: tuple[Tensor, ...]
    scheme: WeightScheme
    shape: tuple[int, int]
    dtype: torch.dtype
    activation_bits: int | None = None

    @property
    def bytes(self) -> int:
        """Memory that the packed weight takes, scales and padding included."""
        return sum(t.numel() * t.element_size() for t in self.tensors)

    @property
    def device(self) -> torch.device:
        """Where its tensors are."""
        return self.tensors[0].device


class Kernel(Protocol):
    """One implementation of the product of activations with a quantized weight."""

    name: str
    summary: str

    def refuses(
        self,
        device: torch.device,
        dtype: torch.dtype,
        scheme: WeightScheme,
        shape: tuple[int, int],
        activation_bits: int | None,
    ) -> str | None:
        """Why this cannot be run, in words that end a sentence; ``None`` if it can."""
        ...

    def path(
        self, rows: int, scheme: WeightScheme, shape: tuple[int, int], dtype: torch.dtype
    ) -> str:
        """The part of the kernel that multiplies ``rows`` rows of activations in ``dtype``."""
        ...

    def pack(
        self,
        weight: QuantizedWeight,
        device: torch.device,
        dtype: torch.dtype,
        activation_bits: int | None,
    ) -> PackedWeight:
        """Repack a weight for this kernel, once, at load."""
        ...

    def matmul(self, x: Tensor, packed: PackedWeight) -> Tensor:
        """``x`` ``[rows, in]``, contiguous, of the packed dtype: ``[rows, out]`` in that dtype."""
        ...
