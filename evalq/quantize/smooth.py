"""SmoothQuant: scales that share the difficulty of rounding between activations and weights.

Xiao et al., "SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language
Models", arXiv 2211.10438. Channel ``j`` of a block's input is divided by
``s_j = max|x_j|**a / max|w_j|**(1 - a)`` and the columns that read it are multiplied by ``s_j``.
The paper sets ``a`` by model (0.5 for OPT, 0.8 for Llama); here each place takes the one whose
outputs, with activations rounded token by token and weights rounded row by row, are closest to the
parent's on calibration tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from evalq.kernels.tokens import round_tokens
from evalq.quantize.awq import AwqChoice
from evalq.quantize.grid import encode, minmax_grid
from evalq.quantize.job import Reading
from evalq.quantize.linear import is_linear
from evalq.schema import WeightScheme

__all__ = ["KEPT_TOKENS", "joint_error", "round_inputs", "search_smoothing"]

KEPT_TOKENS = 512
"""Tokens of each block's input that scales are judged by."""

_SMALLEST = 1e-5


def joint_error(
    inputs: Tensor, weight: Tensor, columns: Tensor, scheme: WeightScheme, bits: int
) -> float:
    """Squared error a token of outputs when activations and weights are both rounded.

    Args:
        inputs: float32 ``[tokens, in]``, as they are before any scaling.
        weight: float32 ``[out, in]``, likewise.
        columns: positive, float32 ``[in]``: what inputs are divided and columns multiplied by.
        scheme: of the weights.
        bits: of the activations.
    """
    scaled = weight * columns
    rounded = encode(scaled, minmax_grid(scaled, scheme), scheme).dequantize()
    outputs = round_tokens(inputs / columns, bits) @ rounded.T
    outputs -= inputs @ weight.T
    return float(outputs.pow(2).sum(dtype=torch.float64)) / max(1, inputs.shape[0])


def search_smoothing(
    readings: Sequence[Reading],
    rows: Tensor,
    channels: int,
    scheme: WeightScheme,
    *,
    bits: int = 8,
    grid: int = 20,
) -> AwqChoice:
    """Scales of least joint error among ``largest**a / max|w|**(1-a)``, ``a`` from 0 to 1.

    Args:
        readings: all weights that read the scaled channels, with the largest absolute inputs and
            kept tokens of what they read. The experts of a mixture read different tokens; each
            counts by how many, and those without any not.
        rows: the channel that each column reads, int64 ``[in]``. Channels that several columns
            read (grouped-query attention) take the largest of them.
        channels: how many channels there are; those not read keep scale 1.
        scheme: that weights will be stored in.
        bits: of the activations.
        grid: values of ``a`` tried; no scaling at all is always tried too.

    Returns:
        The scales, with ``strength`` the ``a`` chosen (-1: no scaling was best).
    """
    used = [r for r in readings if r.statistics.tokens]
    joined = torch.cat([r.weight for r in used])
    largest = _largest_inputs(used)
    ones = torch.ones(channels, device=joined.device)
    by_input = _largest(largest, rows, channels)
    by_weight = _largest(joined.abs().amax(0), rows, channels)
    # A channel that is zero in every token, or read by nothing, has nothing to share.
    usable = (by_input > 0) & (by_weight > 0)
    by_input, by_weight = by_input.clamp_min(_SMALLEST), by_weight.clamp_min(_SMALLEST)
    plain = _joint_errors(used, ones[rows], scheme, bits)
    best = AwqChoice(ones, -1.0, plain, plain)
    for step in range(grid):
        strength = step / max(1, grid - 1)
        scales = by_input.pow(strength) / by_weight.pow(1 - strength)
        if bool(usable.any()):
            # The mean size of the scales changes nothing but the size of the norm's weights.
            scales = scales / scales[usable].log().mean().exp()
        scales = torch.where(usable, scales.clamp_min(_SMALLEST), ones)
        error = _joint_errors(used, scales[rows], scheme, bits)
        if error < best.error:
            best = AwqChoice(scales, strength, error, plain)
    return best


def _largest_inputs(readings: Sequence[Reading]) -> Tensor:
    """Largest absolute input over all readings, ``[in]``."""
    each = [r.statistics.largest for r in readings]
    return torch.stack([values for values in each if values is not None]).amax(0)


def _joint_errors(
    readings: Sequence[Reading], columns: Tensor, scheme: WeightScheme, bits: int
) -> float:
    """:func:`joint_error` over all readings, each by the number of tokens that it saw."""
    error = total = 0.0
    for reading in readings:
        inputs = torch.cat(reading.statistics.kept)
        if not len(inputs):
            continue
        tokens = reading.statistics.tokens
        error += tokens * joint_error(inputs, reading.weight, columns, scheme, bits)
        total += tokens
    return error / max(total, 1.0)


def _largest(values: Tensor, rows: Tensor, channels: int) -> Tensor:
    """The largest of ``values`` over the columns that read each channel, ``[channels]``."""
    found = torch.zeros(channels, device=values.device)
    return found.scatter_reduce_(0, rows, values, "amax")


def round_inputs(module: nn.Module, bits: int) -> None:
    """Make a linear layer round its inputs token by token from now on, as the artifact will."""
    if not is_linear(module):
        raise TypeError(f"{type(module).__name__} is no linear layer")
    module.register_forward_pre_hook(
        lambda _layer, inputs: (round_tokens(inputs[0], bits), *inputs[1:])
    )
