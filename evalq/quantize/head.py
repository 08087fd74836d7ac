"""The output head on its own: logits and divergences from what the head is given."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from evalq.errors import QuantizationError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["Head", "check_head", "head_input", "output_head"]

_ROWS_OF_LOGITS = 512


class _StopError(Exception):
    """Ends a forward pass at the output head."""


def _softcap(module: PreTrainedModel) -> float | None:
    value = getattr(module.config.get_text_config(), "final_logit_softcapping", None)
    return None if value is None else float(value)


@contextmanager
def _stopping_at(head: nn.Module, seen: list[Tensor]) -> Iterator[None]:
    def look(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen.append(inputs[0])
        raise _StopError

    handle = head.register_forward_pre_hook(look)
    try:
        yield
    finally:
        handle.remove()


def _scale(module: PreTrainedModel) -> float:
    """What logits are multiplied by: Cohere's ``logit_scale``, one over Granite's scaling."""
    config = module.config.get_text_config()
    times, over = getattr(config, "logit_scale", None), getattr(config, "logits_scaling", None)
    return float(times or 1.0) / float(over or 1.0)


def output_head(module: Any) -> Any:
    """The module that gives the logits, or ``None``; transformers leaves it without a type."""
    return module.get_output_embeddings()


def head_input(module: PreTrainedModel, tokens: Tensor) -> Tensor:
    """What the output head gets for ``[windows, length]``: ``[windows, length, width]``."""
    seen: list[Tensor] = []
    head = output_head(module)
    with suppress(_StopError), _stopping_at(head, seen):
        module(input_ids=tokens, use_cache=False)
    return seen[0]


class Head:
    """The output head as a function of its input, in float32, with the loss of a batch."""

    def __init__(self, module: PreTrainedModel) -> None:
        head = output_head(module)
        self.weight: Tensor = head.weight.detach()
        self.bias: Tensor | None = None if head.bias is None else head.bias.detach()
        self.softcap = _softcap(module)
        self.scale = _scale(module)

    def logits(self, hidden: Tensor, products: torch.dtype) -> Tensor:
        """Float32 ``[..., vocabulary]``, scaled and soft-capped where the model does so."""
        weight = self.weight.to(products)
        raw = functional.linear(hidden.to(products), weight).float()
        if self.bias is not None:
            raw = raw + self.bias.float()
        raw = raw * self.scale
        return raw if self.softcap is None else torch.tanh(raw / self.softcap) * self.softcap

    def divergence(self, target: Tensor, hidden: Tensor, products: torch.dtype) -> Tensor:
        """``KL(target || hidden)`` of each token in nats: float32 ``[tokens]``."""
        parts = []
        for wanted, given in zip(
            torch.split(target, _ROWS_OF_LOGITS), torch.split(hidden, _ROWS_OF_LOGITS), strict=True
        ):
            theirs = functional.log_softmax(self.logits(wanted, products), -1)
            ours = functional.log_softmax(self.logits(given, products), -1)
            parts.append((theirs.exp() * (theirs - ours)).sum(-1))
        return torch.cat(parts)

    def loss(self, target: Tensor, hidden: Tensor, products: torch.dtype) -> tuple[float, Tensor]:
        """Summed ``KL(target || hidden)`` in nats, and its gradient by ``hidden``.

        Both are ``[tokens, width]``. Logits are made for some rows at a time and never kept.
        """
        total, gradients = 0.0, []
        for wanted, given in zip(
            torch.split(target, _ROWS_OF_LOGITS),
            torch.split(hidden.detach(), _ROWS_OF_LOGITS),
            strict=True,
        ):
            leaf = given.float().requires_grad_(True)
            with torch.enable_grad():
                ours = functional.log_softmax(self.logits(leaf, products), -1)
                theirs = functional.log_softmax(self.logits(wanted, products), -1)
                part = functional.kl_div(ours, theirs, reduction="sum", log_target=True)
            (gradient,) = torch.autograd.grad(part, leaf)
            total += float(part.detach())
            gradients.append(gradient)
        return total, torch.cat(gradients).to(hidden.dtype)


def check_head(module: PreTrainedModel, tokens: Tensor) -> None:
    """Whether the model's logits are its head's output, perhaps soft-capped.

    Raises:
        QuantizationError: they are not.
    """
    short = tokens[:1, :16]
    with torch.no_grad():
        logits = module(input_ids=short, use_cache=False).logits.float()
        ours = Head(module).logits(head_input(module, short), module.dtype)
    if not torch.allclose(logits, ours, rtol=1e-2, atol=1e-2 * float(logits.abs().max())):
        raise QuantizationError(
            f"{type(module).__name__} changes its logits after the output head in a way that "
            "evalq does not know",
            hint="Use a method without distillation and without a bit allocation.",
        )
