"""Refining a rounded weight: its scales all at once, then its codes one column after another.

GPTQ rounds greedily: a column that is rounded is never looked at again, and its scales were chosen
before any error was compensated. Both steps here lower the same objective,
``tr((W - Q) H (W - Q)')``, or leave it as it is:

* for given codes, the scales of a row are a small least squares problem whose unknowns, one a
  group, are coupled through the Hessian;
* for given scales, each code is moved to the best level while all others stay (coordinate descent,
  as in "QuantEase", arXiv 2309.01885).
"""

from __future__ import annotations

import torch
from torch import Tensor

from evalq.kernels.packing import QuantizedWeight, group_index, group_size
from evalq.quantize.columns import descend_block

__all__ = ["refine_weight", "row_errors"]

_RIDGE = 1e-6
_TABLE_ENTRIES = 1 << 25


def row_errors(difference: Tensor, hessian: Tensor) -> Tensor:
    """``d H d'`` of each row of ``difference`` ``[out, in]``: float32 ``[out]``."""
    return ((difference @ hessian) * difference).sum(-1)


def refine_weight(
    weight: Tensor,
    start: QuantizedWeight,
    hessian: Tensor,
    passes: int,
    block_size: int = 128,
) -> QuantizedWeight:
    """``start`` with scales and codes that lie closer to ``weight`` in the metric of ``hessian``.

    A row whose error would rise (scales are stored in few bits) keeps what it had.

    Args:
        weight: float32 ``[out, in]``.
        start: a rounding of it.
        hessian: float32 ``[in, in]``, positive definite (damped).
        passes: times that scales and codes are gone over.
        block_size: columns between two updates of the rest.
    """
    best = start
    error = row_errors(weight - best.dequantize(), hessian)
    for _ in range(passes):
        refitted = _with_scales(weight, best, hessian)
        codes = _descend(weight, refitted, hessian, block_size)
        trial = refitted.with_codes(codes)
        trial_error = row_errors(weight - trial.dequantize(), hessian)
        wins = (trial_error < error)[:, None]
        codes = torch.where(wins, trial.codes, best.codes)
        best = best.with_codes(codes).with_scales(torch.where(wins, trial.scales, best.scales))
        error = torch.minimum(error, trial_error)
    return best


def _with_scales(weight: Tensor, start: QuantizedWeight, hessian: Tensor) -> QuantizedWeight:
    """The same codes with the scales of least error; rows are solved on their own."""
    rows, columns = weight.shape
    size = group_size(start.scheme, columns)
    groups = columns // size
    # A table [rows, groups, groups] is held at a time.
    at_a_time = max(1, _TABLE_ENTRIES // max(groups * groups, columns))
    zeros = start.float_zeros()
    parts = []
    for begin in range(0, rows, at_a_time):
        some = slice(begin, begin + at_a_time)
        centred = start.codes[some].float().reshape(-1, groups, size) - zeros[some, :, None]
        fitted = _solve_scales(weight[some], centred, start.scales[some].float(), hessian)
        parts.append(fitted)
    return start.with_scales(torch.cat(parts))


def _solve_scales(weight: Tensor, centred: Tensor, scales: Tensor, hessian: Tensor) -> Tensor:
    """Least squares for ``[rows, groups]`` scales of codes ``[rows, groups, size]``."""
    rows, groups, size = centred.shape
    flat = centred.reshape(rows, groups * size)
    table = torch.empty(rows, groups, groups, device=weight.device)
    for group in range(groups):
        columns = slice(group * size, (group + 1) * size)
        moved = (centred[:, group] @ hessian[columns]) * flat
        table[:, group] = moved.reshape(rows, groups, size).sum(-1)
    target = ((weight @ hessian) * flat).reshape(rows, groups, size).sum(-1)
    diagonal = table.diagonal(dim1=1, dim2=2)
    # A group whose codes all are its zero has no say in the error: it keeps its scale.
    silent = diagonal <= 0
    ridge = _RIDGE * diagonal.mean(-1, keepdim=True).clamp_min(1e-30)
    # Towards the present scales, not towards zero.
    target = target + ridge * scales
    diagonal.add_(ridge + silent.float())
    lower, info = torch.linalg.cholesky_ex(table)
    solved = torch.cholesky_solve(target.unsqueeze(-1), lower).squeeze(-1)
    usable = (info == 0)[:, None] & torch.isfinite(solved) & (solved > 0) & ~silent
    # One group that cannot be used means that its row's solution is none.
    whole = (usable | silent).all(-1, keepdim=True)
    return torch.where(whole & ~silent, solved, scales)


def _descend(weight: Tensor, start: QuantizedWeight, hessian: Tensor, block_size: int) -> Tensor:
    """Codes uint8 ``[out, in]`` after every column was moved to its best level once."""
    columns = weight.shape[1]
    index = group_index(start.scheme, columns, weight.device)
    # One row a column, as in GPTQ.
    scales = start.scales.float().T[index].contiguous()
    zeros = start.float_zeros().T[index]
    codes = start.codes.T.float().contiguous()
    pull = (hessian @ (weight.T - (codes - zeros) * scales)).contiguous()
    top = (1 << start.scheme.bits) - 1
    for begin in range(0, columns, block_size):
        stop = min(begin + block_size, columns)
        part = slice(begin, stop)
        moves = descend_block(
            pull[part], hessian[part, part].contiguous(), scales[part], codes[part], top
        )
        if stop < columns:
            pull[stop:].addmm_(hessian[stop:, part], moves, alpha=-1.0)
    return codes.T.to(torch.uint8).contiguous()
