"""Grids: the scales and zeros that weights are rounded to, by range or by least error.

All functions take a weight ``[out, in]`` in float32 whose width the group size divides.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from evalq.errors import QuantizationError
from evalq.kernels.packing import QuantizedWeight, group_size
from evalq.schema import WeightScheme

__all__ = ["Grid", "encode", "grouped", "minmax_grid", "search_grid"]

_ENTRIES_AT_A_TIME = 1 << 17
_ENTRIES_AT_A_TIME_ON_GPU = 1 << 26
_SHRINK_STEPS = 10
_SMALLEST_SHRINK = {2: 0.35, 3: 0.45, 4: 0.55}


@dataclass(frozen=True, slots=True, eq=False)
class Grid:
    """Where the levels lie.

    Args:
        scales: ``[out, groups]`` in the dtype that they are stored in.
        zeros: float32 ``[out, groups]`` of whole numbers; the same everywhere when symmetric.
    """

    scales: Tensor
    zeros: Tensor


def grouped(weight: Tensor, scheme: WeightScheme) -> Tensor:
    """A view ``[out, groups, size]``.

    Raises:
        QuantizationError: the group size does not divide the width.
    """
    rows, columns = weight.shape
    size = group_size(scheme, columns)
    if columns % size:
        raise QuantizationError(f"groups of {size} do not divide {columns} columns")
    return weight.reshape(rows, columns // size, size)


def _levels(scheme: WeightScheme) -> tuple[int, float]:
    """The highest code, and the zero of a symmetric scheme."""
    return (1 << scheme.bits) - 1, float(1 << (scheme.bits - 1))


def _stored(scales: Tensor, dtype: torch.dtype) -> Tensor:
    """Scales rounded to ``dtype``; a scale of nothing becomes 1, since all codes are then zero."""
    scales = torch.where(scales > 0, scales, torch.ones_like(scales))
    smallest = torch.finfo(dtype).tiny
    stored = scales.clamp_min(smallest).to(dtype)
    if not bool(torch.isfinite(stored).all()):
        raise QuantizationError(
            f"a scale of {float(scales.max()):.3g} is beyond what {dtype} holds",
            hint="Set the option scale_dtype to bfloat16 or float32.",
        )
    return stored


def _ranges(blocks: Tensor, scheme: WeightScheme) -> tuple[Tensor, Tensor]:
    """Lowest and highest value that the grid must reach, ``[out, groups]``; zero lies between."""
    if scheme.symmetric:
        top = blocks.abs().amax(-1)
        return -top, top
    return blocks.amin(-1).clamp_max(0), blocks.amax(-1).clamp_min(0)


def _grid_of_range(low: Tensor, high: Tensor, scheme: WeightScheme, dtype: torch.dtype) -> Grid:
    top, middle = _levels(scheme)
    scales = _stored((high - low) / top, dtype)
    if scheme.symmetric:
        return Grid(scales, torch.full_like(low, middle))
    zeros = torch.round(-low / scales.float()).clamp(0, top)
    return Grid(scales, zeros)


def minmax_grid(weight: Tensor, scheme: WeightScheme, dtype: torch.dtype = torch.float32) -> Grid:
    """The grid that spans each group's range.

    Symmetric: ``scale = absmax / ((2**bits - 1) / 2)``, as compressed-tensors' observers have it;
    asymmetric: ``scale = (max - min) / (2**bits - 1)``, with zero inside the range.

    Raises:
        QuantizationError: a group size that does not divide, or a scale that ``dtype`` cannot hold.
    """
    return _grid_of_range(*_ranges(grouped(weight, scheme), scheme), scheme, dtype)


def _codes(blocks: Tensor, grid: Grid, top: int) -> Tensor:
    """Codes as float32 ``[out, groups, size]``."""
    scales = grid.scales.float().unsqueeze(-1)
    return torch.round(blocks / scales + grid.zeros.unsqueeze(-1)).clamp_(0, top)


def encode(weight: Tensor, grid: Grid, scheme: WeightScheme) -> QuantizedWeight:
    """Every weight at the nearest level of its group."""
    top, _ = _levels(scheme)
    codes = _codes(grouped(weight, scheme), grid, top).to(torch.uint8).reshape(weight.shape)
    zeros = None if scheme.symmetric else grid.zeros.to(torch.uint8)
    shape = (int(weight.shape[0]), int(weight.shape[1]))
    return QuantizedWeight(codes, grid.scales, zeros, scheme, shape)


def group_error(difference: Tensor, importance: Tensor | None) -> Tensor:
    """Error of each group, ``[out, groups]``.

    Args:
        difference: ``[out, groups, size]``.
        importance: ``None`` for the plain sum of squares; ``[groups, size]`` for a weighted sum;
            ``[groups, size, size]`` for the quadratic form ``d' H d`` of each group.
    """
    if importance is None:
        return difference.square().sum(-1)
    if importance.ndim == 2:
        return (difference.square() * importance).sum(-1)
    by_group = difference.transpose(0, 1)
    return (torch.bmm(by_group, importance) * by_group).sum(-1).T


def _refit(blocks: Tensor, grid: Grid, codes: Tensor, importance: Tensor | None) -> Tensor:
    """Scales that fit the codes best: least squares in the metric of :func:`group_error`."""
    centred = codes.sub_(grid.zeros.unsqueeze(-1))
    if importance is None:
        weighted = centred
    elif importance.ndim == 2:
        weighted = centred * importance
    else:
        weighted = torch.bmm(centred.transpose(0, 1), importance).transpose(0, 1)
    denominator = (weighted * centred).sum(-1)
    fitted = (weighted * blocks).sum(-1) / denominator.clamp_min(1e-30)
    return torch.where((denominator > 0) & (fitted > 0), fitted, grid.scales.float())


def search_grid(
    weight: Tensor,
    scheme: WeightScheme,
    importance: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
) -> Grid:
    """The grid of least error over shrunken ranges, each refitted once by least squares.

    The grid of the full range is among those tried, so the error is never above
    :func:`minmax_grid`'s. An asymmetric range is shrunk at both ends at once, and the zero is tried
    one level to either side.

    Args:
        weight: float32 ``[out, in]``.
        scheme: bits, symmetry and groups.
        importance: as for :func:`group_error`; the Hessian of the inputs, or its diagonal.
        dtype: that scales are stored in, and hence searched in.
    """
    # On a CPU what stays in its cache, on a GPU what keeps all of it busy.
    entries = _ENTRIES_AT_A_TIME_ON_GPU if weight.is_cuda else _ENTRIES_AT_A_TIME
    at_a_time = max(1, entries // max(1, weight.shape[1]))
    parts = [
        _search_rows(grouped(part, scheme), scheme, importance, dtype)
        for part in torch.split(weight, at_a_time)
    ]
    if not parts:
        return minmax_grid(weight, scheme, dtype)
    return Grid(torch.cat([p.scales for p in parts]), torch.cat([p.zeros for p in parts]))


def _search_rows(
    blocks: Tensor, scheme: WeightScheme, importance: Tensor | None, dtype: torch.dtype
) -> Grid:
    top, _ = _levels(scheme)
    low, high = _ranges(blocks, scheme)
    best = _grid_of_range(low, high, scheme, dtype)
    best_error = _error_of(blocks, best, top, importance)
    smallest = _SMALLEST_SHRINK.get(scheme.bits, 0.75)
    shifts = (0.0,) if scheme.symmetric else (0.0, -1.0, 1.0)
    for shrink in torch.linspace(1.0, smallest, _SHRINK_STEPS).tolist():
        start = _grid_of_range(low * shrink, high * shrink, scheme, dtype)
        for shift in shifts:
            zeros = (start.zeros + shift).clamp(0, top) if shift else start.zeros
            grid = Grid(start.scales, zeros)
            codes = _codes(blocks, grid, top)
            grid = Grid(_stored(_refit(blocks, grid, codes, importance), dtype), zeros)
            best, best_error = _better(best, best_error, grid, blocks, top, importance)
    return best


def _error_of(blocks: Tensor, grid: Grid, top: int, importance: Tensor | None) -> Tensor:
    values = _codes(blocks, grid, top).sub_(grid.zeros.unsqueeze(-1))
    values.mul_(grid.scales.float().unsqueeze(-1)).sub_(blocks)
    return group_error(values, importance)


def _better(
    best: Grid,
    best_error: Tensor,
    grid: Grid,
    blocks: Tensor,
    top: int,
    importance: Tensor | None,
) -> tuple[Grid, Tensor]:
    error = _error_of(blocks, grid, top, importance)
    wins = error < best_error
    scales = torch.where(wins, grid.scales, best.scales)
    zeros = torch.where(wins, grid.zeros, best.zeros)
    return Grid(scales, zeros), torch.where(wins, error, best_error)
