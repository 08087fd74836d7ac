"""Which layers of a model are quantized, found by looking at the model and not by its name."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from evalq.errors import NonFiniteError, QuantizationError
from evalq.kernels.packing import group_size
from evalq.schema import PerGroup, WeightScheme

__all__ = [
    "SMALLEST_OUTPUT",
    "Expert",
    "check_finite",
    "check_widths",
    "decoder_layers",
    "get_weight",
    "is_linear",
    "linears",
    "set_weight",
    "split_experts",
    "weight_shape",
]

SMALLEST_OUTPUT = 16
"""Fewest outputs of a layer that is quantized: a kernel's tile. Fewer are gates that choose."""
_FUSED = ("gate_up_proj", "up_proj", "down_proj")


def is_linear(module: nn.Module) -> bool:
    """Whether the module is a matrix product that can be quantized."""
    return isinstance(module, (nn.Linear, Conv1D))


def weight_shape(module: nn.Module) -> tuple[int, int]:
    """``(out, in)`` of a linear layer; Conv1D stores its weight the other way round."""
    rows, columns = module.weight.shape  # type: ignore[misc]
    return (int(columns), int(rows)) if isinstance(module, Conv1D) else (int(rows), int(columns))


def get_weight(module: nn.Module) -> Tensor:
    """The weight ``[out, in]`` of a linear layer (a view)."""
    weight: Tensor = module.weight.data  # type: ignore[assignment]
    return weight.T if isinstance(module, Conv1D) else weight


def set_weight(module: nn.Module, weight: Tensor) -> None:
    """Write ``weight`` ``[out, in]`` into the layer's own storage."""
    get_weight(module).copy_(weight)


def decoder_layers(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """Name and list of the decoder layers: the longest outermost list of one class with linears.

    Raises:
        QuantizationError: there is none.
    """
    best: tuple[str, nn.ModuleList] | None = None
    for name, module in model.named_modules():
        if not isinstance(module, nn.ModuleList) or not len(module):
            continue
        if best is not None and name.startswith(f"{best[0]}."):
            continue
        if len({type(layer) for layer in module}) != 1:
            continue
        if not any(is_linear(m) for m in module[0].modules()):
            continue
        if best is None or len(module) > len(best[1]):
            best = (name, module)
    if best is None:
        raise QuantizationError(
            f"no decoder layers were found in {type(model).__name__}",
            hint="evalq quantizes models that keep linear layers in one list of equal layers.",
        )
    return best


def linears(layer: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Linear layers inside a decoder layer, by name."""
    for name, module in layer.named_modules():
        if is_linear(module):
            yield name, module


def check_widths(shapes: Sequence[tuple[str, int]], scheme: WeightScheme) -> None:
    """Whether the groups divide every width.

    compressed-tensors can store no group that is shorter than the others, so neither does evalq.

    Args:
        shapes: name and input width of each layer.
        scheme: what is asked for.

    Raises:
        QuantizationError: some width is not divided; the sizes that would do are given.
    """
    if not isinstance(scheme.granularity, PerGroup):
        return
    bad = [(n, width) for n, width in shapes if width % group_size(scheme, width)]
    if not bad:
        return
    widths = sorted({width for _, width in shapes})
    fits = [str(s) for s in (128, 64, 32, 16) if all(w % s == 0 for w in widths)]
    name, width = bad[0]
    more = f" (and {len(bad) - 1} layers more)" if len(bad) > 1 else ""
    choice = f"Groups of {' or '.join(fits)} fit this model; so" if fits else "So"
    raise QuantizationError(
        f"groups of {scheme.granularity.size} do not divide the {width} columns of {name}{more}",
        hint=f"{choice} does 'channel', one scale a row.",
    )


def check_finite(name: str, tensor: Tensor) -> None:
    """Raise unless all of ``tensor`` is finite.

    Raises:
        NonFiniteError: naming ``name``.
    """
    if not bool(torch.isfinite(tensor).all()):
        bad = int((~torch.isfinite(tensor)).sum())
        raise NonFiniteError(
            f"{name} holds {bad} NaN or infinite values",
            hint="The parent itself is broken there: compare its files with their source.",
        )


class Expert(nn.Module):
    """One expert of a mixture as linear layers of its own."""

    gate_up_proj: nn.Linear
    down_proj: nn.Linear

    def __init__(self, weights: dict[str, Tensor]) -> None:
        super().__init__()
        for name, weight in weights.items():
            layer = nn.Linear(
                weight.shape[1], weight.shape[0], bias=False, device="meta", dtype=weight.dtype
            )
            layer.weight = nn.Parameter(weight.clone(), requires_grad=False)
            self.add_module(name, layer)


class _SplitExperts(nn.ModuleList):
    """The experts of a mixture one by one, in place of the module that holds them stacked."""

    act_fn: Callable[[Tensor], Tensor]

    def __init__(self, fused: nn.Module) -> None:
        names = [n for n in _FUSED if isinstance(getattr(fused, n, None), nn.Parameter)]
        count = int(getattr(fused, names[0]).shape[0])
        super().__init__(
            Expert({n: getattr(fused, n).data[e] for n in names}) for e in range(count)
        )
        self.act_fn = cast("Callable[[Tensor], Tensor]", fused.act_fn)

    def forward(self, hidden: Tensor, top_index: Tensor, top_weights: Tensor) -> Tensor:
        """As the stacked module's own: ``hidden`` ``[tokens, in]``, the others ``[tokens, k]``."""
        out = torch.zeros_like(hidden)
        for number, expert in enumerate(cast("Iterator[Expert]", self)):
            tokens, place = torch.where(top_index == number)
            if not tokens.numel():
                continue
            gate, up = expert.gate_up_proj(hidden[tokens]).chunk(2, dim=-1)
            answer = expert.down_proj(self.act_fn(gate) * up)
            answer = answer * top_weights[tokens, place, None]
            out.index_add_(0, tokens, answer.to(out.dtype))
        return out


def split_experts(layer: nn.Module, skips: Callable[[str], bool] | None = None) -> list[str]:
    """Replace stacked experts (three-dimensional parameters) in ``layer`` by linear layers.

    Args:
        layer: changed.
        skips: whether a parameter of that name stays as it is; experts all of whose parameters do
            stay stacked.

    Returns:
        Names of the modules replaced; their parts are then ``<name>.<expert>.gate_up_proj`` and
        ``<name>.<expert>.down_proj``.

    Raises:
        QuantizationError: stacked weights in a layout that is not known here.
    """
    replaced = []
    for name, module in list(layer.named_modules()):
        stacked = [n for n, p in module.named_parameters(recurse=False) if p.ndim == 3]
        if not stacked or (skips is not None and all(skips(f"{name}.{n}") for n in stacked)):
            continue
        if set(stacked) != {"gate_up_proj", "down_proj"} or not hasattr(module, "act_fn"):
            raise QuantizationError(
                f"{name} ({type(module).__name__}) stacks its experts in a way evalq does not know",
                hint="Name it in the option 'skip' to leave it as it is.",
            )
        parent = layer.get_submodule(name.rpartition(".")[0])
        setattr(parent, name.rpartition(".")[2], _SplitExperts(module))
        replaced.append(name)
    return replaced
