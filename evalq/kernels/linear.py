"""A linear layer that runs a packed weight, and the hook that puts it into a model."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from evalq.errors import KernelError
from evalq.kernels.base import PackedWeight
from evalq.kernels.op import pack, quantized_matmul
from evalq.kernels.packing import QuantizedWeight

__all__ = ["QuantizedLinear", "pack_module"]


class QuantizedLinear(nn.Module):
    """``y = x @ dequantize(weight).T + bias``, by the kernel that packed the weight.

    Inference only: no gradient passes, and the weight does not move with ``to``.

    Args:
        packed: the weight, from ``op.pack``.
        bias: ``[out]`` or ``None``; it is moved to the weight's device and dtype.

    Raises:
        KernelError: a bias of another size, or no floating point tensor.
    """

    def __init__(self, packed: PackedWeight, bias: Tensor | None = None) -> None:
        super().__init__()
        self.packed = packed
        self.out_features, self.in_features = packed.shape
        if bias is not None and (
            tuple(bias.shape) != (packed.shape[0],) or not bias.is_floating_point()
        ):
            raise KernelError(
                f"a bias {tuple(bias.shape)} of {bias.dtype} does not fit a weight with "
                f"{packed.shape[0]} outputs"
            )
        self.bias: Tensor | None
        moved = None if bias is None else bias.detach().to(packed.device, packed.dtype)
        self.register_buffer("bias", moved)

    @classmethod
    def build(
        cls,
        weight: QuantizedWeight,
        bias: Tensor | None,
        device: torch.device | str,
        dtype: torch.dtype,
        kernel: str | None = None,
        activation_bits: int | None = None,
    ) -> QuantizedLinear:
        """From a stored weight; see ``op.pack`` for the arguments and the errors."""
        return cls(pack(weight, device, dtype, kernel, activation_bits), bias)

    def forward(self, x: Tensor) -> Tensor:
        """``[..., in]`` to ``[..., out]``, both of the packed dtype."""
        result = quantized_matmul(x, self.packed)
        return result if self.bias is None else result + self.bias

    def extra_repr(self) -> str:
        """What a printed model shows of the layer."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"scheme={self.packed.scheme}, kernel={self.packed.kernel}"
        )


def pack_module(
    module: nn.Module,
    layers: Mapping[str, QuantizedWeight],
    device: torch.device | str,
    dtype: torch.dtype,
    kernel: str | None = None,
    activation_bits: int | None = None,
) -> str:
    """Replace linear layers of a model by layers that run the stored weights as they are.

    All weights are packed before the first layer is replaced: an error leaves the module as it was.

    Args:
        module: a model; changed in place. The replaced layers' own weights are not read, so they
            may be on the meta device; their biases are.
        layers: stored weights by the module name of their ``nn.Linear``.
        device: where the packed weights go.
        dtype: of the activations.
        kernel: one kernel by name for all layers; by default each layer's is chosen.
        activation_bits: 8 for W8A8.

    Returns:
        The execution label ``"packed:<kernel>"``; the kernels' names joined by ``+`` where layers
        run on several.

    Raises:
        KernelError: nothing to pack, a name that is no linear layer of this shape, or a weight
            that no kernel runs.
    """
    if not layers:
        raise KernelError("there is no quantized layer to pack")
    fresh: dict[str, QuantizedLinear] = {}
    for name, weight in layers.items():
        try:
            old = module.get_submodule(name)
        except AttributeError:
            old = None
        if not isinstance(old, nn.Linear) or (old.out_features, old.in_features) != weight.shape:
            raise KernelError(
                f"{name!r} is no linear layer of {weight.shape[0]} x {weight.shape[1]} here: {old}"
            )
        try:
            fresh[name] = QuantizedLinear.build(
                weight, old.bias, device, dtype, kernel, activation_bits
            )
        except KernelError as error:
            raise KernelError(f"layer {name!r}: {error.message}", hint=error.hint) from error
    for name, layer in fresh.items():
        parent, _, leaf = name.rpartition(".")
        setattr(module.get_submodule(parent), leaf, layer)
    return "packed:" + "+".join(sorted({layer.packed.kernel for layer in fresh.values()}))
