"""Scales that a layer can take in without changing what it computes.

Where a norm or a linear layer feeds linear layers directly, its channels can be divided by a scale
and the columns that read them multiplied by it. Which layers feed which is not read off a model's
name: candidates are proposed by the order and the shapes of a traced forward pass, and each is
proven by a probe: with random scales folded in, the layer must give what it gave before.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from evalq.quantize.capture import LayerCall, run_layer
from evalq.quantize.linear import get_weight, is_linear, weight_shape
from evalq.quantize.trace import Block, Trace, alike

__all__ = ["Fold", "apply_fold", "find_folds", "norm_offset"]

_SAME = 2e-4
_CHANGED = 1e-2


@dataclass(frozen=True, slots=True, eq=False)
class Fold:
    """One place where scales can be folded.

    Args:
        producer: name of the norm or linear layer whose channels are divided.
        consumers: names of the layers whose columns are multiplied: linear ones, and behind a norm
            also routers of mixtures, which are modules of their own with a matrix.
        rows: int64 ``[in]``: the producer's channel that each column reads. Several columns may
            read one channel (grouped-query attention).
        channels: output channels of the producer.
    """

    producer: str
    consumers: tuple[str, ...]
    rows: Tensor
    channels: int


def _vectors(module: nn.Module) -> list[nn.Parameter]:
    """The parameters with one value an output channel: a norm's weight and any bias."""
    found = []
    if not is_linear(module):
        found.append(module.weight)
    bias = getattr(module, "bias", None)
    if isinstance(bias, nn.Parameter):
        found.append(bias)
    return found  # type: ignore[return-value]


def norm_offset(module: nn.Module) -> float:
    """What a norm adds to its weight: Gemma's norms multiply by ``1 + weight``, others by it."""
    weight: nn.Parameter = module.weight  # type: ignore[assignment]
    saved = weight.data.clone()
    probe = torch.linspace(-1.0, 1.0, saved.numel(), device=saved.device)[None, :]
    bias = getattr(module, "bias", None)
    with torch.no_grad():
        weight.data.zero_()
        without = module(probe)
        weight.data.copy_(saved)
    if isinstance(bias, Tensor):
        without = without - bias
    return 1.0 if float(without.abs().max()) > 1e-3 else 0.0


def _divide(module: nn.Module, scales: Tensor, stored: torch.dtype) -> Tensor:
    """Divide the output channels by ``scales``; returns the scales as rounding left them."""
    with torch.no_grad():
        if is_linear(module):
            get_weight(module).div_(scales[:, None])
            exact = scales
        else:
            offset = norm_offset(module)
            weight: nn.Parameter = module.weight  # type: ignore[assignment]
            before = weight.data + offset
            after = (before / scales - offset).to(stored).to(weight.dtype)
            # The norm is stored in few bits: the columns take exactly what it lost.
            usable = (after + offset != 0) & (before != 0)
            exact = torch.where(usable, before / (after + offset), torch.ones_like(scales))
            weight.data.copy_(torch.where(usable, after, weight.data))
        bias = getattr(module, "bias", None)
        if isinstance(bias, Tensor):
            bias.data.copy_((bias.data / exact).to(stored).to(bias.dtype))
    return exact


def apply_fold(
    layer: nn.Module, fold: Fold, scales: Tensor, stored: torch.dtype = torch.float32
) -> Tensor:
    """Fold ``scales`` into ``layer`` in place.

    Args:
        layer: holds the fold's modules, in float32.
        fold: where.
        scales: positive, float32 ``[fold.channels]``.
        stored: dtype that norms and biases are stored in; they are rounded to it here.

    Returns:
        What the columns were multiplied by, ``[in]``: ``scales[fold.rows]`` but for that rounding.
    """
    exact = _divide(layer.get_submodule(fold.producer), scales, stored)
    columns = exact[fold.rows]
    for name in fold.consumers:
        get_weight(layer.get_submodule(name)).mul_(columns[None, :])
    return columns


def find_folds(
    layer: nn.Module, trace: Trace, hidden: Tensor, call: LayerCall, head_dim: int, seed: int
) -> list[Fold]:
    """The folds of a layer, in the order of its forward pass; each is proven by a probe.

    Args:
        layer: a decoder layer in float32; unchanged on return.
        trace: of that layer.
        hidden: a small batch for it, ``[1, tokens, width]``.
        call: the rest of its arguments, for that batch.
        head_dim: width of an attention head, or 0 if unknown.
        seed: of the probe's scales.

    Returns:
        The folds. Experts that no token of ``hidden`` reached get what was proven for another of
        their mixture, since all run the same code.
    """
    base = run_layer(layer, hidden, call)
    generator = torch.Generator().manual_seed(seed)
    found: dict[int, Fold] = {}
    folded: set[str] = set()
    for index, block in enumerate(trace.blocks):
        if folded.issuperset(block.names):
            continue
        earlier = [name for b in trace.blocks[:index] for name in b.names]
        for fold in _candidates(layer, block, trace, earlier, head_dim):
            scales = torch.ones(fold.channels, device=hidden.device)
            drawn = torch.exp2(2 * torch.rand(fold.channels, generator=generator) - 1)
            scales[fold.rows] = drawn.to(hidden.device)[fold.rows]
            if _proven(layer, fold, scales, hidden, call, base):
                found[index] = fold
                folded.update(fold.consumers)
                break
    found |= _inside_other_experts(layer, trace, found, folded)
    return [found[index] for index in sorted(found)]


def _inside_other_experts(
    layer: nn.Module, trace: Trace, found: Mapping[int, Fold], folded: set[str]
) -> dict[int, Fold]:
    """What was proven inside one expert, for those that no token of the probe reached."""
    names = [name for block in trace.blocks for name in block.names]
    proven = {tuple(alike(c) for c in fold.consumers): fold for fold in found.values()}
    more = {}
    for index, block in enumerate(trace.blocks):
        fold = proven.get(tuple(alike(name) for name in block.names))
        if fold is None or folded.issuperset(block.names) or alike(fold.producer) == fold.producer:
            continue
        own = [
            name
            for name in names
            if alike(name) == alike(fold.producer) and not _other_expert(name, block.names[0])
        ]
        shapes = [weight_shape(layer.get_submodule(n)) for n in (*own, *block.names)]
        proven_names = (fold.producer, *fold.consumers)
        if shapes == [weight_shape(layer.get_submodule(n)) for n in proven_names]:
            more[index] = Fold(own[0], block.names, fold.rows, fold.channels)
    return more


def _candidates(
    layer: nn.Module, block: Block, trace: Trace, earlier: Sequence[str], head_dim: int
) -> Iterator[Fold]:
    consumers = block.names
    width = weight_shape(layer.get_submodule(consumers[0]))[1]
    device = get_weight(layer.get_submodule(consumers[0])).device
    identity = torch.arange(width, device=device)
    norms = [norm for norm, readers in trace.readers.items() if consumers[0] in readers]
    for norm in norms:
        weight = layer.get_submodule(norm).weight
        if not isinstance(weight, nn.Parameter) or tuple(weight.shape) != (width,):
            continue
        # All that read the norm at once: a mixture's router, its experts and what they share.
        everyone = (*consumers, *(n for n in trace.readers[norm] if n not in consumers))
        yield Fold(norm, everyone, identity, width)
    if norms or block.source in trace.readers:
        return
    for name in reversed(earlier):
        if _other_expert(name, consumers[0]):
            continue
        channels = weight_shape(layer.get_submodule(name))[0]
        for rows in _row_maps(channels, width, head_dim, identity):
            yield Fold(name, consumers, rows, channels)


def _other_expert(name: str, other: str) -> bool:
    """Whether two names are of different experts of one mixture: ``a.0.b`` and ``a.1.c``."""
    for mine, its in zip(name.split("."), other.split("."), strict=False):
        if mine != its:
            return mine.isdigit() and its.isdigit()
    return False


def _row_maps(channels: int, width: int, head_dim: int, identity: Tensor) -> Iterator[Tensor]:
    """Ways in which ``width`` columns can read ``channels`` outputs of a linear layer."""
    if channels == width:
        yield identity
    if channels == 2 * width:
        yield identity + width
        yield identity
    if not head_dim or width % head_dim:
        return
    head, inner = identity // head_dim, identity % head_dim
    # Values alone (grouped-query attention), and values behind queries and keys.
    for values, offset in ((channels, 0), ((channels - width) // 2, (channels + width) // 2)):
        if 0 < values <= width and width % values == 0 and values % head_dim == 0:
            if (values, offset) == (width, 0):
                continue
            yield offset + (head // (width // values)) * head_dim + inner
    if channels == 3 * width:
        yield head * 3 * head_dim + 2 * head_dim + inner


def _proven(
    layer: nn.Module, fold: Fold, scales: Tensor, hidden: Tensor, call: LayerCall, base: Tensor
) -> bool:
    """Whether scaled columns change the output, and divided channels undo that."""
    producer = layer.get_submodule(fold.producer)
    consumers = [layer.get_submodule(name) for name in fold.consumers]
    touched = [get_weight(m) for m in consumers]
    touched += [p.data for p in _vectors(producer)]
    if is_linear(producer):
        touched.append(get_weight(producer))
    saved = [t.clone() for t in touched]
    size = float((base - hidden).norm())
    try:
        for weight in touched[: len(consumers)]:
            weight.mul_(scales[fold.rows][None, :])
        changed = float((run_layer(layer, hidden, call) - base).norm())
        _divide(producer, scales, torch.float32)
        left = float((run_layer(layer, hidden, call) - base).norm())
    finally:
        for tensor, value in zip(touched, saved, strict=True):
            tensor.copy_(value)
    return changed > _CHANGED * size and left < _SAME * size
