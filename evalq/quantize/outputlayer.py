"""The output head as one more layer that can be quantized."""

from __future__ import annotations

import torch
from torch import nn

from evalq.errors import QuantizationError
from evalq.quantize.calibration import Calibration
from evalq.quantize.capture import Stream, head_inputs
from evalq.quantize.job import InputStatistics, Job
from evalq.quantize.linear import check_finite, get_weight
from evalq.quantize.pipeline import finish_block

__all__ = ["head_to_quantize", "quantize_head"]


def head_to_quantize(module: nn.Module) -> nn.Module:
    """The output head that is to be quantized.

    Raises:
        QuantizationError: none that is linear, or one that shares its weight with the embeddings.
    """
    head = module.get_output_embeddings()  # type: ignore[operator]
    if not isinstance(head, nn.Linear):
        raise QuantizationError(f"{type(module).__name__} has no linear output head to quantize")
    if module.get_input_embeddings().weight is head.weight:  # type: ignore[operator]
        name = next(n for n, m in module.named_modules() if m is head)
        raise QuantizationError(
            f"{name} shares its weight with the embeddings, which stay as they are",
            hint="Leave quantize_head off for a model with tied embeddings.",
        )
    return head


def quantize_head(
    job: Job,
    module: nn.Module,
    layers: nn.ModuleList,
    stream: Stream | None,
    calibration: Calibration | None,
    batch: int,
) -> None:
    """Quantize the output head, on what the quantized decoder layers give it; ``job`` takes it.

    Args:
        job: takes the result.
        module: the parent.
        layers: its decoder layers.
        stream: hidden states behind them, or ``None`` for a method without calibration.
        calibration: the windows that they are of.
        batch: windows a batch.
    """
    head = head_to_quantize(module)
    name = next(n for n, m in module.named_modules() if m is head)
    weight = get_weight(head)
    check_finite(f"{name}.weight", weight)
    statistics = None
    if stream is not None and calibration is not None:
        statistics = InputStatistics.empty(weight.shape[1], weight.device)
        parts = torch.split(calibration.tokens, batch)
        for tokens, hidden in zip(parts, stream.hidden, strict=True):
            statistics.add(head_inputs(module, layers, tokens, hidden, head))
    copy = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    copy.weight = nn.Parameter(weight.float().clone(), requires_grad=False)
    finish_block(job, "", {name: copy}, statistics, {})
