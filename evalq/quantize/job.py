"""What one quantization is asked for, what it has seen, and what has come of it so far."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from evalq.kernels.packing import QuantizedWeight
from evalq.quantize.config import Method, skipped_parts
from evalq.schema import WeightScheme

__all__ = ["InputStatistics", "Job", "LayerReport", "Reading"]

_EXPERTS_NAMED = 8


@contextmanager
def _exact_products(values: Tensor, given: torch.dtype) -> Iterator[None]:
    """Tensor cores for a product of bfloat16 values: TF32 holds them, and sums are float32."""
    if not values.is_cuda or given != torch.bfloat16:
        yield
        return
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


@dataclass(frozen=True, slots=True)
class LayerReport:
    """How one linear layer came out.

    Args:
        name: full name of the layer.
        method: that made it.
        weight_error: ``|W - Q| / |W|`` (Frobenius), folded scales divided out where they apply.
        output_error: the same of the outputs over the calibration tokens as rounded (before any
            distillation), or ``None`` without.
        tokens: calibration tokens that the layer saw.
        damping: share of the Hessian's mean diagonal that was added, or ``None``.
        escalations: times that the damping had to be raised.
        strength: AWQ's exponent (-1: no scaling was best), or ``None``.
    """

    name: str
    method: str
    weight_error: float
    output_error: float | None = None
    tokens: int = 0
    damping: float | None = None
    escalations: int = 0
    strength: float | None = None


@dataclass(slots=True)
class InputStatistics:
    """Sums over the inputs of a block.

    Args:
        hessian: float32 ``[in, in]``, mean of ``x x'``.
        magnitude: float32 ``[in]``, mean of ``|x|``.
        tokens: inputs seen.
        largest: float32 ``[in]``, the largest ``|x|``.
        stride: one token of so many is kept as it is; 0 keeps none.
        kept: those tokens, float32 ``[tokens, in]`` each.
    """

    hessian: Tensor
    magnitude: Tensor
    tokens: int = 0
    largest: Tensor | None = None
    stride: int = 0
    kept: list[Tensor] = field(default_factory=list)

    @classmethod
    def empty(cls, width: int, device: torch.device, stride: int = 0) -> InputStatistics:
        """Of no input yet."""
        zeros = [torch.zeros(width, device=device) for _ in range(2)]
        return cls(torch.zeros(width, width, device=device), zeros[0], 0, zeros[1], stride)

    def add(self, inputs: Tensor) -> None:
        """Take in ``[..., in]``; the running means stay in float32."""
        flat = inputs.reshape(-1, inputs.shape[-1]).float()
        total = self.tokens + flat.shape[0]
        if not flat.shape[0]:
            return
        with _exact_products(flat, inputs.dtype):
            self.hessian.mul_(self.tokens / total).addmm_(flat.T, flat, alpha=1 / total)
        size = flat.abs()
        self.magnitude.mul_(self.tokens / total).add_(size.sum(0), alpha=1 / total)
        if self.largest is not None:
            torch.maximum(self.largest, size.amax(0), out=self.largest)
        if self.stride:
            # Counted over all batches, so that the batch size does not decide which are kept.
            self.kept.append(flat[(-self.tokens) % self.stride :: self.stride].clone())
        self.tokens = total

    def scaled(self, columns: Tensor) -> InputStatistics:
        """Of inputs divided by ``columns``."""
        hessian = self.hessian / columns[:, None] / columns[None, :]
        largest = None if self.largest is None else self.largest / columns
        kept = [rows / columns for rows in self.kept]
        return InputStatistics(
            hessian, self.magnitude / columns, self.tokens, largest, self.stride, kept
        )


@dataclass(frozen=True, slots=True, eq=False)
class Reading:
    """Weights that read one tensor, and what is known of it.

    Args:
        weight: of all layers that read it, one below the other, float32 ``[out, in]``.
        statistics: of their input.
    """

    weight: Tensor
    statistics: InputStatistics


@dataclass(slots=True)
class Job:
    """One quantization, and what has come of it so far.

    Args:
        method, scheme, options: as asked for; ``options`` are complete.
        scale_dtype: of stored scales.
        stored: dtype of the parent's tensors, which changed ones are stored in.
        head_dim: width of an attention head, or 0.
        seed: for probes.
        activation_bits: that inputs of quantized layers are rounded to, or ``None``.
        layer_bits: widths of single layers, by full name.
        kept: full names of layers that stay as they are because they are the most sensitive.
        layers, dense, reports, warnings, experts: results.
        layer_errors: by decoder layer, the share of the output's mean square that is error, before
            and after rounding was learned.
    """

    method: Method
    scheme: WeightScheme
    options: Mapping[str, Any]
    scale_dtype: torch.dtype
    stored: torch.dtype
    head_dim: int
    seed: int
    activation_bits: int | None = None
    layer_bits: Mapping[str, int] = field(default_factory=dict)
    kept: frozenset[str] = frozenset()
    layers: dict[str, QuantizedWeight] = field(default_factory=dict)
    dense: dict[str, Tensor] = field(default_factory=dict)
    reports: list[LayerReport] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    experts: list[str] = field(default_factory=list)
    layer_errors: dict[str, tuple[float, float]] = field(default_factory=dict)
    repeated: dict[str, list[str]] = field(default_factory=dict)

    def warn(self, where: str, what: str) -> None:
        """Note ``what`` of one decoder layer; the same of many layers becomes one warning."""
        self.repeated.setdefault(re.sub(r"\bexperts\.\d+", "experts.*", what), []).append(where)

    def all_warnings(self) -> tuple[str, ...]:
        """Warnings, those that repeat once with the number of layers."""
        shared = []
        for what, names in self.repeated.items():
            where = sorted(set(names), key=names.index)
            more = f" (and {len(where) - 1} more layers)" if len(where) > 1 else ""
            shared.append(f"{where[0]}{more}: {what}")
        return (*shared, *_shortened(self.warnings))

    def scheme_of(self, name: str) -> WeightScheme:
        """How the layer of that full name is stored; a single layer may have its own width."""
        bits = self.layer_bits.get(name, self.scheme.bits)
        return WeightScheme(bits, self.scheme.granularity, self.scheme.symmetric)

    @property
    def skip(self) -> tuple[str, ...]:
        """Parts of names of layers that stay as they are."""
        return skipped_parts(self.options)

    def skips(self, name: str) -> bool:
        """Whether the layer of that full name stays as it is because the user said so."""
        return name in self.kept or any(part in name for part in self.skip)


def _shortened(warnings: list[str]) -> list[str]:
    """Warnings with those about single experts cut short; a mixture can have thousands."""
    experts = [w for w in warnings if "reached this expert" in w]
    if len(experts) <= _EXPERTS_NAMED:
        return warnings
    rest = [w for w in warnings if "reached this expert" not in w]
    more = len(experts) - _EXPERTS_NAMED
    last = f"{more} more expert layers saw too few calibration tokens (each layer's report says)"
    return [*rest, *experts[:_EXPERTS_NAMED], last]
