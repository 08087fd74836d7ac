"""The compressed-tensors format: ``pack-quantized`` at 2 to 8 bits and ``int-quantized`` (W8A8).

Written as compressed-tensors 0.20 and transformers 5 read it; what a loader computes from the
files, ``(code - zero) * scale`` rounded once to the dtype of the scales, is what
``QuantizedWeight.dequantize`` gives.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from evalq.artifacts.base import StoredModel
from evalq.artifacts.files import WeightFiles
from evalq.artifacts.grouping import dequantize_by_index, is_consecutive
from evalq.artifacts.naming import targets_of
from evalq.errors import ArtifactError, PlanError, QuantizationError
from evalq.kernels.bitpack import pack_rows, unpack_padded_rows, unpack_rows, words_needed
from evalq.kernels.packing import QuantizedWeight
from evalq.schema import BITS, PerChannel, PerGroup, WeightScheme

__all__ = ["CompressedTensors", "LayerSettings", "layer_settings", "match_group"]

WRITTEN_FOR = "0.20.0"
"""The compressed-tensors version whose layout is written: 3, 5, 6 and 7 bits are dense."""

_PARTS = ("weight_packed", "weight_scale", "weight_zero_point", "weight_shape", "weight_g_idx")


@dataclass(frozen=True, slots=True)
class LayerSettings:
    """What a config group says of its layers.

    Args:
        scheme: of the weights.
        activation_bits: of the inputs, dynamic, one scale a token; ``None`` leaves them.
        format: ``pack-quantized`` or ``int-quantized``.
        one_scale: a single scale for the whole weight.
    """

    scheme: WeightScheme
    activation_bits: int | None
    format: str
    one_scale: bool


class CompressedTensors:
    """Writes and reads ``quant_method: compressed-tensors``."""

    name = "compressed-tensors"
    scale_dtype: str | None = None

    def refuse(
        self, layer: str, scheme: WeightScheme, shape: tuple[int, int], activation_bits: int | None
    ) -> None:
        """Raise where the format cannot hold that layer.

        Raises:
            PlanError: columns that the group size does not divide (the format has no last, smaller
                group), or activations of 8 bits over weights other than 8 bits symmetric per
                channel.
        """
        size = scheme.granularity.size if isinstance(scheme.granularity, PerGroup) else shape[1]
        if shape[1] % size:
            fits = [n for n in (128, 96, 64, 48, 32, 16, 8) if shape[1] % n == 0]
            raise PlanError(
                f"{layer} has {shape[1]} input columns, which groups of {size} do not divide",
                hint=f"Group sizes that do: {', '.join(map(str, fits)) or 'none'}; or per channel.",
            )
        if activation_bits is None:
            return
        w8 = WeightScheme(8, PerChannel(), True)
        if activation_bits != 8 or scheme != w8:
            raise PlanError(
                f"activations of {activation_bits} bits over weights {scheme} cannot be stored",
                hint="Activations of 8 bits go with symmetric 8-bit weights, one scale a channel.",
            )

    def encode(
        self, layer: str, weight: QuantizedWeight, activation_bits: int | None
    ) -> dict[str, Tensor]:
        """``weight_packed``, ``weight_scale``, ``weight_shape`` and, asymmetric, packed zeros; for
        W8A8 an int8 ``weight`` and its ``weight_scale``.

        Raises:
            PlanError: as for ``refuse``.
        """
        scheme = weight.scheme
        self.refuse(layer, scheme, weight.shape, activation_bits)
        scales = weight.scales.contiguous()
        if activation_bits is not None:
            signed = (weight.codes.to(torch.int16) - 128).to(torch.int8)
            return {f"{layer}.weight": signed, f"{layer}.weight_scale": scales}
        tensors = {
            f"{layer}.weight_packed": pack_rows(weight.codes, scheme.bits),
            f"{layer}.weight_scale": scales,
            f"{layer}.weight_shape": torch.tensor(weight.shape, dtype=torch.int64),
        }
        if weight.zeros is not None:
            packed = pack_rows(weight.zeros.T.contiguous(), scheme.bits).T.contiguous()
            tensors[f"{layer}.weight_zero_point"] = packed
        return tensors

    def settings(
        self,
        layers: Mapping[str, WeightScheme],
        plain_linears: tuple[str, ...],
        activation_bits: int | None,
    ) -> dict[str, Any]:
        """The ``quantization_config``: one group of all ``Linear`` layers, or, where schemes
        differ, one group a scheme that names its layers (experts of one scheme by a pattern).
        """
        by_scheme: dict[WeightScheme, list[str]] = {}
        for name, scheme in layers.items():
            by_scheme.setdefault(scheme, []).append(name)
        layout = "pack-quantized" if activation_bits is None else "int-quantized"
        groups = {}
        for index, (scheme, names) in enumerate(sorted(by_scheme.items(), key=lambda i: str(i[0]))):
            groups[f"group_{index}"] = {
                "targets": ["Linear"] if len(by_scheme) == 1 else targets_of(scheme, names, layers),
                "weights": _arguments(scheme),
                "input_activations": None if activation_bits is None else _tokens(activation_bits),
                "output_activations": None,
                "format": layout,
            }
        settings: dict[str, Any] = {
            "quant_method": self.name,
            "format": layout,
            "config_groups": groups,
            "ignore": list(plain_linears),
            "kv_cache_scheme": None,
            "quantization_status": "compressed",
            "global_compression_ratio": None,
            "version": WRITTEN_FOR,
        }
        # transformers 5.23 allocates unpacked zero points on its default path and stops at the
        # shape of the packed ones. Its other path reads them; that one knows a single scheme only.
        if len(by_scheme) == 1 and not next(iter(by_scheme)).symmetric:
            settings["dequantize"] = True
        return settings

    def decode(self, files: WeightFiles) -> StoredModel:
        """The model that the files stand for.

        Raises:
            ArtifactError: settings that evalq does not know how to run, a layer that no group
                targets, tensors that are missing or do not fit each other.
        """
        settings = files.settings
        _refuse_unknown(files)
        groups = layer_settings(settings)
        layers: dict[str, QuantizedWeight] = {}
        dense: dict[str, Tensor] = {}
        activations: dict[str, int] = {}
        notes: list[str] = []
        used: set[str] = set()
        for layer in _quantized_layers(files):
            group = match_group(layer, groups)
            if group is None:
                raise ArtifactError(
                    f"{files.directory}: {layer} is stored quantized, but no config group targets "
                    "it",
                    hint="Its quantization_config does not belong to these weights.",
                )
            used |= {n for p in (*_PARTS, "weight") if (n := f"{layer}.{p}") in files}
            weight = _read_layer(files, layer, group)
            if isinstance(weight, Tensor):
                dense[f"{layer}.weight"] = weight
                notes.append(f"{layer} has groups of scattered columns and is read dequantized.")
            else:
                layers[layer] = files.kept(weight)
            if group.activation_bits is not None:
                activations[layer] = group.activation_bits
        dense |= {name: files.tensor(name) for name in files if name not in used}
        if settings.get("kv_cache_scheme"):
            notes.append("The KV cache scheme of the artifact is not applied.")
        return StoredModel(
            files.directory, self.name, files.config, layers, dense, activations, tuple(notes)
        )


def _arguments(scheme: WeightScheme) -> dict[str, Any]:
    grouped = isinstance(scheme.granularity, PerGroup)
    return {
        "num_bits": scheme.bits,
        "type": "int",
        "symmetric": scheme.symmetric,
        "strategy": "group" if grouped else "channel",
        "group_size": scheme.granularity.size if isinstance(scheme.granularity, PerGroup) else None,
        "dynamic": False,
        "actorder": None,
        "observer": "minmax",
    }


def _tokens(bits: int) -> dict[str, Any]:
    return {
        "num_bits": bits,
        "type": "int",
        "symmetric": True,
        "strategy": "token",
        "group_size": None,
        "dynamic": True,
        "actorder": None,
        "observer": None,
    }


def _refuse_unknown(files: WeightFiles) -> None:
    settings = files.settings
    transform = settings.get("transform_config") or {}
    if transform.get("config_groups"):
        raise ArtifactError(
            f"{files.directory} needs online transforms (transform_config), which evalq does not "
            "apply",
            hint="Its weights alone would give other answers; use an artifact without transforms.",
        )
    sparsity = (settings.get("sparsity_config") or {}).get("format", "dense")
    if sparsity != "dense":
        raise ArtifactError(f"{files.directory} is stored sparse ({sparsity}), which is not read")


def layer_settings(settings: Mapping[str, Any]) -> list[tuple[list[str], LayerSettings]]:
    """The config groups as ``(targets, what they say)``.

    Raises:
        ArtifactError: groups that evalq does not know how to run, each named with what is unknown.
    """
    groups = settings.get("config_groups")
    if not isinstance(groups, dict) or not groups:
        raise ArtifactError("quantization_config has no config_groups")
    found = []
    for name, group in groups.items():
        if not isinstance(group, dict):
            raise ArtifactError(f"config group {name!r} names a preset, which is not read")
        if group.get("weights") is None:
            continue
        layout = group.get("format") or settings.get("format")
        if layout not in ("pack-quantized", "int-quantized"):
            raise ArtifactError(
                f"config group {name!r} has the format {layout!r}, which is not read",
                hint="pack-quantized and int-quantized are.",
            )
        scheme, one = _weight_scheme(name, group["weights"])
        if group.get("output_activations"):
            raise ArtifactError(f"config group {name!r} quantizes outputs, which is not run")
        bits = _activation_bits(name, group.get("input_activations"))
        found.append((list(group.get("targets") or []), LayerSettings(scheme, bits, layout, one)))
    return found


def _weight_scheme(name: str, args: Mapping[str, Any]) -> tuple[WeightScheme, bool]:
    bits, kind = args.get("num_bits", 8), args.get("type", "int")
    strategy, size = args.get("strategy"), args.get("group_size")
    if strategy is None:
        strategy = "tensor" if size is None else "channel" if size == -1 else "group"
    if kind != "int" or bits not in BITS or strategy not in ("group", "channel", "tensor"):
        raise ArtifactError(
            f"config group {name!r}: weights of {bits} bits, {kind}, by {strategy} are not read",
            hint="Integers of 2 to 8 bits by group, channel or tensor are.",
        )
    granularity = PerGroup(int(size)) if strategy == "group" and size else PerChannel()
    scheme = WeightScheme(int(bits), granularity, bool(args.get("symmetric", True)))
    return scheme, strategy == "tensor"


def _activation_bits(name: str, args: Mapping[str, Any] | None) -> int | None:
    if not args:
        return None
    known = {"type": "int", "strategy": "token", "symmetric": True, "dynamic": True}
    given = {key: args.get(key, True if key == "symmetric" else None) for key in known}
    bits = args.get("num_bits", 8)
    if given != known or bits != 8:
        raise ArtifactError(
            f"config group {name!r}: activations of {bits} bits, {given}, are not run",
            hint="Symmetric 8-bit integers found token by token are.",
        )
    return int(bits)


def match_group(layer: str, groups: list[tuple[list[str], LayerSettings]]) -> LayerSettings | None:
    """The group that targets ``layer``: by its name, else by a ``re:`` pattern, else by class.

    That is the order of preference of compressed-tensors. Every stored quantized layer is taken for
    a ``Linear``.
    """
    for exact in (lambda t: t == layer, lambda t: _pattern_fits(t, layer), lambda t: t == "Linear"):
        for targets, settings in groups:
            if any(exact(target) for target in targets):
                return settings
    return None


def _pattern_fits(target: str, layer: str) -> bool:
    if not target.startswith("re:"):
        return False
    try:
        return re.match(target[3:], layer) is not None
    except re.error as error:
        raise ArtifactError(f"target {target!r} is no regular expression: {error}") from None


def _quantized_layers(files: WeightFiles) -> list[str]:
    marks = (".weight_packed", ".weight_scale")
    return sorted({name.rsplit(".", 1)[0] for name in files if name.endswith(marks)})


def _read_layer(files: WeightFiles, layer: str, group: LayerSettings) -> QuantizedWeight | Tensor:
    scheme = group.scheme
    scales = files.tensor(f"{layer}.weight_scale")
    if group.format == "int-quantized":
        codes, zeros = _read_integers(files, layer, scheme)
    else:
        codes, zeros = _read_packed(files, layer, scheme, scales)
    rows, columns = codes.shape
    if group.one_scale or scales.ndim == 1:
        scales = scales.reshape(-1, 1).expand(rows, 1).contiguous()
        zeros = zeros.reshape(-1, 1).expand(rows, 1).contiguous() if zeros is not None else None
    index = files.tensor(f"{layer}.weight_g_idx") if f"{layer}.weight_g_idx" in files else None
    granularity = scheme.granularity
    if index is not None and isinstance(granularity, PerGroup):
        # -1 marks a g_idx that was allocated and never used.
        unused = bool((index < 0).all())
        if not unused and not is_consecutive(index, granularity.size):
            zero: Tensor | int = 1 << (scheme.bits - 1) if zeros is None else zeros
            return dequantize_by_index(codes, scales, zero, index)
    try:
        return QuantizedWeight(codes, scales, zeros, scheme, (rows, columns))
    except QuantizationError as error:
        raise ArtifactError(f"{files.directory}: {layer}: {error.message}") from None


def _read_integers(
    files: WeightFiles, layer: str, scheme: WeightScheme
) -> tuple[Tensor, Tensor | None]:
    weight = files.tensor(f"{layer}.weight")
    if weight.dtype != torch.int8 or weight.ndim != 2:
        raise ArtifactError(
            f"{files.directory}: {layer}.weight is {weight.dtype} with {weight.ndim} axes; "
            "int-quantized has a matrix of int8"
        )
    middle = 1 << (scheme.bits - 1)
    codes = (weight.to(torch.int16) + middle).to(torch.uint8)
    if scheme.symmetric:
        return codes, None
    zeros = files.tensor(f"{layer}.weight_zero_point")
    return codes, (zeros.to(torch.int16) + middle).to(torch.uint8)


def _read_packed(
    files: WeightFiles, layer: str, scheme: WeightScheme, scales: Tensor
) -> tuple[Tensor, Tensor | None]:
    words = files.tensor(f"{layer}.weight_packed")
    shape = files.tensor(f"{layer}.weight_shape")
    if words.dtype != torch.int32 or words.ndim != 2 or shape.numel() != 2 or scales.ndim > 2:
        raise ArtifactError(f"{files.directory}: {layer} is no matrix packed into int32")
    rows, columns = (int(n) for n in shape.tolist())
    if words.shape[0] != rows or columns < 1:
        raise ArtifactError(
            f"{files.directory}: {layer}.weight_shape says {rows} x {columns}, but weight_packed "
            f"has {words.shape[0]} rows"
        )
    codes = _unpack(files, layer, words, scheme.bits, columns)
    if scheme.symmetric:
        return codes, None
    packed = files.tensor(f"{layer}.weight_zero_point")
    if packed.dtype != torch.int32 or packed.ndim != 2:
        raise ArtifactError(f"{files.directory}: {layer}.weight_zero_point is not packed int32")
    return codes, _unpack(files, layer, packed.T.contiguous(), scheme.bits, rows).T.contiguous()


def _unpack(files: WeightFiles, layer: str, words: Tensor, bits: int, count: int) -> Tensor:
    if words.shape[1] == words_needed(count, bits):
        return unpack_rows(words, bits, count)
    if words.shape[1] == -(-count // (32 // bits)):
        return unpack_padded_rows(words, bits, count)
    raise ArtifactError(
        f"{files.directory}: {layer} has {words.shape[1]} words for {count} codes of {bits} bits, "
        f"which take {words_needed(count, bits)}",
        hint="The quantization_config does not belong to these weights.",
    )
