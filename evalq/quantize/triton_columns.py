"""Fused inner blocks of GPTQ and of coordinate descent for CUDA (Triton).

One program holds a tile of rows and all columns of a block in registers and goes over the columns
in order; nothing is written between two columns. Tensors are ``[columns, out]``, so that
neighbouring threads read neighbouring rows.
"""

# Triton's language is no Python that a type checker understands, and it refuses annotations that
# are not its own.
# mypy: ignore-errors

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

__all__ = ["descend_block_fused", "round_block_fused"]

_TILE = 16


@triton.jit
def _nearest_even(value):
    """Round half to even, as torch.round does (values stay far below 2**22)."""
    big = 12582912.0
    return (value + big) - big


@triton.jit
def _round_kernel(
    rest_ptr,
    upper_ptr,
    scale_ptr,
    zero_ptr,
    code_ptr,
    error_ptr,
    columns: tl.constexpr,
    out,
    top,
    BLOCK: tl.constexpr,
    TILE: tl.constexpr,
):
    rows = tl.program_id(0) * TILE + tl.arange(0, TILE)
    cols = tl.arange(0, BLOCK)
    inside = (cols[:, None] < columns) & (rows[None, :] < out)
    where = cols[:, None] * out + rows[None, :]
    rest = tl.load(rest_ptr + where, mask=inside, other=0.0)
    for i in range(columns):
        mask = rows < out
        at = i * out + rows
        column = tl.sum(tl.where((cols == i)[:, None], rest, 0.0), axis=0)
        scale = tl.load(scale_ptr + at, mask=mask, other=1.0)
        zero = tl.load(zero_ptr + at, mask=mask, other=0.0)
        level = tl.minimum(tl.maximum(column / scale + zero, -1.0), top + 1.0)
        code = tl.minimum(tl.maximum(_nearest_even(level), 0.0), top)
        diagonal = tl.load(upper_ptr + i * columns + i)
        error = (column - (code - zero) * scale) / diagonal
        tl.store(code_ptr + at, code, mask=mask)
        tl.store(error_ptr + at, error, mask=mask)
        later = (cols > i) & (cols < columns)
        factor = tl.load(upper_ptr + i * columns + cols, mask=later, other=0.0)
        rest = rest - factor[:, None] * error[None, :]


@triton.jit
def _descend_kernel(
    pull_ptr,
    hessian_ptr,
    scale_ptr,
    code_ptr,
    move_ptr,
    columns: tl.constexpr,
    out,
    top,
    BLOCK: tl.constexpr,
    TILE: tl.constexpr,
):
    rows = tl.program_id(0) * TILE + tl.arange(0, TILE)
    cols = tl.arange(0, BLOCK)
    inside = (cols[:, None] < columns) & (rows[None, :] < out)
    where = cols[:, None] * out + rows[None, :]
    pull = tl.load(pull_ptr + where, mask=inside, other=0.0)
    for i in range(columns):
        mask = rows < out
        at = i * out + rows
        column = tl.sum(tl.where((cols == i)[:, None], pull, 0.0), axis=0)
        scale = tl.load(scale_ptr + at, mask=mask, other=1.0)
        code = tl.load(code_ptr + at, mask=mask, other=0.0)
        diagonal = tl.load(hessian_ptr + i * columns + i)
        level = code + column / (diagonal * scale)
        level = tl.minimum(tl.maximum(level, -1.0), top + 1.0)
        wanted = tl.minimum(tl.maximum(_nearest_even(level), 0.0), top)
        move = (wanted - code) * scale
        tl.store(code_ptr + at, wanted, mask=mask)
        tl.store(move_ptr + at, move, mask=mask)
        factor = tl.load(hessian_ptr + i * columns + cols, mask=cols < columns, other=0.0)
        pull = pull - factor[:, None] * move[None, :]


def _launch(out: int, columns: int) -> tuple[tuple[int], dict[str, int]]:
    block = max(16, triton.next_power_of_2(columns))
    return (triton.cdiv(out, _TILE),), {"BLOCK": block, "TILE": _TILE, "num_warps": 4}


def round_block_fused(
    rest: Tensor, upper: Tensor, scales: Tensor, zeros: Tensor, codes: Tensor, top: int
) -> Tensor:
    """As :func:`evalq.quantize.columns.round_block`, but that ``rest`` is left as it was."""
    columns, out = rest.shape
    errors = torch.empty_like(rest)
    grid, meta = _launch(out, columns)
    _round_kernel[grid](
        rest.contiguous(), upper.contiguous(), scales.contiguous(), zeros.contiguous(), codes,
        errors, columns, out, float(top), **meta,
    )  # fmt: skip
    return errors


def descend_block_fused(
    pull: Tensor, hessian: Tensor, scales: Tensor, codes: Tensor, top: int
) -> Tensor:
    """As :func:`evalq.quantize.columns.descend_block`, but that ``pull`` is left as it was."""
    columns, out = pull.shape
    moves = torch.empty_like(pull)
    grid, meta = _launch(out, columns)
    _descend_kernel[grid](
        pull.contiguous(), hessian.contiguous(), scales.contiguous(), codes, moves, columns, out,
        float(top), **meta,
    )  # fmt: skip
    return moves
