"""GPTQ: rounding column by column, each error compensated in the columns that follow.

Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained
Transformers", arXiv 2210.17323. Columns go by falling activation; the groups and their scales are
those of the original order ("static groups"), so nothing but the codes depends on the order.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from evalq.errors import NonFiniteError, QuantizationError
from evalq.kernels.packing import QuantizedWeight, group_index, group_size
from evalq.quantize.columns import round_block
from evalq.quantize.grid import Grid, minmax_grid, search_grid
from evalq.quantize.refine import refine_weight
from evalq.schema import WeightScheme

__all__ = ["GptqSettings", "GptqStats", "block_importance", "gptq_weight", "inverse_factor"]

_HIGHEST_DAMPING = 1.0


@dataclass(frozen=True, slots=True)
class GptqSettings:
    """What GPTQ can be told; see the method's options."""

    damping: float = 0.01
    act_order: bool = True
    block_size: int = 128
    scale_search: str = "weighted"
    refine: int = 0


@dataclass(frozen=True, slots=True)
class GptqStats:
    """What happened.

    Args:
        damping: share of the mean diagonal that made the Hessian positive definite.
        escalations: times that it had to be raised tenfold.
        dead_columns: inputs that were zero for every token.
    """

    damping: float
    escalations: int
    dead_columns: int


def block_importance(hessian: Tensor, scheme: WeightScheme) -> Tensor:
    """The blocks of ``hessian`` ``[in, in]`` that belong to one group each.

    ``[groups, size, size]``; for per-channel schemes only the diagonal, ``[1, in]``, since the one
    block would be the whole.
    """
    columns = hessian.shape[0]
    size = group_size(scheme, columns)
    if size == columns:
        return hessian.diagonal().reshape(1, columns)
    tiles = hessian.reshape(columns // size, size, columns // size, size)
    return tiles.diagonal(dim1=0, dim2=2).permute(2, 0, 1).contiguous()


def inverse_factor(hessian: Tensor, damping: float) -> tuple[Tensor, float, int]:
    """Upper Cholesky factor of the damped inverse, the damping used, and how often it was raised.

    Raises:
        QuantizationError: not positive definite even with its whole mean diagonal added.
    """
    mean = hessian.diagonal().mean()
    share, escalations = damping, 0
    while True:
        damped = hessian + torch.diag_embed((share * mean).expand(hessian.shape[0]))
        lower, info = torch.linalg.cholesky_ex(damped)
        if int(info) == 0:
            inverse = torch.cholesky_inverse(lower)
            upper, info = torch.linalg.cholesky_ex(inverse, upper=True)
            if int(info) == 0 and bool(torch.isfinite(upper).all()):
                return upper, share, escalations
        if share >= _HIGHEST_DAMPING:
            raise QuantizationError(
                f"the Hessian ({hessian.shape[0]} inputs) is not positive definite, even damped by "
                "its own mean diagonal",
                hint="Calibrate on more text, or use a method without a Hessian (awq, rtn).",
            )
        share, escalations = min(share * 10, _HIGHEST_DAMPING), escalations + 1


def gptq_weight(
    weight: Tensor,
    hessian: Tensor,
    scheme: WeightScheme,
    dtype: torch.dtype,
    settings: GptqSettings,
) -> tuple[QuantizedWeight, GptqStats]:
    """``weight`` quantized so that its outputs, not its values, change least.

    Minimizes ``tr((W - Q) H (W - Q)')`` greedily, one column at a time.

    Args:
        weight: float32 ``[out, in]``.
        hessian: float32 ``[in, in]``, mean of ``x x'`` over the calibration tokens.
        scheme: bits, symmetry and groups.
        dtype: of the stored scales.
        settings: damping, order, block size, scale search and passes of refinement.

    Raises:
        NonFiniteError: a NaN or infinity in the Hessian.
        QuantizationError: a Hessian that no damping makes positive definite.
    """
    if not bool(torch.isfinite(hessian).all()):
        raise NonFiniteError("the Hessian holds NaN or infinities")
    diagonal = hessian.diagonal()
    dead = diagonal == 0
    # An input that is always zero costs nothing however its weight is rounded: it gets a diagonal
    # of its own, which leaves it uncoupled, so that its weight is rounded to nearest.
    hessian = hessian + torch.diag_embed(torch.where(dead, diagonal.mean().clamp_min(1e-12), 0.0))
    grid = _static_grid(weight, hessian, scheme, dtype, settings.scale_search)
    order = torch.arange(weight.shape[1], device=weight.device)
    if settings.act_order:
        order = torch.argsort(diagonal, descending=True, stable=True)
    upper, damping, escalations = inverse_factor(hessian[order][:, order], settings.damping)
    codes = torch.empty(weight.shape, dtype=torch.uint8, device=weight.device)
    codes[:, order] = _round_columns(weight[:, order], upper, grid, order, scheme, settings)
    zeros = None if scheme.symmetric else grid.zeros.to(torch.uint8)
    shape = (int(weight.shape[0]), int(weight.shape[1]))
    quantized = QuantizedWeight(codes, grid.scales, zeros, scheme, shape)
    if settings.refine:
        damped = hessian + torch.diag_embed((damping * hessian.diagonal().mean()).expand(shape[1]))
        quantized = refine_weight(weight, quantized, damped, settings.refine, settings.block_size)
    return quantized, GptqStats(damping, escalations, int(dead.sum()))


def _static_grid(
    weight: Tensor, hessian: Tensor, scheme: WeightScheme, dtype: torch.dtype, search: str
) -> Grid:
    if search == "minmax":
        return minmax_grid(weight, scheme, dtype)
    importance = block_importance(hessian, scheme) if search == "weighted" else None
    return search_grid(weight, scheme, importance, dtype)


def _round_columns(
    weight: Tensor,
    upper: Tensor,
    grid: Grid,
    order: Tensor,
    scheme: WeightScheme,
    settings: GptqSettings,
) -> Tensor:
    """Codes uint8 ``[out, in]`` of ``weight``, whose columns lie in the order of rounding."""
    groups = group_index(scheme, weight.shape[1], weight.device)[order]
    # One row a column: the inner loop then reads and writes contiguous memory.
    rest = weight.T.contiguous()
    scales = grid.scales.float().T[groups]
    zeros = grid.zeros.T[groups]
    codes = torch.empty_like(rest)
    top = (1 << scheme.bits) - 1
    columns = rest.shape[0]
    for start in range(0, columns, settings.block_size):
        stop = min(start + settings.block_size, columns)
        errors = round_block(
            rest[start:stop],
            upper[start:stop, start:stop],
            scales[start:stop],
            zeros[start:stop],
            codes[start:stop],
            top,
        )
        if stop < columns:
            rest[stop:].addmm_(upper[start:stop, stop:].T, errors, alpha=-1.0)
    return codes.T.to(torch.uint8)
