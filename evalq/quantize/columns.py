"""Rounding one block of columns after another: the inner loops of GPTQ and of refinement.

A block holds up to some hundred columns of all rows. On a CPU its columns are gone over in a loop
of vector operations over the rows; on a GPU one kernel keeps a tile of rows in registers for the
whole block (``evalq.quantize.triton_columns``).
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["descend_block", "round_block"]


def _fused(tensor: Tensor) -> bool:
    return tensor.is_cuda


def round_block(
    rest: Tensor, upper: Tensor, scales: Tensor, zeros: Tensor, codes: Tensor, top: int
) -> Tensor:
    """Round a block of columns, each compensating those before it (GPTQ's inner loop).

    Args:
        rest: float32 ``[columns, out]``, the weights not yet rounded; changed in place.
        upper: float32 ``[columns, columns]``, the block of the inverse Hessian's Cholesky factor.
        scales, zeros: float32 ``[columns, out]``.
        codes: float32 ``[columns, out]``, filled.
        top: highest code.

    Returns:
        Errors ``[columns, out]``, each over its own diagonal.
    """
    if _fused(rest):
        from evalq.quantize.triton_columns import round_block_fused

        return round_block_fused(rest, upper, scales, zeros, codes, top)
    errors = torch.empty_like(rest)
    diagonal = upper.diagonal().tolist()
    for i in range(rest.shape[0]):
        column, scale, zero = rest[i], scales[i], zeros[i]
        code = torch.round(column / scale + zero).clamp_(0, top)
        codes[i] = code
        error = (column - (code - zero) * scale) / diagonal[i]
        errors[i] = error
        if i + 1 < rest.shape[0]:
            rest[i + 1 :].addr_(upper[i, i + 1 :], error, alpha=-1.0)
    return errors


def descend_block(pull: Tensor, hessian: Tensor, scales: Tensor, codes: Tensor, top: int) -> Tensor:
    """Move each code of a block to its best level while the others stay.

    Args:
        pull: float32 ``[columns, out]``: ``H (W - Q)'``, half the negative gradient; changed in
            place, within the block only.
        hessian: float32 ``[columns, columns]``, the block on the diagonal.
        scales: float32 ``[columns, out]``.
        codes: float32 ``[columns, out]``; changed in place.
        top: highest code.

    Returns:
        How far each weight moved, ``[columns, out]``.
    """
    if _fused(pull):
        from evalq.quantize.triton_columns import descend_block_fused

        return descend_block_fused(pull, hessian, scales, codes, top)
    moves = torch.empty_like(pull)
    diagonal = hessian.diagonal().tolist()
    for i in range(pull.shape[0]):
        scale = scales[i]
        wanted = torch.round(codes[i] + pull[i] / (diagonal[i] * scale)).clamp_(0, top)
        move = (wanted - codes[i]) * scale
        codes[i] = wanted
        moves[i] = move
        pull.addr_(hessian[i], move, alpha=-1.0)
    return moves
