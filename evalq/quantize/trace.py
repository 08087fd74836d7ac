"""What a decoder layer does: which of its modules reads which tensor, seen in one forward pass."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from evalq.quantize.capture import LayerCall, run_layer

__all__ = ["Block", "Trace", "alike", "trace_layer"]

_ROWS_LOOKED_AT = 2
_COLUMNS_LOOKED_AT = 8


@dataclass(frozen=True, slots=True)
class Block:
    """Linear layers that read the same tensor, and so share one Hessian.

    Args:
        names: of the linear layers.
        source: the module whose output they read as it is, or ``None``.
    """

    names: tuple[str, ...]
    source: str | None


@dataclass(frozen=True, slots=True)
class Trace:
    """What a decoder layer does, in order.

    Args:
        stages: blocks that can be looked at in one pass, in the order of the forward pass. A stage
            is one block, but for the experts of a mixture, which go together.
        readers: by the name of a norm, all modules with a matrix that read tokens of its output,
            be it all of them or, as experts do, some; routers are among them. What is like a
            reader but for a number in its name (an expert that no token reached) is one too.
    """

    stages: tuple[tuple[Block, ...], ...]
    readers: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def blocks(self) -> tuple[Block, ...]:
        """All blocks in order."""
        return tuple(block for stage in self.stages for block in stage)


def alike(name: str) -> str:
    """The name with its numbers made equal: experts differ by one alone, as in ``a.0.b``."""
    return re.sub(r"(?<=\.)\d+(?=\.)", "*", name)


def _key(tensor: Tensor) -> tuple[int, int]:
    return tensor.data_ptr(), tensor.numel()


def _own(module: nn.Module, dimensions: int) -> Tensor | None:
    """The module's own ``weight`` if it has so many dimensions."""
    weight = dict(module.named_parameters(recurse=False)).get("weight")
    return weight if weight is not None and weight.ndim == dimensions else None


def trace_layer(layer: nn.Module, hidden: Tensor, call: LayerCall, names: Sequence[str]) -> Trace:
    """Run ``layer`` once and see which linear layer reads what.

    Args:
        layer: a decoder layer.
        hidden: one batch for it.
        call: the rest of its arguments.
        names: the linear layers that are to be quantized.
    """
    wanted = set(names)
    order: list[tuple[tuple[int, int], str]] = []
    made: dict[tuple[int, int], str] = {}
    normed: dict[str, Tensor] = {}
    reads: dict[str, Tensor] = {}
    alive: list[Tensor] = []

    def hook(name: str) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
        def call_(module: nn.Module, inputs: tuple[Any, ...], out: Any) -> None:
            if inputs and isinstance(inputs[0], Tensor):
                if name in wanted:
                    alive.append(inputs[0])
                    order.append((_key(inputs[0]), name))
                if name in wanted or _own(module, 2) is not None:
                    reads[name] = inputs[0]
            # Only modules with weights: an idle dropout hands on the tensor that it was given.
            if isinstance(out, Tensor) and isinstance(getattr(module, "weight", None), Tensor):
                alive.append(out)
                made[_key(out)] = name
                if _own(module, 1) is not None:
                    normed[name] = out

        return call_

    handles = [m.register_forward_hook(hook(n)) for n, m in layer.named_modules() if n]
    try:
        run_layer(layer, hidden, call)
    finally:
        for handle in handles:
            handle.remove()
    grouped: dict[tuple[int, int], list[str]] = {}
    for key, name in order:
        grouped.setdefault(key, []).append(name)
    seen = {name for _, name in order}
    blocks = [Block(tuple(members), made.get(key)) for key, members in grouped.items()]
    blocks += [Block((name,), None) for name in names if name not in seen]
    stages: dict[tuple[str, ...], list[Block]] = {}
    for block in blocks:
        stages.setdefault(tuple(alike(name) for name in block.names), []).append(block)
    readers = {norm: _readers_of(out, reads, names) for norm, out in normed.items()}
    return Trace(tuple(tuple(stage) for stage in stages.values()), readers)


def _readers_of(out: Tensor, reads: Mapping[str, Tensor], names: Sequence[str]) -> tuple[str, ...]:
    """Modules that read rows of ``out`` ``[..., width]``, and those that are like them."""
    rows = out.reshape(-1, out.shape[-1])
    found = [name for name, inputs in reads.items() if _are_rows(inputs, rows)]
    like = {alike(name) for name in found}
    return (*found, *(n for n in names if n not in found and alike(n) in like))


def _are_rows(inputs: Tensor, rows: Tensor) -> bool:
    """Whether ``inputs`` ``[..., width]`` are rows of ``rows`` ``[tokens, width]``, bit by bit.

    A few are looked at: enough to propose a fold, which is proven afterwards.
    """
    if inputs.shape[-1] != rows.shape[-1] or not inputs.numel():
        return False
    some = inputs.reshape(-1, inputs.shape[-1])[:_ROWS_LOOKED_AT]
    for row in some:
        near = rows[(rows[:, :_COLUMNS_LOOKED_AT] == row[:_COLUMNS_LOOKED_AT]).all(1)]
        if not bool(torch.eq(near, row).all(1).any()):
            return False
    return True
