"""The AWQ format (GEMM version): 4 bits, packed along the outputs in an interleaved order."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from evalq.artifacts.base import StoredModel
from evalq.artifacts.files import WeightFiles
from evalq.artifacts.gptq import half_scales, one_scheme
from evalq.errors import ArtifactError, EvalqError, PlanError
from evalq.kernels.bitpack import pack_awq, unpack_awq
from evalq.kernels.packing import QuantizedWeight
from evalq.schema import PerChannel, PerGroup, WeightScheme

__all__ = ["Awq"]

_PARTS = ("qweight", "qzeros", "scales")


class Awq:
    """Writes and reads ``quant_method: awq``, ``version: gemm``."""

    name = "awq"
    scale_dtype: str | None = "float16"

    def refuse(
        self, layer: str, scheme: WeightScheme, shape: tuple[int, int], activation_bits: int | None
    ) -> None:
        """Raise where the format cannot hold that layer.

        Raises:
            PlanError: other than 4 bits, quantized activations, outputs that are no multiple of 8,
                or inputs that the group size does not divide.
        """
        if scheme.bits != 4 or activation_bits is not None:
            raise PlanError(
                "AWQ files hold 4-bit weights and no quantized activations",
                hint="compressed-tensors holds 2 to 8 bits, and W8A8.",
            )
        size = scheme.granularity.size if isinstance(scheme.granularity, PerGroup) else shape[1]
        if shape[0] % 8 or shape[1] % size:
            raise PlanError(
                f"{layer} is {shape[0]} x {shape[1]}; AWQ files need outputs in multiples of 8, "
                f"and inputs that groups of {size} divide",
                hint="Use compressed-tensors, or name the layer in the option 'skip'.",
            )

    def encode(
        self, layer: str, weight: QuantizedWeight, activation_bits: int | None
    ) -> dict[str, Tensor]:
        """``qweight``, ``qzeros`` and ``scales``; a symmetric scheme stores zeros of 8.

        Raises:
            PlanError: as for ``refuse``; scales that float16 does not hold.
        """
        self.refuse(layer, weight.scheme, weight.shape, activation_bits)
        zeros = weight.zeros
        if zeros is None:
            zeros = torch.full(weight.scales.shape, 8, dtype=torch.uint8)
        return {
            f"{layer}.qweight": pack_awq(weight.codes.T.contiguous()),
            f"{layer}.qzeros": pack_awq(zeros.T.contiguous()),
            f"{layer}.scales": half_scales(layer, weight.scales).T.contiguous(),
        }

    def settings(
        self,
        layers: Mapping[str, WeightScheme],
        plain_linears: tuple[str, ...],
        activation_bits: int | None,
    ) -> dict[str, Any]:
        """The ``quantization_config``. Zeros are always stored, hence ``zero_point`` is true.

        Raises:
            PlanError: layers of different schemes.
        """
        granularity = one_scheme(layers, "AWQ").granularity
        return {
            "quant_method": "awq",
            "bits": 4,
            "group_size": granularity.size if isinstance(granularity, PerGroup) else -1,
            "zero_point": True,
            "version": "gemm",
            "modules_to_not_convert": list(plain_linears) or None,
        }

    def decode(self, files: WeightFiles) -> StoredModel:
        """The model that the files stand for; a layer whose zeros are all 8 is symmetric.

        Raises:
            ArtifactError: another version or width, or tensors that are missing or do not fit.
        """
        settings = files.settings
        version = str(settings.get("version") or settings.get("format") or "gemm").lower()
        bits = settings.get("bits", settings.get("w_bit", 4))
        if version != "gemm" or bits != 4:
            raise ArtifactError(
                f"{files.directory}: AWQ version {version!r} at {bits} bits is not read",
                hint="Version gemm at 4 bits is.",
            )
        layers = {}
        used: set[str] = set()
        for layer in sorted(n.removesuffix(".qweight") for n in files if n.endswith(".qweight")):
            used |= {name for part in _PARTS if (name := f"{layer}.{part}") in files}
            try:
                layers[layer] = files.kept(_read_layer(files, layer))
            except ArtifactError:
                raise
            except EvalqError as error:
                raise ArtifactError(f"{files.directory}: {layer}: {error.message}") from None
        if not layers:
            raise ArtifactError(f"{files.directory} says it is AWQ but has no qweight")
        dense = {name: files.tensor(name) for name in files if name not in used}
        return StoredModel(files.directory, self.name, files.config, layers, dense)


def _read_layer(files: WeightFiles, layer: str) -> QuantizedWeight:
    words = files.tensor(f"{layer}.qweight")
    scales = files.tensor(f"{layer}.scales").T.contiguous()
    codes = unpack_awq(words).T.contiguous()
    zeros = unpack_awq(files.tensor(f"{layer}.qzeros")).T.contiguous()
    rows, columns = codes.shape
    groups = scales.shape[1]
    if scales.shape[0] != rows or groups < 1 or columns % groups:
        raise ArtifactError(
            f"{files.directory}: {layer} has {columns} inputs, {rows} outputs and scales "
            f"{(groups, scales.shape[0])}, which do not fit"
        )
    symmetric = bool((zeros == 8).all())
    granularity = PerChannel() if groups == 1 else PerGroup(columns // groups)
    scheme = WeightScheme(4, granularity, symmetric)
    return QuantizedWeight(codes, scales, None if symmetric else zeros, scheme, (rows, columns))
