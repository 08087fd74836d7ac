"""From a budget to the widths of single layers, and what is recorded of the choice."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from evalq.errors import QuantizationError
from evalq.quantize.allocate import Allocation, Unit, allocate, format_bits
from evalq.quantize.linear import SMALLEST_OUTPUT, decoder_layers
from evalq.quantize.sensitivity import measure_sensitivity
from evalq.schema import BITS, WeightScheme

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

__all__ = ["MIXED_WIDTHS", "Kept", "Mixed", "keep_share", "mixed_precision", "target_of_bytes"]

MIXED_WIDTHS = (2, 3, 4, 5, 6, 8)
"""Widths that an allocation chooses from by default."""

_AS_IT_IS = 16

SENSITIVITY_TOKENS = 4096
"""Tokens of calibration text that sensitivities are measured on; more changes ranks little."""


@dataclass(frozen=True, slots=True)
class Mixed:
    """An allocation with what it was made from.

    Args:
        allocation: the widths.
        units: layers that share a width, with their measured divergences.
        target_bits: the budget, bits a weight.
    """

    allocation: Allocation
    units: tuple[Unit, ...]
    target_bits: float

    @property
    def layer_bits(self) -> str:
        """The value of a method's option ``layer_bits``."""
        return format_bits(self.allocation.bits)

    def record(self) -> dict[str, Any]:
        """What a manifest says of it; ``sensitivity`` is KL in nats a token by layer and width."""
        return {
            "allocation": {
                "target_bits": self.target_bits,
                "average_bits": self.allocation.average,
                "expected_kl": self.allocation.divergence,
                "optimal": self.allocation.optimal,
            },
            "sensitivity": _sensitivity(self.units),
        }


@dataclass(frozen=True, slots=True)
class Kept:
    """The most sensitive layers within a share of the weights.

    Args:
        layers: full names.
        share: of all weights in quantized layers, that these hold.
        bits: that they keep; 16 is as they are.
        units: all layers with their measured divergences at the scheme's width and at ``bits``.
    """

    layers: tuple[str, ...]
    share: float
    bits: int
    units: tuple[Unit, ...]

    def record(self) -> dict[str, Any]:
        """What a manifest says of it; ``sensitivity`` is KL in nats a token by layer and width."""
        kept = {"layers": list(self.layers), "share": self.share, "bits": self.bits}
        return {"kept": kept, "sensitivity": _sensitivity(self.units)}


def _sensitivity(units: Sequence[Unit]) -> dict[str, dict[str, float]]:
    return {
        layer: {str(width): value for width, value in unit.divergence.items()}
        for unit in units
        for layer in unit.layers
    }


def keep_share(
    module: PreTrainedModel,
    scheme: WeightScheme,
    tokens: Tensor,
    share: float,
    bits: int = 8,
    skip: Sequence[str] = (),
    progress: Callable[[str, float], None] | None = None,
) -> Kept:
    """The layers to keep at ``bits`` so that the summed measured divergence is least.

    Args:
        module: the parent.
        scheme: what the other layers are stored in.
        tokens: int64 ``[samples, length]``, as for :func:`mixed_precision`.
        share: most of the weights that may be kept, 0 to 1; whole layers, and layers that read one
            tensor together.
        bits: that they keep, more than the scheme's; above 8 they stay as they are.
        skip: layers whose names hold one of these stay as they are anyway, and do not count.
        progress: called with a layer's name and the share done.

    Raises:
        QuantizationError: widths that keep nothing, a share that holds not one layer, or an
            unknown architecture.
    """
    if bits <= scheme.bits or bits not in (*BITS, _AS_IT_IS):
        raise QuantizationError(
            f"keep_bits is {bits}, which keeps nothing of {scheme.bits} bits",
            hint="Give a width up to 8 that is larger, or 16 to leave the layers as they are.",
        )
    widths = [scheme.bits, *([bits] if bits != _AS_IT_IS else [])]
    chosen = sensitivity_windows(tokens)
    units = measure_sensitivity(module, scheme, widths, chosen, skip, progress)
    if bits == _AS_IT_IS:
        units = [replace(u, divergence={**u.divergence, bits: 0.0}) for u in units]
    total = sum(u.weights for u in units)
    least = min(u.weights for u in units) / total
    if least > share:
        raise QuantizationError(
            f"keep is {share:g} of the weights, and the smallest layers hold {least:.3f} of them",
            hint=f"Keep at least {least:.3f}.",
        )
    # In a symmetric scheme the bits of a layer beyond those of all layers are its weights' alone.
    plain = WeightScheme(scheme.bits, scheme.granularity, symmetric=True)
    lowest = sum(u.bits(plain, scheme.bits, 16) for u in units) / total
    budget = lowest + share * (bits - scheme.bits) * (1 + 1e-9)
    found = allocate(units, plain, budget).bits
    kept = [u for u in units if found[u.layers[0]] == bits]
    layers = tuple(layer for u in kept for layer in u.layers)
    return Kept(layers, sum(u.weights for u in kept) / total, bits, tuple(units))


def sensitivity_windows(tokens: Tensor) -> Tensor:
    """The first windows, as many as :data:`SENSITIVITY_TOKENS` hold and at least one."""
    return tokens[: max(1, SENSITIVITY_TOKENS // int(tokens.shape[1]))]


def mixed_precision(
    module: PreTrainedModel,
    scheme: WeightScheme,
    tokens: Tensor,
    target_bits: float,
    widths: Sequence[int] = MIXED_WIDTHS,
    skip: Sequence[str] = (),
    scale_bits: int = 16,
    progress: Callable[[str, float], None] | None = None,
) -> Mixed:
    """The best widths of single layers for ``target_bits`` a weight.

    Args:
        module: the parent.
        scheme: groups and symmetry; its bits do not count.
        tokens: int64 ``[samples, length]``, whose next-token distributions count; sensitivities
            are measured on the first :data:`SENSITIVITY_TOKENS`.
        target_bits: most bits a weight over the quantized layers, scales and zeros included.
        widths: to choose from.
        skip: layers whose names hold one of these stay as they are.
        scale_bits: bits of a stored scale.
        progress: called with a layer's name and the share done.

    Raises:
        QuantizationError: a budget that the lowest widths exceed, or an unknown architecture.
    """
    chosen = sensitivity_windows(tokens)
    units = measure_sensitivity(module, scheme, widths, chosen, skip, progress)
    allocation = allocate(units, scheme, target_bits, scale_bits)
    return Mixed(allocation, tuple(units), target_bits)


def target_of_bytes(
    module: PreTrainedModel, max_bytes: int, dense_bits: int, skip: Sequence[str] = ()
) -> float:
    """Bits a weight that quantized layers may take so that all tensors hold ``max_bytes``.

    Args:
        module: the parent; tensors that it shares are counted once.
        max_bytes: of all tensors together.
        dense_bits: stored bits of an element that is not quantized.
        skip: layers whose names hold one of these stay as they are.

    Raises:
        QuantizationError: the tensors that stay as they are take as much already.
    """
    name, layers = decoder_layers(module)
    inside = 0
    for index, layer in enumerate(layers):
        for parameter_name, parameter in layer.named_parameters():
            full = f"{name}.{index}.{parameter_name}"
            matrix = parameter.ndim >= 2 and parameter_name.rpartition(".")[2] != "bias"
            wide = min(parameter.shape) >= SMALLEST_OUTPUT
            if matrix and wide and not any(s in full for s in skip):
                inside += parameter.numel()
    rest = (sum(p.numel() for p in module.parameters()) - inside) * dense_bits // 8
    if rest >= max_bytes:
        raise QuantizationError(
            f"{max_bytes:,} bytes cannot be reached: embeddings, norms and other tensors that stay "
            f"as they are take {rest:,}",
            hint="Raise --max-bytes.",
        )
    return (max_bytes - rest) * 8 / inside
