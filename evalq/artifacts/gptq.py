"""The GPTQ format, v1 and v2: words run down the inputs, ``w = (q - z) * s``.

v1 stores ``z - 1``, so it cannot hold a zero of 0; v2 stores ``z``. Both are written without
``desc_act``: columns keep their order, and ``g_idx`` is ``i // group_size``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

import evalq
from evalq.artifacts.base import StoredModel
from evalq.artifacts.files import WeightFiles
from evalq.artifacts.grouping import dequantize_by_index, is_consecutive
from evalq.errors import ArtifactError, EvalqError, KernelError, PlanError
from evalq.kernels.bitpack import pack_columns, pack_rows, unpack_columns, unpack_rows
from evalq.kernels.packing import QuantizedWeight, group_index
from evalq.schema import BITS, PerChannel, PerGroup, WeightScheme

__all__ = ["Gptq", "GptqV2", "checkpoint_version", "half_scales"]

_PARTS = ("qweight", "qzeros", "scales", "g_idx")


def half_scales(layer: str, scales: Tensor) -> Tensor:
    """Scales as float16, in which loaders of GPTQ and AWQ keep them.

    Raises:
        PlanError: a scale that float16 does not hold exactly.
    """
    half = scales.to(torch.float16)
    if not torch.equal(half.to(torch.float32), scales.to(torch.float32)):
        raise PlanError(
            f"the scales of {layer} are {scales.dtype} and would change as float16",
            hint="Set the method's option scale_dtype to float16.",
        )
    return half


def checkpoint_version(settings: Mapping[str, Any]) -> int:
    """1 or 2, by ``checkpoint_format`` (or ``format``, as newer writers call it).

    Raises:
        ArtifactError: another layout (``marlin``, ``bitblas``).
    """
    layout = str(settings.get("checkpoint_format") or settings.get("format") or "gptq")
    known = {"gptq": 1, "gptq_v2": 2}
    if layout not in known:
        raise ArtifactError(f"the GPTQ layout {layout!r} is not read", hint="gptq and gptq_v2 are.")
    return known[layout]


class Gptq:
    """Writes v1; reads ``quant_method: gptq`` of either version."""

    name = "gptq"
    version = 1
    scale_dtype: str | None = "float16"

    def refuse(
        self, layer: str, scheme: WeightScheme, shape: tuple[int, int], activation_bits: int | None
    ) -> None:
        """Raise where the format or its loaders cannot hold that layer.

        Raises:
            PlanError: widths other than 2, 3, 4 and 8; quantized activations; sizes that are no
                multiple of 32, or that the group size does not divide.
        """
        if scheme.bits not in (2, 3, 4, 8):
            raise PlanError(
                f"GPTQ files hold no {scheme.bits} bits",
                hint="They hold 2, 3, 4 or 8; compressed-tensors holds 2 to 8.",
            )
        if activation_bits is not None:
            raise PlanError(
                "GPTQ files hold no quantized activations", hint="Use compressed-tensors."
            )
        size = scheme.granularity.size if isinstance(scheme.granularity, PerGroup) else shape[1]
        if shape[0] % 32 or shape[1] % 32 or shape[1] % size:
            raise PlanError(
                f"{layer} is {shape[0]} x {shape[1]}; GPTQ files need multiples of 32, and inputs "
                f"that groups of {size} divide",
                hint="Use compressed-tensors, or name the layer in the option 'skip'.",
            )

    def encode(
        self, layer: str, weight: QuantizedWeight, activation_bits: int | None
    ) -> dict[str, Tensor]:
        """``qweight``, ``qzeros``, ``scales`` and ``g_idx``.

        Raises:
            PlanError: as for ``refuse``; a zero of 0 in v1; scales that float16 does not hold.
        """
        self.refuse(layer, weight.scheme, weight.shape, activation_bits)
        bits = weight.scheme.bits
        zeros = weight.zeros
        if zeros is None:
            zeros = torch.full(weight.scales.shape, 1 << (bits - 1), dtype=torch.uint8)
        if self.version == 1:
            if bool((zeros == 0).any()):
                raise PlanError(
                    f"{layer} has a zero of 0, which GPTQ v1 cannot store: it stores z - 1",
                    hint="Write format gptq-v2 or compressed-tensors, or a symmetric scheme.",
                )
            zeros = zeros - 1
        return {
            f"{layer}.qweight": pack_columns(weight.codes.T.contiguous(), bits),
            f"{layer}.qzeros": pack_rows(zeros.T.contiguous(), bits),
            f"{layer}.scales": half_scales(layer, weight.scales).T.contiguous(),
            f"{layer}.g_idx": group_index(weight.scheme, weight.shape[1]).to(torch.int32),
        }

    def settings(
        self,
        layers: Mapping[str, WeightScheme],
        plain_linears: tuple[str, ...],
        activation_bits: int | None,
    ) -> dict[str, Any]:
        """The ``quantization_config``; linear layers left dense are excluded by ``dynamic`` rules.

        Raises:
            PlanError: layers of different schemes.
        """
        scheme = one_scheme(layers, "GPTQ")
        granularity = scheme.granularity
        left = [name for name in plain_linears if name.rpartition(".")[2] != "lm_head"]
        return {
            "quant_method": "gptq",
            "bits": scheme.bits,
            "group_size": granularity.size if isinstance(granularity, PerGroup) else -1,
            "desc_act": False,
            "sym": scheme.symmetric,
            "static_groups": False,
            "lm_head": any(name.rpartition(".")[2] == "lm_head" for name in layers),
            "checkpoint_format": "gptq" if self.version == 1 else "gptq_v2",
            "pack_dtype": "int32",
            "dynamic": {f"-:^{name.replace('.', chr(92) + '.')}$": {} for name in left} or None,
            "meta": {"quantizer": [f"evalq:{evalq.__version__}"]},
        }

    def decode(self, files: WeightFiles) -> StoredModel:
        """The model that the files stand for.

        Layers with ``desc_act`` whose columns do not lie in consecutive groups are given
        dequantized in ``dense``, with a note.

        Raises:
            ArtifactError: an unknown layout, tensors that are missing or do not fit each other, or
                v1 zeros that stand for two values.
        """
        settings = files.settings
        version = checkpoint_version(settings)
        if str(settings.get("pack_dtype", "int32")) != "int32":
            raise ArtifactError(
                f"{files.directory} is packed into {settings['pack_dtype']}, which is not read"
            )
        layers: dict[str, QuantizedWeight] = {}
        dense: dict[str, Tensor] = {}
        scattered = []
        used: set[str] = set()
        names = sorted(n.removesuffix(".qweight") for n in files if n.endswith(".qweight"))
        for layer in names:
            used |= {name for part in _PARTS if (name := f"{layer}.{part}") in files}
            try:
                weight = _read_layer(files, layer, settings, version)
            except ArtifactError:
                raise
            except EvalqError as error:
                raise ArtifactError(f"{files.directory}: {layer}: {error.message}") from None
            if isinstance(weight, Tensor):
                dense[f"{layer}.weight"] = weight
                scattered.append(layer)
            else:
                layers[layer] = files.kept(weight)
        if not names:
            raise ArtifactError(f"{files.directory} says it is GPTQ but has no qweight")
        dense |= {name: files.tensor(name) for name in files if name not in used}
        notes: tuple[str, ...] = ()
        if scattered:
            notes = (
                f"{len(scattered)} layers have groups of scattered columns (desc_act) and are read "
                "dequantized.",
            )
        return StoredModel(files.directory, "gptq", files.config, layers, dense, {}, notes)


class GptqV2(Gptq):
    """Writes v2."""

    name = "gptq-v2"
    version = 2


def one_scheme(layers: Mapping[str, WeightScheme], what: str) -> WeightScheme:
    """The scheme of all layers.

    Raises:
        PlanError: they differ.
    """
    schemes = sorted(set(layers.values()), key=str)
    if len(schemes) != 1:
        raise PlanError(
            f"{what} files hold one scheme for all layers, not {', '.join(map(str, schemes))}",
            hint="compressed-tensors holds a scheme a layer.",
        )
    return schemes[0]


def _read_layer(
    files: WeightFiles, layer: str, settings: Mapping[str, Any], version: int
) -> QuantizedWeight | Tensor:
    words = files.tensor(f"{layer}.qweight")
    scales = files.tensor(f"{layer}.scales").T.contiguous()
    index = files.tensor(f"{layer}.g_idx") if f"{layer}.g_idx" in files else None
    bits, columns = _width(layer, words, index, settings)
    rows, groups = scales.shape
    if words.ndim != 2 or words.shape[1] != rows or columns % groups:
        raise ArtifactError(
            f"{files.directory}: {layer} has qweight {tuple(words.shape)} and scales "
            f"{(groups, rows)}, which do not fit"
        )
    codes = unpack_columns(words, bits, columns).T.contiguous()
    zeros = unpack_rows(files.tensor(f"{layer}.qzeros"), bits, rows).T.contiguous()
    if version == 1:
        top = (1 << bits) - 1
        if bool((zeros == top).any()):
            raise ArtifactError(
                f"{files.directory}: {layer} has a v1 zero of {top}, which some loaders read as "
                f"{top + 1} and others as 0",
                hint="The writer underflowed; quantize again as gptq_v2 or symmetric.",
            )
        zeros = zeros + 1
    size = columns // groups
    middle = 1 << (bits - 1)
    symmetric = bool((zeros == middle).all())
    if bool(settings.get("sym", True)) and not symmetric:
        raise ArtifactError(
            f"{files.directory}: {layer} is said to be symmetric, but has zeros other than "
            f"{middle}",
            hint=f"checkpoint_format may be wrong: it says v{version}.",
        )
    if index is not None and not is_consecutive(index, size):
        return dequantize_by_index(codes, scales, zeros, index)
    scheme = WeightScheme(bits, PerChannel() if groups == 1 else PerGroup(size), symmetric)
    return QuantizedWeight(codes, scales, None if symmetric else zeros, scheme, (rows, columns))


def _width(
    layer: str, words: Tensor, index: Tensor | None, settings: Mapping[str, Any]
) -> tuple[int, int]:
    """Bits and input columns of a layer: by its ``g_idx``, else by the settings."""
    named = settings.get("bits")
    if index is not None and len(index):
        bits, rest = divmod(32 * words.shape[0], len(index))
        if rest or bits not in BITS:
            raise KernelError(f"{words.shape[0]} words do not hold {len(index)} columns")
        if bits != named and not settings.get("dynamic"):
            raise KernelError(f"its words hold {bits} bits, its settings say {named}")
        return bits, len(index)
    if named not in BITS:
        raise KernelError(f"its settings name {named!r} as bits")
    return int(named), 32 * words.shape[0] // int(named)
