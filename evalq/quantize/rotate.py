"""Incoherence by rotation: a parent whose channels are mixed evenly, and that answers as before.

The residual stream is turned by one orthogonal matrix and the values of each attention head by
another, both merged into the weights (QuaRot, arXiv 2404.00456, without its online part; SliceGPT,
arXiv 2401.15024, for the norms). Outliers of single channels spread over all of them, which is what
3 and 2 bits cannot hold otherwise. Nothing is left to do at run time.

Scales of norms move into the layers that read them, so a tied output head gets a weight of its own.
Which layers read and which write the stream is found by tracing, and the rotated model's logits are
compared with the parent's: an architecture where they differ is refused.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from evalq.errors import QuantizationError
from evalq.quantize.capture import LayerCall, capture_inputs, run_layer
from evalq.quantize.folds import Fold, find_folds, norm_offset
from evalq.quantize.hadamard import rotation_matrix
from evalq.quantize.linear import decoder_layers, get_weight, is_linear, linears, weight_shape
from evalq.quantize.trace import Trace, trace_layer

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["changed_tensors", "rotated", "untie"]

_SAME_LOGITS = 1e-3
_SAME_LAYER = 1e-4
_PROBE_TOKENS = 16
_HINT = "Leave the option 'rotate' at none for this model."


def rotated(module: PreTrainedModel, head_dim: int, seed: int) -> PreTrainedModel:
    """A float32 copy of ``module`` with rotations merged; its logits are the same to 1e-3.

    Args:
        module: the parent; not changed.
        head_dim: width of an attention head, or 0 where values are not to be turned.
        seed: of the random signs.

    Raises:
        QuantizationError: an architecture in which a rotation cannot be merged, with the reason.
    """
    model: Any = copy.deepcopy(module)
    model = model.float().eval().requires_grad_(False)
    untie(model)
    name, layers = decoder_layers(model)
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    width = int(embedding.weight.shape[1])
    if head is None or head.weight.shape[1] != width:
        raise QuantizationError(
            "a rotation cannot be merged: the output head does not read the embeddings' width",
            hint=_HINT,
        )
    count = int(embedding.weight.shape[0])
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, count, (1, min(_PROBE_TOKENS, count)), generator=generator)
    device = embedding.weight.device
    before = _logits(model, tokens.to(device))
    turn = rotation_matrix(width, seed).to(device)
    stream = capture_inputs(model, layers, tokens, 1, device)
    hidden = stream.hidden[0]
    for index, layer in enumerate(layers):
        call = stream.calls[0][index]
        following = run_layer(layer, hidden, call)
        _turn_layer(layer, f"{name}.{index}", hidden, call, turn, head_dim, seed)
        hidden = following
    final = _final_norm(model, layers, tokens.to(device), width)
    _absorb_norm(final, [head])
    _turn_inputs(head, turn)
    embedding.weight.data = (embedding.weight.data.double() @ turn).float()
    after = _logits(model, tokens.to(device))
    error = float((after - before).abs().max() / before.abs().max().clamp_min(1e-30))
    if not error < _SAME_LOGITS:
        raise QuantizationError(
            f"a rotation cannot be merged into {type(module).__name__}: its logits change by "
            f"{error:.2g} of the largest",
            hint=_HINT,
        )
    turned: PreTrainedModel = model
    return turned


def untie(model: nn.Module) -> None:
    """Give the output head a weight of its own where it shares the embeddings'."""
    head = model.get_output_embeddings()  # type: ignore[operator]
    embedding = model.get_input_embeddings()  # type: ignore[operator]
    if head is not None and head.weight is embedding.weight:
        head.weight = nn.Parameter(embedding.weight.detach().clone(), requires_grad=False)


def changed_tensors(
    before: nn.Module, after: nn.Module, quantized: set[str], stored: torch.dtype
) -> dict[str, Tensor]:
    """Tensors of ``after`` that differ, but for the weights of quantized layers, by name.

    Args:
        before: the parent.
        after: the rotated copy.
        quantized: names of layers whose weights are stored otherwise.
        stored: dtype to keep them in.
    """
    old = dict(before.named_parameters(remove_duplicate=False))
    found = {}
    for name, value in after.named_parameters(remove_duplicate=False):
        layer, _, attribute = name.rpartition(".")
        if attribute == "weight" and layer in quantized:
            continue
        if not torch.equal(old[name].data.float().cpu(), value.data.float().cpu()):
            found[name] = value.data.to("cpu", stored)
    return found


def _logits(model: PreTrainedModel, tokens: Tensor) -> Tensor:
    with torch.no_grad():
        out: Tensor = model(input_ids=tokens, use_cache=False).logits
    return out.float()


def _turn_inputs(layer: nn.Module, turn: Tensor) -> None:
    weight = get_weight(layer)
    weight.copy_((weight.double() @ turn).float())


def _turn_outputs(layer: nn.Module, turn: Tensor) -> None:
    weight = get_weight(layer)
    weight.copy_((turn.T @ weight.double()).float())
    bias = getattr(layer, "bias", None)
    if isinstance(bias, Tensor):
        bias.data.copy_((bias.data.double() @ turn).float())


def _check_norm(norm: nn.Module, name: str, width: int) -> None:
    """Raise unless a turned input gives a turned output, but for the norm's own scales."""
    bias = getattr(norm, "bias", None)
    probe = torch.linspace(-1.0, 2.0, width, device=norm.weight.device)[None, :]  # type: ignore[arg-type]
    with torch.no_grad():
        moved = norm(probe + 1.0) - norm(probe)
    if isinstance(bias, Tensor) or float(moved.abs().max()) < 1e-4:
        raise QuantizationError(
            f"a rotation cannot be merged: {name} subtracts the mean or adds a bias", hint=_HINT
        )


def _absorb_norm(norm: nn.Module, readers: list[nn.Module]) -> None:
    """Move a norm's scales into the layers that read it."""
    weight: nn.Parameter = norm.weight  # type: ignore[assignment]
    offset = norm_offset(norm)
    scales = weight.data.double() + offset
    for reader in readers:
        matrix = get_weight(reader)
        matrix.copy_((matrix.double() * scales[None, :]).float())
    weight.data.fill_(1.0 - offset)


def _turn_layer(
    layer: nn.Module,
    name: str,
    hidden: Tensor,
    call: LayerCall,
    turn: Tensor,
    head_dim: int,
    seed: int,
) -> None:
    width = turn.shape[0]
    if any(p.ndim == 3 for p in layer.parameters()):
        raise QuantizationError(
            f"a rotation cannot be merged: {name} is a mixture of experts", hint=_HINT
        )
    modules = dict(linears(layer))
    trace = trace_layer(layer, hidden, call, list(modules))
    _check_parts(layer, name, trace, width)
    if head_dim:
        _turn_values(layer, trace, hidden, call, head_dim, seed)
    readers: set[str] = set()
    for block in trace.blocks:
        if block.source is None or is_linear(layer.get_submodule(block.source)):
            continue
        norm = layer.get_submodule(block.source)
        if tuple(norm.weight.shape) != (width,):  # type: ignore[arg-type]
            continue
        _check_norm(norm, f"{name}.{block.source}", width)
        consumers = [layer.get_submodule(n) for n in block.names]
        _absorb_norm(norm, consumers)
        for consumer in consumers:
            _turn_inputs(consumer, turn)
        readers.update(block.names)
    for part, module in modules.items():
        if part not in readers and weight_shape(module)[0] == width:
            _turn_outputs(module, turn)


def _check_parts(layer: nn.Module, name: str, trace: Trace, width: int) -> None:
    """Raise where a norm is read by no linear layer: it stands before the residual sum."""
    sources = {b.source for b in trace.blocks}
    for part, module in layer.named_modules():
        weight = getattr(module, "weight", None)
        if not isinstance(weight, nn.Parameter) or is_linear(module) or weight.ndim != 1:
            continue
        if tuple(weight.shape) == (width,) and part not in sources:
            raise QuantizationError(
                f"a rotation cannot be merged: {name}.{part} norms what is added to the residual "
                "stream",
                hint=_HINT,
            )


def _turn_values(
    layer: nn.Module, trace: Trace, hidden: Tensor, call: LayerCall, head_dim: int, seed: int
) -> None:
    """Turn the values of each head; kept only where the layer's output stays what it was."""
    base = run_layer(layer, hidden, call)
    size = float((base - hidden).norm())
    turn = rotation_matrix(head_dim, seed + 1).to(hidden.device)
    for fold in find_folds(layer, trace, hidden, call, head_dim, seed):
        producer = layer.get_submodule(fold.producer)
        blocks = _head_blocks(fold, head_dim) if is_linear(producer) else None
        if blocks is None:
            continue
        touched = [producer, *(layer.get_submodule(n) for n in fold.consumers)]
        saved = [copy.deepcopy(m.state_dict()) for m in touched]
        _turn_heads(producer, touched[1:], blocks, turn, head_dim)
        if float((run_layer(layer, hidden, call) - base).norm()) > _SAME_LAYER * size:
            for module, state in zip(touched, saved, strict=True):
                module.load_state_dict(state)


def _head_blocks(fold: Fold, head_dim: int) -> list[tuple[int, int]] | None:
    """``(first column, first channel)`` of each head, or ``None`` where heads are not whole."""
    rows = fold.rows.tolist()
    if len(rows) % head_dim:
        return None
    blocks = []
    for start in range(0, len(rows), head_dim):
        first = rows[start]
        if rows[start : start + head_dim] != list(range(first, first + head_dim)):
            return None
        blocks.append((start, first))
    return blocks


def _turn_heads(
    producer: nn.Module,
    consumers: list[nn.Module],
    blocks: list[tuple[int, int]],
    turn: Tensor,
    head_dim: int,
) -> None:
    weight, bias = get_weight(producer), getattr(producer, "bias", None)
    for channel in dict.fromkeys(first for _, first in blocks):
        some = slice(channel, channel + head_dim)
        weight[some] = (turn.T @ weight[some].double()).float()
        if isinstance(bias, Tensor):
            bias.data[some] = (bias.data[some].double() @ turn).float()
    for consumer in consumers:
        matrix = get_weight(consumer)
        for column, _ in blocks:
            some = slice(column, column + head_dim)
            matrix[:, some] = (matrix[:, some].double() @ turn).float()


def _final_norm(
    model: PreTrainedModel, layers: nn.ModuleList, tokens: Tensor, width: int
) -> nn.Module:
    """The norm before the output head: the last one that runs outside the decoder layers."""
    inside = {id(m) for layer in layers for m in layer.modules()}
    seen: list[nn.Module] = []
    handles = [
        m.register_forward_hook(lambda module, _inputs, _out: seen.append(module))
        for m in model.modules()
        if id(m) not in inside
        and tuple(getattr(getattr(m, "weight", None), "shape", ())) == (width,)
    ]
    try:
        _logits(model, tokens)
    finally:
        for handle in handles:
            handle.remove()
    if not seen:
        raise QuantizationError("a rotation cannot be merged: no norm before the head", hint=_HINT)
    _check_norm(seen[-1], "the last norm", width)
    return seen[-1]
