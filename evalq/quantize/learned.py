"""Learned rounding: the codes of a decoder layer trained together on the layer's output.

GPTQ and AWQ lower the error of one linear layer at a time. What the next decoder layer reads is the
sum of all of them, through attention and the gated product, so here all codes and scales of one
decoder layer are trained at once, towards what the parent's layer gives for the parent's own inputs
(block reconstruction, "BRECQ", arXiv 2102.05426). Each code may move by at most one half before it
is rounded, by steps of the gradient's sign ("SignRound", arXiv 2309.05516), with the gradient of a
scale as in "LSQ" (arXiv 1902.08153). SignRound starts at round to nearest; here training starts at
what another method left, and its result is kept only where the layer's error fell.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from evalq.errors import NonFiniteError
from evalq.kernels.packing import QuantizedWeight, group_size
from evalq.quantize.capture import LayerCall, Stream
from evalq.quantize.linear import get_weight, set_weight

__all__ = ["LearnedRounding", "RoundingSettings", "learn_rounding"]

_EDGE = 0.49
"""Largest distance of a code's start from its level: inside the cell that rounds to it."""
_REACH = 0.5
"""Farthest that training moves a code before it is rounded."""
_FASTEST = 15.0
"""Levels that the largest code may move a step for each step of a code: what 4 bits do."""


@dataclass(frozen=True, slots=True)
class RoundingSettings:
    """How to train.

    Args:
        steps: of one decoder layer, a batch of windows each; the first and largest step moves a
            code by ``1 / steps`` levels and a scale by that share of itself (beyond 4 bits by
            less, since a share of a scale is then many levels of the largest code).
        seed: of the order of batches.
    """

    steps: int = 200
    seed: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class LearnedRounding:
    """What training gave.

    Args:
        layers: by name within the decoder layer; what went in, where the error did not fall.
        before, after: mean squared error of the decoder layer's output over all batches, as a
            share of the mean square of the parent's.
    """

    layers: Mapping[str, QuantizedWeight]
    before: float
    after: float


class _Rounding(torch.autograd.Function):
    """``(round((place - zero) / growth + zero + offset) - zero) * start * growth``."""

    @staticmethod
    def forward(ctx: Any, offset: Tensor, growth: Tensor, place: Tensor, layer: _Learned) -> Tensor:
        ctx.save_for_backward(offset, growth, place)
        ctx.layer = layer
        codes, scales = layer.codes(offset, growth, place)
        return (codes - layer.zeros).mul_(scales).reshape(codes.shape[0], -1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        offset, growth, place = ctx.saved_tensors
        layer: _Learned = ctx.layer
        grown = torch.exp(growth).unsqueeze(-1)
        scales = layer.start * grown
        moved = (place - layer.zeros) / grown
        unrounded = moved + layer.zeros + offset
        codes = unrounded.round().clamp_(0, layer.top)
        grad = grads[0].float().reshape(place.shape) * scales
        inside = (unrounded >= -_REACH) & (unrounded <= layer.top + _REACH)
        by_offset = torch.where(inside, grad, 0.0)
        by_growth = (grad * (codes - layer.zeros) - by_offset * moved).sum(-1)
        return by_offset, by_growth, None, None


class _Learned(nn.Module):
    """A linear layer whose codes and scales are trained."""

    def __init__(self, original: nn.Module, plain: Tensor, weight: QuantizedWeight) -> None:
        super().__init__()
        rows, columns = weight.shape
        size = group_size(weight.scheme, columns)
        self.kept = weight
        self.top = float((1 << weight.scheme.bits) - 1)
        self.pace = min(1.0, _FASTEST / self.top)
        self.zeros = weight.float_zeros().unsqueeze(-1)
        self.start = weight.scales.float().unsqueeze(-1)
        codes = weight.codes.reshape(rows, columns // size, size).float()
        exact = plain.reshape(codes.shape) / self.start + self.zeros
        self.place = torch.maximum(torch.minimum(exact, codes + _EDGE), codes - _EDGE)
        self.offset = nn.Parameter(torch.zeros_like(self.place))
        self.growth = nn.Parameter(torch.zeros_like(self.start.squeeze(-1)))
        bias = getattr(original, "bias", None)
        self.bias = None if bias is None else bias.detach()

    def codes(self, offset: Tensor, growth: Tensor, place: Tensor) -> tuple[Tensor, Tensor]:
        """Codes as floats ``[out, groups, size]``, and scales ``[out, groups, 1]``."""
        grown = torch.exp(growth).unsqueeze(-1)
        unrounded = (place - self.zeros) / grown + self.zeros + offset
        return unrounded.round_().clamp_(0, self.top), self.start * grown

    def forward(self, inputs: Tensor) -> Tensor:
        """``[..., in]`` to ``[..., out]``."""
        rounding: Any = _Rounding.apply
        weight = rounding(self.offset, self.growth, self.place, self)
        return functional.linear(inputs, weight, self.bias)

    def result(self) -> QuantizedWeight:
        """The layer as it would be stored."""
        with torch.no_grad():
            codes, scales = self.codes(self.offset, self.growth, self.place)
        return self.kept.with_codes(codes.to(torch.uint8).reshape(self.kept.shape)).with_scales(
            scales.squeeze(-1)
        )


def learn_rounding(
    layer: nn.Module,
    quantized: Mapping[str, QuantizedWeight],
    plain: Mapping[str, Tensor],
    stream: Stream,
    index: int,
    targets: list[Tensor],
    settings: RoundingSettings,
) -> LearnedRounding:
    """Train the codes and scales of one decoder layer; ``layer`` is left with the better weights.

    Args:
        layer: a decoder layer in float32 whose quantized layers hold their dequantized weights.
        quantized: those layers by name within ``layer``, where they are to be run.
        plain: their unrounded weights, float32 ``[out, in]``.
        stream: inputs of the layer, behind quantized layers.
        index: its place among the layers.
        targets: per batch ``[samples, length, width]``, float32: what the parent's layer gives.
        settings: how.

    Raises:
        NonFiniteError: the error is NaN or infinite.
    """
    homes = {name: _home(layer, name) for name in quantized}
    originals = {name: layer.get_submodule(name) for name in quantized}
    before = _error(layer, stream, index, targets)
    learned = {n: _Learned(originals[n], plain[n], w) for n, w in quantized.items()}
    for name, trained in learned.items():
        setattr(*homes[name], trained)
    try:
        _train(layer, list(learned.values()), stream, index, targets, settings)
        results = {name: trained.result() for name, trained in learned.items()}
    finally:
        for name, module in originals.items():
            setattr(*homes[name], module)
    old = {name: get_weight(module).clone() for name, module in originals.items()}
    for name, weight in results.items():
        set_weight(originals[name], weight.dequantize())
    after = _error(layer, stream, index, targets)
    if after < before:
        return LearnedRounding(results, before, after)
    for name, values in old.items():
        set_weight(originals[name], values)
    return LearnedRounding(quantized, before, before)


def _home(layer: nn.Module, name: str) -> tuple[nn.Module, str]:
    parent, _, attribute = name.rpartition(".")
    return layer.get_submodule(parent), attribute


def _run(layer: nn.Module, hidden: Tensor, call: LayerCall, products: torch.dtype) -> Tensor:
    low = products != torch.float32
    with torch.autocast(hidden.device.type, products, enabled=low):
        out: Tensor = layer(hidden, *call.args, **copy.copy(dict(call.kwargs)))
    return out.float()


def _error(layer: nn.Module, stream: Stream, index: int, targets: list[Tensor]) -> float:
    """Squared error of the output over all batches, as a share of the targets' square."""
    error = signal = 0.0
    with torch.no_grad():
        for number, hidden in enumerate(stream.hidden):
            out = _run(layer, hidden, stream.calls[number][index], stream.products)
            error += float((out - targets[number]).square().sum(dtype=torch.float64))
            signal += float(targets[number].square().sum(dtype=torch.float64))
    found = error / max(signal, 1e-30)
    if not found < float("inf"):
        raise NonFiniteError(
            "a decoder layer's error is not finite",
            hint="The parent overflows on the calibration text; try other text.",
        )
    return found


def _train(
    layer: nn.Module,
    learned: list[_Learned],
    stream: Stream,
    index: int,
    targets: list[Tensor],
    settings: RoundingSettings,
) -> None:
    generator = torch.Generator().manual_seed(settings.seed + index)
    order: list[int] = []
    for step in range(settings.steps):
        if not order:
            order = torch.randperm(len(targets), generator=generator).tolist()
        number = order.pop()
        out = _run(layer, stream.hidden[number], stream.calls[number][index], stream.products)
        loss = (out - targets[number]).square().mean()
        loss.backward()  # type: ignore[no-untyped-call]
        rate = (1.0 - step / settings.steps) / settings.steps
        with torch.no_grad():
            for module in learned:
                for parameter, pace in ((module.offset, 1.0), (module.growth, module.pace)):
                    if parameter.grad is not None:
                        parameter.sub_(parameter.grad.sign_(), alpha=rate * pace)
                        parameter.grad = None
                module.offset.clamp_(-_REACH, _REACH)
