"""Puts an artifact's own codes and scales into a model, in place of dequantized weights."""

from __future__ import annotations

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from evalq.artifacts.base import StoredModel
from evalq.errors import KernelError
from evalq.kernels.linear import pack_module
from evalq.kernels.packing import QuantizedWeight

__all__ = ["pack_layers", "placeholder"]


def placeholder(shape: tuple[int, int], dtype: torch.dtype) -> torch.Tensor:
    """A tensor of that shape that takes the memory of one number; it is replaced unread."""
    return torch.zeros(1, 1, dtype=dtype).expand(shape)


def _plain_linear(layer: Conv1D) -> nn.Linear:
    """GPT-2's layer as a linear layer of the same sizes and bias, its weight not there."""
    columns, out = layer.weight.shape
    linear = nn.Linear(columns, out, bias=False, device="meta")
    linear.bias = layer.bias
    return linear


def pack_layers(
    module: PreTrainedModel, stored: StoredModel, device: torch.device, dtype: torch.dtype
) -> str:
    """Replace the quantized layers by layers that run the stored codes.

    Layers whose inputs are rounded at run time have them rounded by the kernel.

    Args:
        module: built from the artifact; changed in place, on its way to ``device``.
        stored: the artifact.
        device: where the packed weights go.
        dtype: of the activations.

    Returns:
        The execution label, ``"packed:<kernel>"``.

    Raises:
        KernelError: a layer that no kernel runs here; ``module`` may then be changed in part and
            is of no use.
    """
    for name in stored.layers:
        try:
            layer = module.get_submodule(name)
        except AttributeError:
            raise KernelError(
                f"{name!r} is no layer of its own in a {type(module).__name__}: experts that share "
                "one tensor run dequantized only"
            ) from None
        if isinstance(layer, Conv1D):
            parent, _, leaf = name.rpartition(".")
            setattr(module.get_submodule(parent), leaf, _plain_linear(layer))
    by_activation: dict[int | None, dict[str, QuantizedWeight]] = {}
    for name, weight in stored.layers.items():
        by_activation.setdefault(stored.activation_bits.get(name), {})[name] = weight
    kernels: set[str] = set()
    for bits, layers in by_activation.items():
        label = pack_module(module, layers, device, dtype, activation_bits=bits)
        kernels |= set(label.removeprefix("packed:").split("+"))
    return "packed:" + "+".join(sorted(kernels))
