"""Distillation: after rounding, the numbers of a variant are trained against its parent as a whole.

Layer by layer, a method lowers the error of each layer's outputs; what is shipped is judged by the
next-token distribution. Here scales, and if asked for the codes, are trained by gradient descent on
``KL(parent || variant)`` over the calibration tokens, with the whole vocabulary as the target. The
formats stay as they are: integer codes, one stored scale a group.

Training scales alone after rounding is the end-to-end phase of EfficientQAT (arXiv 2407.11062);
codes are trained through a straight-through estimator (arXiv 1308.3432) on steps of one level.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from evalq.errors import NonFiniteError
from evalq.kernels.packing import QuantizedWeight, group_size
from evalq.quantize.head import Head, check_head, head_input

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["DistillSettings", "Distilled", "distill"]

_WARM_SHARE = 0.05
_LARGEST_NORM = 1.0


@dataclass(frozen=True, slots=True)
class DistillSettings:
    """How to train.

    Args:
        epochs: times that all windows are gone over.
        windows: windows a step.
        scale_rate: largest relative step of a scale (Adam's learning rate on its logarithm).
        code_rate: largest step of a code, in levels; 0 leaves codes as they are.
        products: dtype of matrix products; sums and parameters stay in float32.
        seed: of the order of windows.
    """

    epochs: int = 8
    windows: int = 4
    scale_rate: float = 1e-3
    code_rate: float = 0.0
    products: torch.dtype = torch.bfloat16
    seed: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Distilled:
    """What training gave.

    Args:
        layers: by name, as those that went in.
        before, after: mean KL in nats a token over the calibration tokens, in the first epoch and
            in the last.
        steps: taken.
    """

    layers: Mapping[str, QuantizedWeight]
    before: float
    after: float
    steps: int


class _Tuned(nn.Module):
    """A linear layer whose weight is made of codes and scales that are trained."""

    def __init__(self, original: nn.Module, weight: QuantizedWeight, train_codes: bool) -> None:
        super().__init__()
        rows, columns = weight.shape
        self.size = group_size(weight.scheme, columns)
        self.top = float((1 << weight.scheme.bits) - 1)
        self.kept = weight
        self.middle = weight.float_zeros().unsqueeze(-1)
        self.start = weight.scales.float()
        self.growth = nn.Parameter(torch.zeros_like(self.start))
        codes = weight.codes.reshape(rows, columns // self.size, self.size)
        self.codes: Tensor = codes
        if train_codes:
            self.codes = nn.Parameter(codes.float())
        bias = getattr(original, "bias", None)
        self.bias = None if bias is None else bias.detach()

    def scales(self) -> Tensor:
        """``[out, groups]``."""
        return self.start * torch.exp(self.growth)

    def forward(self, inputs: Tensor) -> Tensor:
        """``[..., in]`` to ``[..., out]``."""
        dequantize: Any = _Dequantize.apply
        weight = dequantize(self.codes, self.growth, self.start, self.middle, self.top)
        bias = None if self.bias is None else self.bias.to(inputs.dtype)
        return functional.linear(inputs, weight.to(inputs.dtype), bias)

    def result(self) -> QuantizedWeight:
        """The layer as it would be stored."""
        kept = self.kept
        codes = self.codes.detach().float().round().clamp(0, self.top)
        moved = kept.with_codes(codes.to(torch.uint8).reshape(kept.shape))
        return moved.with_scales(self.scales().detach())


class _Dequantize(torch.autograd.Function):
    """``(round(code) - zero) * scale`` that keeps nothing of the weight's size in float."""

    @staticmethod
    def forward(
        ctx: Any, codes: Tensor, growth: Tensor, start: Tensor, middle: Tensor, top: float
    ) -> Tensor:
        ctx.save_for_backward(codes, growth, start, middle)
        ctx.top = top
        return _values(codes, growth, start, middle, top)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        codes, growth, start, middle = ctx.saved_tensors
        scales = (start * torch.exp(growth)).unsqueeze(-1)
        grad = grads[0].float().reshape(codes.shape)
        rounded = codes.float().round().clamp_(0, ctx.top) if codes.is_floating_point() else codes
        centred = rounded - middle
        by_growth = (grad * centred).sum(-1) * scales.squeeze(-1)
        by_code = None
        if ctx.needs_input_grad[0]:
            # A code beyond the last level can only come back.
            inside = (codes >= -0.5) & (codes <= ctx.top + 0.5)
            by_code = torch.where(inside, grad * scales, torch.zeros_like(grad))
        return by_code, by_growth, None, None, None


def _values(codes: Tensor, growth: Tensor, start: Tensor, middle: Tensor, top: float) -> Tensor:
    scales = (start * torch.exp(growth)).unsqueeze(-1)
    rounded = codes.round().clamp(0, top) if codes.is_floating_point() else codes
    values = (rounded - middle) * scales
    return values.reshape(codes.shape[0], -1)


def _student(
    module: PreTrainedModel,
    layers: Mapping[str, QuantizedWeight],
    dense: Mapping[str, Tensor],
    train_codes: bool,
) -> tuple[PreTrainedModel, dict[str, _Tuned]]:
    student: Any = copy.deepcopy(module)
    student = student.float().requires_grad_(False)
    device = next(student.parameters()).device
    for name, tensor in dense.items():
        student.get_parameter(name).data.copy_(tensor)
    tuned = {}
    names = {n for n, _ in student.named_modules()}
    for name, weight in layers.items():
        home, _, attribute = name.rpartition(".")
        if name not in names:
            # One expert of a stack: it is run as it was rounded.
            continue
        replacement = _Tuned(student.get_submodule(name), weight.to(device), train_codes)
        setattr(student.get_submodule(home), attribute, replacement)
        tuned[name] = replacement
    return student, tuned


def distill(
    module: PreTrainedModel,
    layers: Mapping[str, QuantizedWeight],
    dense: Mapping[str, Tensor],
    tokens: Tensor,
    settings: DistillSettings,
    progress: Callable[[float], None] | None = None,
) -> Distilled:
    """Train the scales (and codes) of ``layers`` on the parent's distribution over ``tokens``.

    Needs the whole model in float32, its activations for ``settings.windows`` windows, and with
    ``code_rate`` four numbers more for each weight.

    Args:
        module: the parent, where it is to be run; not changed.
        layers: quantized weights ``[out, in]`` by layer.
        dense: other tensors of the variant that differ from the parent's.
        tokens: int64 ``[samples, length]``.
        settings: how.
        progress: called with the share done.

    Raises:
        QuantizationError: an architecture whose logits are more than its head's output.
        NonFiniteError: the loss is NaN or infinite.
    """
    device = next(module.parameters()).device
    check_head(module, tokens.to(device))
    train_codes = settings.code_rate > 0
    student, tuned = _student(module, layers, dense, train_codes)
    head = Head(module)
    groups: list[dict[str, Any]] = [
        {"params": [t.growth for t in tuned.values()], "rate": settings.scale_rate}
    ]
    if train_codes:
        groups.append({"params": [t.codes for t in tuned.values()], "rate": settings.code_rate})
    optimizer = torch.optim.Adam(groups, lr=0.0, betas=(0.9, 0.95))
    targets = _targets(module, tokens, settings, device)
    generator = torch.Generator().manual_seed(settings.seed)
    a_step = settings.windows
    steps = settings.epochs * math.ceil(tokens.shape[0] / a_step)
    done, means = 0, []
    for _ in range(settings.epochs):
        order = torch.randperm(tokens.shape[0], generator=generator)
        total = 0.0
        for chosen in torch.split(order, a_step):
            for group in optimizer.param_groups:
                group["lr"] = group["rate"] * _schedule(done, steps)
            total += _step(student, head, tokens[chosen].to(device), targets, chosen, settings)
            torch.nn.utils.clip_grad_norm_([p for g in groups for p in g["params"]], _LARGEST_NORM)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            done += 1
            if progress:
                progress(done / steps)
        means.append(total / tokens.numel())
        if not math.isfinite(means[-1]):
            raise NonFiniteError(
                "distillation diverged: its loss is not finite",
                hint="Lower the options scale_rate and code_rate.",
            )
    results = {n: tuned[n].result().to("cpu") if n in tuned else w for n, w in layers.items()}
    return Distilled(results, means[0], means[-1], steps)


def _schedule(step: int, steps: int) -> float:
    """A short linear rise, then half a cosine down to zero."""
    warm = max(1.0, _WARM_SHARE * steps)
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1.0, steps - warm)))


def _targets(
    module: PreTrainedModel, tokens: Tensor, settings: DistillSettings, device: torch.device
) -> list[Tensor]:
    """The parent's input of the head for each window, kept on the CPU."""
    kept = []
    with torch.no_grad():
        for part in torch.split(tokens, settings.windows):
            kept += list(head_input(module, part.to(device)).cpu())
    return kept


def _step(
    student: PreTrainedModel,
    head: Head,
    tokens: Tensor,
    targets: list[Tensor],
    chosen: Tensor,
    settings: DistillSettings,
) -> float:
    """Gradients of one batch; returns its summed KL."""
    low = settings.products != torch.float32
    with torch.autocast(tokens.device.type, settings.products, enabled=low):
        hidden = head_input(student, tokens)
    target = torch.cat([targets[int(i)] for i in chosen]).to(hidden.device)
    flat = hidden.reshape(-1, hidden.shape[-1])
    total, gradient = head.loss(target, flat, settings.products)
    torch.autograd.backward(flat, gradient / flat.shape[0])
    return total
