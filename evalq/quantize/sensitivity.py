"""How much each layer costs at each width, measured: KL of the model with that layer alone rounded.

Hidden states before each decoder layer are kept, so that a trial runs the layers from its own on.
Rounding is to nearest on the grid of least squared error, without calibration: what is compared is
layers and widths, and methods lower all of them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from evalq.quantize.allocate import Unit
from evalq.quantize.capture import Stream, capture_inputs, head_inputs, run_layer
from evalq.quantize.head import Head, check_head, output_head
from evalq.quantize.linear import (
    SMALLEST_OUTPUT,
    decoder_layers,
    get_weight,
    linears,
    split_experts,
    weight_shape,
)
from evalq.quantize.rtn import rtn_weight
from evalq.quantize.trace import trace_layer
from evalq.schema import WeightScheme

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["measure_sensitivity"]

_BATCH_TOKENS = 4096


@dataclass(frozen=True, slots=True)
class _Probe:
    """The model, its decoder layers in float32, and what its head is given exactly."""

    module: PreTrainedModel
    layers: nn.ModuleList
    working: list[nn.Module]
    tokens: list[Tensor]
    head: Head
    exact: list[Tensor]


def measure_sensitivity(
    module: PreTrainedModel,
    scheme: WeightScheme,
    widths: Sequence[int],
    tokens: Tensor,
    skip: Sequence[str] = (),
    progress: Callable[[str, float], None] | None = None,
) -> list[Unit]:
    """Units of layers with the mean KL (nats a token) of each at each width.

    Args:
        module: the parent; not changed.
        scheme: groups and symmetry; its bits do not count.
        widths: to be tried.
        tokens: int64 ``[samples, length]``: text whose next-token distributions count.
        skip: layers whose names hold one of these stay as they are.
        progress: called with a layer's name and the share done.

    Raises:
        QuantizationError: an architecture that is not understood.
        NonFiniteError: NaN or infinities in an activation.
    """
    name, layers = decoder_layers(module)
    check_head(module, tokens.to(next(module.parameters()).device))
    device = next(module.parameters()).device
    batch = max(1, _BATCH_TOKENS // tokens.shape[1])
    stream = capture_inputs(module, layers, tokens, batch, device)
    working = [_working_copy(layer) for layer in layers]
    before = _all_hidden(working, stream)
    parts = list(torch.split(tokens, batch))
    output = output_head(module)
    exact = [
        head_inputs(module, layers, t, h, output) for t, h in zip(parts, before[-1], strict=True)
    ]
    probe = _Probe(module, layers, working, parts, Head(module), exact)
    units = []
    for index, layer in enumerate(layers):
        prefix = f"{name}.{index}"
        if progress:
            progress(prefix, index / len(layers))
        stream.hidden = before[index]
        units += _layer_units(probe, layer, prefix, index, stream, scheme, widths, skip)
    if progress:
        progress("done", 1.0)
    return units


def _working_copy(layer: nn.Module) -> nn.Module:
    return copy.deepcopy(layer).float().eval().requires_grad_(False)


def _all_hidden(working: list[nn.Module], stream: Stream) -> list[list[Tensor]]:
    """Hidden states before each layer and after the last, by layer and batch."""
    kept = [list(stream.hidden)]
    for index, layer in enumerate(working):
        kept.append(
            [
                run_layer(layer, hidden, stream.calls[number][index], stream.products)
                for number, hidden in enumerate(kept[-1])
            ]
        )
    return kept


def _layer_units(
    probe: _Probe,
    original: nn.Module,
    prefix: str,
    index: int,
    stream: Stream,
    scheme: WeightScheme,
    widths: Sequence[int],
    skip: Sequence[str],
) -> list[Unit]:
    layer = _working_copy(original)
    split_experts(layer, lambda part: any(s in f"{prefix}.{part}" for s in skip))
    modules = dict(linears(layer))
    wanted = [
        n
        for n, m in modules.items()
        if weight_shape(m)[0] >= SMALLEST_OUTPUT and not any(s in f"{prefix}.{n}" for s in skip)
    ]
    trace = trace_layer(layer, stream.hidden[0], stream.calls[0][index], list(modules))
    found = []
    for stage in trace.stages:
        # The experts of a stage go together: each alone is seen by too few tokens.
        names = [n for block in stage for n in block.names if n in wanted]
        if not names:
            continue
        kept = {n: get_weight(modules[n]).clone() for n in names}
        divergence = {}
        for width in widths:
            narrow = WeightScheme(width, scheme.granularity, scheme.symmetric)
            for n in names:
                rounded = rtn_weight(kept[n], narrow, torch.float32, "mse")
                get_weight(modules[n]).copy_(rounded.dequantize())
            divergence[width] = _divergence(probe, layer, index, stream)
        for n in names:
            get_weight(modules[n]).copy_(kept[n])
        shapes = tuple(weight_shape(modules[n]) for n in names)
        found.append(Unit(tuple(f"{prefix}.{n}" for n in names), shapes, divergence))
    return found


def _divergence(probe: _Probe, layer: nn.Module, index: int, stream: Stream) -> float:
    total, count = 0.0, 0
    output = output_head(probe.module)
    for number, start in enumerate(stream.hidden):
        hidden = run_layer(layer, start, stream.calls[number][index], stream.products)
        for later in range(index + 1, len(probe.layers)):
            call = stream.calls[number][later]
            hidden = run_layer(probe.working[later], hidden, call, stream.products)
        given = head_inputs(probe.module, probe.layers, probe.tokens[number], hidden, output)
        with torch.no_grad():
            values = probe.head.divergence(probe.exact[number], given, torch.float32)
        total += float(values.sum(dtype=torch.float64))
        count += values.numel()
    return max(0.0, total / count)
