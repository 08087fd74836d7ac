"""Rounds the inputs of linear layers to few bits at run time, one scale a token."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from evalq.errors import ArtifactError
from evalq.kernels.tokens import round_tokens

__all__ = ["quantize_inputs", "round_tokens"]


def quantize_inputs(module: nn.Module, bits: Mapping[str, int]) -> str:
    """Make linear layers round their inputs; returns the sentence that reports say of it.

    Args:
        module: is changed in place.
        bits: width by layer name.

    Raises:
        ArtifactError: a name that is no layer of ``module``.
    """
    for name, width in bits.items():
        try:
            layer = module.get_submodule(name)
        except AttributeError:
            raise ArtifactError(
                f"the artifact quantizes the inputs of {name!r}, which the model does not have"
            ) from None
        layer.register_forward_pre_hook(_hook(width))
    widths = " and ".join(str(w) for w in sorted(set(bits.values())))
    return (
        f"The inputs of {len(bits)} layers are rounded to {widths} bits, one scale a token, as the "
        "format's own kernels do; the products are taken in floating point."
    )


def _hook(bits: int) -> Any:
    def rounded(layer: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return (round_tokens(inputs[0], bits), *inputs[1:])

    return rounded
