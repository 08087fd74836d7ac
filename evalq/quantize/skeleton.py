"""A model with its decoder layers left out: what comes before them, and what follows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["StopPassError", "ToWork", "identity_layers", "until_head"]


class StopPassError(Exception):
    """Ends a forward pass once the inputs wanted have been seen."""


@contextmanager
def identity_layers(
    layers: nn.ModuleList, visit: Callable[[int, Tensor, tuple[Any, ...], dict[str, Any]], Tensor]
) -> Iterator[None]:
    """Decoder layers that only pass hidden states on, through ``visit(index, hidden, ...)``."""

    def stub(index: int) -> Callable[..., Tensor]:
        def forward(*args: Any, **kwargs: Any) -> Tensor:
            if args:
                return visit(index, args[0], args[1:], kwargs)
            hidden = kwargs.pop("hidden_states")
            return visit(index, hidden, (), kwargs)

        return forward

    try:
        for index, layer in enumerate(layers):
            layer.forward = stub(index)
        yield
    finally:
        for layer in layers:
            del layer.forward


class ToWork:
    """Arguments as layers are run with them: floats in float32. Layers share most arguments, and
    each is converted once."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seen: dict[int, tuple[Tensor, Tensor]] = {}

    def __call__(self, value: Any) -> Any:
        """``value``, tensors and those in tuples converted."""
        if isinstance(value, Tensor):
            if id(value) not in self.seen:
                floating = value.is_floating_point()
                made = value.to(self.device, torch.float32) if floating else value.to(self.device)
                # The original is kept too, so that its id stays its own.
                self.seen[id(value)] = (value, made)
            return self.seen[id(value)][1]
        if isinstance(value, tuple):
            return tuple(self(v) for v in value)
        return value


@contextmanager
def until_head(model: nn.Module, layers: nn.ModuleList) -> Iterator[None]:
    """Run ``model`` up to its output head, whose product with the vocabulary nobody looks at.

    A parent whose weights are left in its files has embeddings in their stored dtype and all else
    outside of the layers in float32: rows of embeddings are made float32 as they are looked up.
    """

    def stop(*_: Any) -> None:
        raise StopPassError

    def widen(_module: nn.Module, _inputs: Any, out: Any) -> Any:
        return out.float() if isinstance(out, Tensor) else out

    inside = {id(m) for m in layers.modules()}
    found: Any = getattr(model, "get_output_embeddings", None)
    head: nn.Module | None = None if found is None else found()
    outside = [m for m in model.modules() if id(m) not in inside and m is not head]
    tables = [m for m in outside if isinstance(m, nn.Embedding)]
    others = [p for m in outside if m not in tables for p in m.parameters(recurse=False)]
    handles = []
    if head is not None:
        handles.append(head.register_forward_pre_hook(stop))
    if all(p.dtype == torch.float32 for p in others):
        handles += [table.register_forward_hook(widen) for table in tables]
    try:
        with torch.no_grad(), suppress(StopPassError):
            yield
    finally:
        for handle in handles:
            handle.remove()
