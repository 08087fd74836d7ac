"""Random quantized weights, and the float64 product that kernels are compared with."""

from __future__ import annotations

import torch
from torch import Tensor

from evalq.kernels.packing import QuantizedWeight, group_count, group_index
from evalq.schema import PerChannel, PerGroup, WeightScheme


def make_weight(
    bits: int,
    group: int | None,
    symmetric: bool,
    shape: tuple[int, int],
    seed: int = 0,
    scales: torch.dtype = torch.float32,
) -> QuantizedWeight:
    granularity = PerChannel() if group is None else PerGroup(group)
    scheme = WeightScheme(bits, granularity, symmetric)
    rng = torch.Generator().manual_seed(seed)
    out, columns = shape
    groups = group_count(scheme, columns)
    codes = torch.randint(0, 1 << bits, shape, generator=rng, dtype=torch.uint8)
    scale = (torch.rand(out, groups, generator=rng) * 0.02 + 0.001).to(scales)
    zeros = None
    if not symmetric:
        zeros = torch.randint(0, 1 << bits, (out, groups), generator=rng, dtype=torch.uint8)
    return QuantizedWeight(codes, scale, zeros, scheme, shape)


def dense64(weight: QuantizedWeight) -> Tensor:
    """The weight in float64, by the definition and not by ``dequantize``."""
    index = group_index(weight.scheme, weight.shape[1])
    codes = weight.codes.to(torch.float64)
    if weight.zeros is None:
        codes = codes - 2 ** (weight.scheme.bits - 1)
    else:
        codes = codes - weight.zeros.to(torch.float64)[:, index]
    return codes * weight.scales.to(torch.float64)[:, index]


def relative_error(result: Tensor, expected: Tensor) -> float:
    """The larger of two: the error's norm to the norm, and the largest error to the largest value.

    NaN where the result has one.
    """
    difference = result.to(torch.float64) - expected
    norm = difference.norm() / expected.norm()
    worst = difference.abs().max() / expected.abs().max()
    return float(torch.maximum(norm, worst))


TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}
"""The largest relative error that a kernel may have, by the dtype of the activations."""
