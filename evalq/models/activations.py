"""Rounds the inputs of linear layers to few bits at run time, one scale a token."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from evalq.artifacts.naming import EXPERT, checkpoint_tensors
from evalq.errors import ArtifactError
from evalq.kernels.tokens import round_tokens
from evalq.quantize.linear import split_experts

__all__ = ["quantize_inputs", "round_tokens"]


def quantize_inputs(module: nn.Module, bits: Mapping[str, int]) -> str:
    """Make linear layers round their inputs; returns the sentence that reports say of it.

    Args:
        module: is changed in place.
        bits: width by layer name.

    Raises:
        ArtifactError: a name that is no layer of ``module``.
    """
    for name, width in _of_modules(module, bits).items():
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


def _of_modules(module: nn.Module, bits: Mapping[str, int]) -> dict[str, int]:
    """Widths by the names that layers have in ``module``, whose experts become layers of their own.

    Artifacts name one matrix an expert and projection; transformers stacks them. An expert's gate
    and up read one input, so they have one width or none.

    Raises:
        ArtifactError: experts that do not all have one width.
    """
    experts = {name: width for name, width in bits.items() if EXPERT.search(name)}
    found = {name: width for name, width in bits.items() if name not in experts}
    if not experts:
        return found
    state = module.state_dict()
    for key in [k for k, tensor in state.items() if tensor.ndim == 3]:
        names = checkpoint_tensors(module, key)
        widths = {experts.pop(name, None) for name in names}
        home, _, part = key.rpartition(".")
        if len(widths) != 1 or None in widths:
            raise ArtifactError(f"the artifact does not quantize the inputs of all of {key} alike")
        for number in range(state[key].shape[0]):
            found[f"{home}.{number}.{part}"] = next(w for w in widths if w is not None)
    split_experts(module)
    return found | experts


def _hook(bits: int) -> Any:
    def rounded(layer: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return (round_tokens(inputs[0], bits), *inputs[1:])

    return rounded
