"""AWQ: channels that carry large activations are scaled up before their weights are rounded.

Lin et al., "AWQ: Activation-aware Weight Quantization", arXiv 2306.00978. The error of a choice is
that of the layers' outputs over all calibration tokens, ``tr((W - Q) H (W - Q)')``, so that no
forward pass is needed to try one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from evalq.kernels.packing import QuantizedWeight
from evalq.quantize.gptq import block_importance
from evalq.quantize.grid import encode, minmax_grid, search_grid
from evalq.quantize.job import Reading
from evalq.schema import WeightScheme

__all__ = ["AwqChoice", "awq_weight", "output_error", "search_scales"]


@dataclass(frozen=True, slots=True, eq=False)
class AwqChoice:
    """The scales found.

    Args:
        scales: positive, float32 ``[channels]`` of the producer.
        strength: exponent of the activations; ``-1`` where no scaling was best.
        error, plain_error: output error with these scales, and without.
    """

    scales: Tensor
    strength: float
    error: float
    plain_error: float


def output_error(difference: Tensor, hessian: Tensor) -> float:
    """``tr(D H D')``: squared output error a token of the weight difference ``[out, in]``."""
    return float(((difference @ hessian) * difference).sum(dtype=torch.float64))


def search_scales(
    readings: Sequence[Reading],
    rows: Tensor,
    channels: int,
    scheme: WeightScheme,
    *,
    grid: int = 20,
    duo_scaling: bool = True,
) -> AwqChoice:
    """Scales of least output error among ``magnitude**a / weights**(1-a)``, ``a`` from 0 to 1.

    Args:
        readings: all weights that read the scaled channels, with their inputs. The experts of a
            mixture read different tokens; each counts by how many, and those without any not.
        rows: the channel that each column reads, int64 ``[in]``.
        channels: how many channels there are; those not read keep scale 1.
        scheme: that weights will be stored in.
        grid: values of ``a`` tried; no scaling at all is always tried too.
        duo_scaling: divide by the weights' mean size; else ``magnitude**a`` alone.
    """
    used = [r for r in readings if r.statistics.tokens]
    total = sum(r.statistics.tokens for r in used)
    magnitude = torch.stack(
        [r.statistics.magnitude * (r.statistics.tokens / total) for r in used]
    ).sum(0)
    by_weight = _spread(_relative_size(torch.cat([r.weight for r in used]), scheme), rows, channels)
    by_input = _spread(magnitude, rows, channels)
    read = torch.zeros(channels, dtype=torch.bool, device=rows.device)
    read[rows] = True
    ones = torch.ones(channels, device=magnitude.device)
    plain = _scaled_error(used, ones[rows], scheme)
    best = AwqChoice(ones, -1.0, plain, plain)
    for step in range(grid):
        strength = step / max(1, grid - 1)
        scales = by_input.pow(strength)
        if duo_scaling:
            scales = scales / by_weight.pow(1 - strength).clamp_min(1e-4)
        scales = scales.clamp_min(1e-4)
        scales = scales / (scales[read].max() * scales[read].min()).sqrt()
        scales = torch.where(read, scales, ones)
        error = _scaled_error(used, scales[rows], scheme)
        if error < best.error:
            best = AwqChoice(scales, strength, error, plain)
    return best


def _relative_size(weight: Tensor, scheme: WeightScheme) -> Tensor:
    """Mean over rows of ``|w|`` over the largest of its group, ``[in]``."""
    rows, columns = weight.shape
    size = getattr(scheme.granularity, "size", columns)
    blocks = weight.abs().reshape(rows, columns // size, size)
    return (blocks / blocks.amax(-1, keepdim=True).clamp_min(1e-8)).mean(0).reshape(columns)


def _spread(values: Tensor, rows: Tensor, channels: int) -> Tensor:
    """Mean of ``values`` over the columns that read each channel, ``[channels]``."""
    total = torch.zeros(channels, device=values.device).index_add_(0, rows, values)
    count = torch.zeros(channels, device=values.device).index_add_(0, rows, torch.ones_like(values))
    return total / count.clamp_min(1)


def _scaled_error(readings: Sequence[Reading], columns: Tensor, scheme: WeightScheme) -> float:
    """Squared output error over all tokens that were read, a token."""
    error = total = 0.0
    for reading in readings:
        scaled = reading.weight * columns
        rounded = encode(scaled, minmax_grid(scaled, scheme), scheme).dequantize()
        difference = rounded / columns - reading.weight
        tokens = reading.statistics.tokens
        error += tokens * output_error(difference, reading.statistics.hessian)
        total += tokens
    return error / total


def awq_weight(
    weight: Tensor, hessian: Tensor, scheme: WeightScheme, dtype: torch.dtype, clip: bool
) -> QuantizedWeight:
    """A weight whose scales are folded in already, rounded to nearest after a clip search.

    Args:
        weight: float32 ``[out, in]``.
        hessian: of its (scaled) input, ``[in, in]``.
        scheme: bits, symmetry and groups.
        dtype: of the stored scales.
        clip: search each group's range for the least output error; else span it.
    """
    if not clip:
        return encode(weight, minmax_grid(weight, scheme, dtype), scheme)
    grid = search_grid(weight, scheme, block_importance(hessian, scheme), dtype)
    return encode(weight, grid, scheme)
