"""Round to nearest."""

from __future__ import annotations

import torch
from torch import Tensor

from evalq.kernels.packing import QuantizedWeight
from evalq.quantize.grid import encode, minmax_grid, search_grid
from evalq.schema import WeightScheme

__all__ = ["rtn_weight"]


def rtn_weight(
    weight: Tensor, scheme: WeightScheme, dtype: torch.dtype, clip: str = "minmax"
) -> QuantizedWeight:
    """``weight`` (float32 ``[out, in]``) rounded to the nearest level of each group.

    Args:
        weight: to be quantized.
        scheme: bits, symmetry and groups.
        dtype: of the stored scales.
        clip: ``"minmax"`` spans each group's range; ``"mse"`` takes the range of least squared
            error.

    >>> w = torch.tensor([[-1.0, 0.0, 0.5, 2.0]])
    >>> from evalq.schema import PerChannel
    >>> q = rtn_weight(w, WeightScheme(2, PerChannel(), symmetric=False), torch.float32)
    >>> q.codes.tolist(), q.scales.tolist(), q.zeros.tolist()
    ([[0, 1, 1, 3]], [[1.0]], [[1]])
    >>> q.dequantize().tolist()
    [[-1.0, 0.0, 0.0, 2.0]]
    """
    grid = search_grid(weight, scheme, None, dtype) if clip == "mse" else None
    return encode(weight, grid or minmax_grid(weight, scheme, dtype), scheme)
