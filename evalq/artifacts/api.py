"""Which formats exist, and reading a model directory whatever its format."""

from __future__ import annotations

import struct
from pathlib import Path

from evalq.artifacts.base import Encoder, Storage, StoredModel
from evalq.artifacts.files import TensorEntry, WeightFiles, open_files
from evalq.errors import ArtifactError, nearest
from evalq.registry import Registry

__all__ = ["FORMATS", "format_of", "read", "storage"]

FORMATS: Registry[type[Encoder]] = Registry("format")
FORMATS.add(
    "compressed-tensors",
    "evalq.artifacts.compressed_tensors:CompressedTensors",
    "pack-quantized at 2 to 8 bits and int-quantized W8A8; transformers and vLLM load it",
)
FORMATS.add(
    "gptq",
    "evalq.artifacts.gptq:Gptq",
    "GPTQ v1 at 2, 3, 4 and 8 bits; gptqmodel loads it, vLLM at 4 and 8 bits symmetric",
)
FORMATS.add(
    "gptq-v2",
    "evalq.artifacts.gptq:GptqV2",
    "GPTQ v2, which stores zero points as they are; gptqmodel loads it",
)
FORMATS.add(
    "awq",
    "evalq.artifacts.awq:Awq",
    "AWQ GEMM at 4 bits; gptqmodel and vLLM load it",
)

_MARKS = (".weight_packed", ".qweight", ".weight_scale", ".scales", ".weight_scale_inv")
_PARTS = (
    *("weight_packed", "weight_scale", "weight_zero_point", "weight_shape", "weight_g_idx"),
    *("weight", "qweight", "qzeros", "scales", "g_idx"),
)


def format_of(files: WeightFiles) -> str:
    """The format that a directory's ``quantization_config`` names; ``"dense"`` where there is none.

    Raises:
        ArtifactError: a quantization method that evalq does not read, or quantized tensors without
            any configuration.
    """
    settings = files.settings
    if not settings:
        marked = [name for name in files if name.endswith(_MARKS)]
        if marked:
            raise ArtifactError(
                f"{files.directory} holds quantized tensors ({marked[0]}), but its config.json has "
                "no quantization_config",
                hint="Restore the config.json that the artifact was written with.",
            )
        return "dense"
    method = str(settings.get("quant_method", ""))
    if method not in FORMATS:
        raise ArtifactError(
            f"{files.directory}: quantization method {method!r} is not read",
            hint=nearest(method, FORMATS),
        )
    return method


def read(directory: Path, sketch: bool = False) -> StoredModel:
    """A model directory as quantized layers and dense tensors, from its files alone.

    Args:
        directory: of the model.
        sketch: read and check every layer, and keep its scheme and shape only: no more than one
            layer is in memory.

    Raises:
        ArtifactError: no directory, no ``config.json``, missing, truncated or pickled weights, or a
            format or a setting that evalq does not read.
    """
    files = open_files(directory)
    files.sketch = sketch
    name = format_of(files)
    if name == "dense":
        dense = {tensor: files.tensor(tensor) for tensor in files}
        return StoredModel(directory, name, files.config, {}, dense)
    return FORMATS.get(name)().decode(files)


def storage(directory: Path) -> Storage:
    """What a model directory takes, from the headers of its weight files.

    Raises:
        ArtifactError: as for ``read``.
    """
    files = open_files(directory)
    kind = format_of(files)
    by_layer: dict[str, dict[str, TensorEntry]] = {}
    for name, entry in files.items():
        layer, _, part = name.rpartition(".")
        by_layer.setdefault(layer if part in _PARTS else name, {})[part] = entry
    parameters = quantized = quantized_bytes = 0
    for parts in by_layer.values():
        count = None if kind == "dense" else _logical_size(files, parts)
        if count is None:
            parameters += sum(entry.count for entry in parts.values())
            continue
        parameters += count
        quantized += count
        quantized_bytes += sum(entry.bytes for entry in parts.values())
    if parameters == 0:
        raise ArtifactError(f"{directory} holds no parameters")
    total = 8 * sum(entry.bytes for entry in files.values()) / parameters
    return Storage(
        bytes_on_disk=sum(path.stat().st_size for path in files.shards),
        bits_per_weight=total,
        linear_bits_per_weight=8 * quantized_bytes / quantized if quantized else total,
        parameters=parameters,
        quantized_parameters=quantized,
    )


def _logical_size(files: WeightFiles, parts: dict[str, TensorEntry]) -> int | None:
    """``out * in`` of a quantized layer; ``None`` for tensors that are not quantized."""
    if "weight_packed" in parts and "weight_shape" in parts:
        rows, columns = _stored_pair(parts["weight_shape"])
        return rows * columns
    if "weight_scale" in parts and "weight" in parts:
        return parts["weight"].count
    if "qweight" in parts:
        words = parts["qweight"]
        bits = int(files.settings.get("bits", files.settings.get("w_bit", 4)))
        return words.count * 32 // bits
    return None


def _stored_pair(entry: TensorEntry) -> tuple[int, int]:
    """Two integers read from a file without a tensor library."""
    code = {"I64": "<2q", "I32": "<2i"}.get(entry.dtype)
    if code is None or entry.count != 2:
        raise ArtifactError(f"{entry.file}: {entry.name} is no pair of integers")
    with entry.file.open("rb") as file:
        file.seek(entry.start)
        rows, columns = struct.unpack(code, file.read(struct.calcsize(code)))
    if rows < 1 or columns < 1:
        raise ArtifactError(f"{entry.file}: {entry.name} says {rows} x {columns}")
    return rows, columns
