"""Running a model one decoder layer at a time over calibration windows."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from evalq.errors import QuantizationError
from evalq.quantize.linear import check_finite, is_linear
from evalq.quantize.skeleton import StopPassError, ToWork, identity_layers, until_head

__all__ = [
    "LayerCall",
    "Replay",
    "Stream",
    "advance",
    "advance_parent",
    "capture_inputs",
    "head_inputs",
    "observe",
    "run_layer",
]


@dataclass(frozen=True, slots=True)
class LayerCall:
    """All that a decoder layer is called with besides the hidden states."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]


@dataclass(slots=True)
class Stream:
    """Hidden states on their way through the model.

    Args:
        hidden: per batch ``[samples, length, width]``, float32.
        calls: per batch, per layer.
        products: dtype of the layers' matrix products.
        parent: per batch what the parent's own layers give, where a method looks at it.
    """

    hidden: list[Tensor]
    calls: list[list[LayerCall]]
    products: torch.dtype = torch.float32
    parent: list[Tensor] | None = None

    @property
    def states(self) -> list[Tensor]:
        """All that is on its way, in one list: the parent's hidden states behind the variant's."""
        return [*self.hidden, *(self.parent or [])]

    def take_up(self, states: list[Tensor]) -> None:
        """Go on from what :attr:`states` was."""
        batches = len(self.hidden)
        self.hidden = states[:batches]
        if self.parent is not None:
            self.parent = states[batches:]

    @property
    def tokens(self) -> int:
        """Tokens in all batches."""
        return sum(h.shape[0] * h.shape[1] for h in self.hidden)


def capture_inputs(
    model: nn.Module, layers: nn.ModuleList, tokens: Tensor, batch: int, device: torch.device
) -> Stream:
    """What the first decoder layer gets, and how every layer is called, for all windows.

    Args:
        model: the causal LM, on any device; it is run with its decoder layers left out.
        layers: its decoder layers.
        tokens: int64 ``[samples, length]``.
        batch: windows a batch.
        device: where layers will be run.

    Raises:
        QuantizationError: the model does not call its layers one after another.
        NonFiniteError: the embeddings give NaN or infinities.
    """
    stream = Stream([], [])
    home = model.get_input_embeddings().weight.device  # type: ignore[operator]
    for part in torch.split(tokens, batch):
        to_work = ToWork(device)
        calls: dict[int, LayerCall] = {}
        first: list[Tensor] = []

        def visit(
            index: int,
            hidden: Tensor,
            args: tuple[Any, ...],
            kwargs: dict[str, Any],
            calls: dict[int, LayerCall] = calls,
            first: list[Tensor] = first,
            to_work: ToWork = to_work,
        ) -> Tensor:
            if index == 0:
                first.append(hidden.detach().to(device, torch.float32))
            calls[index] = LayerCall(to_work(args), {k: to_work(v) for k, v in kwargs.items()})
            return hidden

        with until_head(model, layers), identity_layers(layers, visit):
            model(input_ids=part.to(home), use_cache=False)
        if len(first) != 1 or sorted(calls) != list(range(len(layers))):
            raise QuantizationError(
                f"{type(model).__name__} does not run its decoder layers once each, in order"
            )
        check_finite("the input of the first decoder layer", first[0])
        stream.hidden.append(first[0])
        stream.calls.append([calls[i] for i in range(len(layers))])
    return stream


def head_inputs(
    model: nn.Module, layers: nn.ModuleList, tokens: Tensor, hidden: Tensor, head: nn.Module
) -> Tensor:
    """What the output head gets when the last decoder layer gives ``hidden``: ``[tokens, in]``."""
    seen: list[Tensor] = []
    last = len(layers) - 1
    home = model.get_input_embeddings().weight.device  # type: ignore[operator]

    def visit(index: int, value: Tensor, args: Any, kwargs: Any) -> Tensor:
        return hidden.to(value.device, value.dtype) if index == last else value

    def look(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen.append(inputs[0].detach().to(hidden.device, torch.float32))
        raise StopPassError

    handle = head.register_forward_pre_hook(look)
    try:
        with until_head(model, layers), identity_layers(layers, visit):
            model(input_ids=tokens.to(home), use_cache=False)
    finally:
        handle.remove()
    if not seen:
        raise QuantizationError("the output head is not called by the model")
    return seen[0].reshape(-1, seen[0].shape[-1])


def run_layer(
    layer: nn.Module, hidden: Tensor, call: LayerCall, products: torch.dtype = torch.float32
) -> Tensor:
    """The layer's output, float32 ``[samples, length, width]``.

    Args:
        layer: a decoder layer in float32.
        hidden: its input, float32.
        call: the rest of its arguments.
        products: dtype of its matrix products; norms and sums stay in float32.

    Raises:
        QuantizationError: the layer returns something else than hidden states.
    """
    low = products != torch.float32
    with torch.no_grad(), torch.autocast(hidden.device.type, products, enabled=low):
        out = layer(hidden, *call.args, **copy.copy(dict(call.kwargs)))
    if not isinstance(out, Tensor) or out.shape != hidden.shape:
        raise QuantizationError(f"{type(layer).__name__} does not return its hidden states")
    return out.float()


@contextmanager
def _watching(
    modules: Mapping[str, nn.Module],
    look: Callable[[str, Tensor], None],
    stop_after: Sequence[str] = (),
) -> Iterator[None]:
    """Call ``look(name, input)`` before each of ``modules`` runs.

    Args:
        modules: to be watched.
        look: gets the input as the module does.
        stop_after: once all of these have been seen, the pass is ended by ``StopPassError``.
    """
    waiting: set[str] = set()

    def hook(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def call(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            look(name, inputs[0].detach())
            waiting.discard(name)
            if stop_after and not waiting:
                waiting.update(stop_after)
                raise StopPassError

        return call

    waiting.update(stop_after)
    handles = [m.register_forward_pre_hook(hook(n)) for n, m in modules.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class Replay:
    """Outputs of parts of a layer that will not change any more, so that they run once a batch."""

    def __init__(self) -> None:
        self.batch = 0
        self.settled: set[str] = set()

    def settle(self, name: str, module: nn.Module) -> None:
        """From now on the module answers a batch that it has answered before from memory."""
        original = module.forward
        kept: dict[int, Any] = {}

        def forward(*args: Any, **kwargs: Any) -> Any:
            if self.batch not in kept:
                kept[self.batch] = original(*args, **kwargs)
            return kept[self.batch]

        module.forward = forward
        self.settled.add(name)

    def release(self, layer: nn.Module) -> None:
        """Let every module of ``layer`` that was settled run again."""
        for name in self.settled:
            del layer.get_submodule(name).forward
        self.settled.clear()

    def settle_finished(self, layer: nn.Module, finished: set[str]) -> None:
        """Settle every child of ``layer`` all of whose linear layers are in ``finished``."""
        for name, child in layer.named_children():
            inside = {
                f"{name}.{n}" if n else name for n, m in child.named_modules() if is_linear(m)
            }
            if inside and inside <= finished and name not in self.settled:
                self.settle(name, child)


def observe(
    layer: nn.Module,
    stream: Stream,
    index: int,
    modules: Mapping[str, nn.Module],
    look: Callable[[str, Tensor], None],
    replay: Replay,
) -> None:
    """Run all batches through ``layer`` only as far as all of ``modules`` have been seen.

    Experts that get no token of a batch are never seen, so their layers run to the end.
    """
    names = tuple(modules)
    for number, hidden in enumerate(stream.hidden):
        replay.batch = number
        with _watching(modules, look, names):
            try:
                run_layer(layer, hidden, stream.calls[number][index], stream.products)
            except StopPassError:
                continue


def advance_parent(layer: nn.Module, name: str, stream: Stream, index: int) -> list[Tensor]:
    """Replace the parent's hidden states, which the stream must have, by the layer's outputs.

    Raises:
        NonFiniteError: a NaN or an infinity in them.
    """
    assert stream.parent is not None
    for number, hidden in enumerate(stream.parent):
        call = stream.calls[number][index]
        stream.parent[number] = run_layer(layer, hidden, call, stream.products)
        check_finite(f"the output of {name}", stream.parent[number])
    return stream.parent


def advance(layer: nn.Module, name: str, stream: Stream, index: int, replay: Replay) -> None:
    """Replace the hidden states by the layer's outputs.

    Raises:
        NonFiniteError: a NaN or an infinity in them.
    """
    for number, hidden in enumerate(stream.hidden):
        replay.batch = number
        call = stream.calls[number][index]
        stream.hidden[number] = run_layer(layer, hidden, call, stream.products)
        check_finite(f"the output of {name}", stream.hidden[number])
