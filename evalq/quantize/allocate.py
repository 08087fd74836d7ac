"""Mixed precision: which layers get how many bits under a budget.

Layers that read the same tensor (query, key and value; gate and up) are one unit with one width,
since engines fuse them and want them stored alike. The allocation is an integer program over units
and widths: the sum of the units' divergences is least while all bits, scales and zeros included,
stay within the budget.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp

from evalq.errors import PlanError, QuantizationError
from evalq.schema import BITS, PerGroup, WeightScheme

__all__ = ["Allocation", "Unit", "allocate", "format_bits", "parse_bits", "stored_bits"]

_MINUTE = 60.0
_SHAPE_BITS = 128


@dataclass(frozen=True, slots=True)
class Unit:
    """Layers that share a width.

    Args:
        layers: full names.
        shapes: ``(out, in)`` of each.
        divergence: by width, what the unit alone costs at it (KL in nats a token).
    """

    layers: tuple[str, ...]
    shapes: tuple[tuple[int, int], ...]
    divergence: Mapping[int, float]

    @property
    def weights(self) -> int:
        """Of all its layers."""
        return sum(rows * columns for rows, columns in self.shapes)

    def bits(self, scheme: WeightScheme, width: int, scale_bits: int) -> int:
        """Bits stored at a width, scales and zeros included."""
        return sum(stored_bits(shape, scheme, width, scale_bits) for shape in self.shapes)


@dataclass(frozen=True, slots=True)
class Allocation:
    """The widths found.

    Args:
        bits: by layer.
        average: bits stored a weight over these layers, scales and zeros included.
        divergence: sum of the units' divergences.
        optimal: whether the solver proved that nothing is better.
    """

    bits: Mapping[str, int]
    average: float
    divergence: float
    optimal: bool


def stored_bits(shape: tuple[int, int], scheme: WeightScheme, width: int, scale_bits: int) -> int:
    """Bits that one layer takes at a width: codes, scales, the stored shape, and zeros if any."""
    rows, columns = shape
    size = scheme.granularity.size if isinstance(scheme.granularity, PerGroup) else columns
    groups = rows * -(-columns // size)
    return (
        _SHAPE_BITS
        + rows * columns * width
        + groups * (scale_bits + (0 if scheme.symmetric else width))
    )


def format_bits(bits: Mapping[str, int]) -> str:
    """``{"a.b": 3}`` as ``"a.b=3"``, sorted: the value of the option ``layer_bits``."""
    return ",".join(f"{name}={bits[name]}" for name in sorted(bits))


def parse_bits(text: str) -> dict[str, int]:
    """The widths that :func:`format_bits` wrote.

    Raises:
        PlanError: not of that form, or a width that weights are not stored in.
    """
    found: dict[str, int] = {}
    for part in filter(None, (p.strip() for p in text.split(","))):
        name, equals, value = part.rpartition("=")
        if not equals or not name or not value.isdigit() or int(value) not in BITS:
            raise PlanError(
                f"layer_bits: {part!r} is not LAYER=BITS",
                hint=f"Bits are {', '.join(map(str, BITS))}, as in model.layers.0.mlp.up_proj=4.",
            )
        found[name] = int(value)
    return found


def allocate(
    units: Sequence[Unit],
    scheme: WeightScheme,
    target_bits: float,
    scale_bits: int = 16,
    lowest: int | None = None,
) -> Allocation:
    """The widths of least summed divergence within ``target_bits`` a weight.

    Args:
        units: all layers that are quantized, with the divergence of each width that may be used.
        scheme: groups and symmetry; its bits do not count.
        target_bits: most bits a weight on average, scales and zeros included.
        scale_bits: bits of a stored scale.
        lowest: no unit gets fewer.

    Raises:
        QuantizationError: even the lowest widths take more.
    """
    widths = [[w for w in sorted(u.divergence) if w >= (lowest or 0)] for u in units]
    if not units or not all(widths):
        raise QuantizationError("there is no layer, or no width, to allocate bits to")
    sizes = [
        [u.bits(scheme, w, scale_bits) for w in ws] for u, ws in zip(units, widths, strict=True)
    ]
    total = sum(u.weights for u in units)
    least = sum(s[0] for s in sizes)
    if least > target_bits * total:
        raise QuantizationError(
            f"{target_bits:g} bits a weight cannot be reached: the lowest widths with their scales "
            f"take {least / total:.3f}",
            hint="Raise the budget, or use larger groups.",
        )
    cost = np.array([u.divergence[w] for u, ws in zip(units, widths, strict=True) for w in ws])
    owner = np.repeat(np.arange(len(units)), [len(ws) for ws in widths])
    one_each = (owner[None, :] == np.arange(len(units))[:, None]).astype(float)
    size = np.concatenate([np.array(s, dtype=float) for s in sizes])
    # In units of the budget and of the largest cost: the solver's tolerances are absolute.
    budget = LinearConstraint(size[None, :] / (target_bits * total), -np.inf, 1.0)
    result = milp(
        cost / max(float(cost.max()), 1e-300),
        constraints=[budget, LinearConstraint(one_each, 1.0, 1.0)],
        integrality=np.ones_like(cost),
        bounds=Bounds(0, 1),
        options={"time_limit": _MINUTE, "mip_rel_gap": 1e-6},
    )
    if result.x is None:
        raise QuantizationError(f"no allocation of bits was found: {result.message}")
    flat = [w for ws in widths for w in ws]
    chosen = {int(owner[i]): flat[i] for i in np.flatnonzero(result.x > 0.5)}
    bits = {layer: chosen[i] for i, unit in enumerate(units) for layer in unit.layers}
    stored = sum(u.bits(scheme, chosen[i], scale_bits) for i, u in enumerate(units))
    loss = sum(u.divergence[chosen[i]] for i, u in enumerate(units))
    return Allocation(bits, stored / total, loss, result.status == 0)
