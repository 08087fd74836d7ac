"""The files of a model directory: configuration, shards, headers, and what is wrong with them."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evalq.errors import ArtifactError

if TYPE_CHECKING:
    from torch import Tensor

    from evalq.kernels.packing import QuantizedWeight

__all__ = ["TensorEntry", "WeightFiles", "open_files", "read_config", "read_header"]

_INDEX = "model.safetensors.index.json"
_INDEX_SUFFIX = ".safetensors.index.json"
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_MAX_HEADER = 100_000_000


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One tensor as a header gives it.

    Args:
        name: of the tensor.
        file: file it lies in.
        dtype: safetensors' word for it (``BF16``, ``I32``).
        shape: its shape.
        start, end: its bytes within the file.
    """

    name: str
    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def bytes(self) -> int:
        """Size of the stored values."""
        return self.end - self.start

    @property
    def count(self) -> int:
        """Number of values."""
        total = 1
        for size in self.shape:
            total *= size
        return total


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        ArtifactError: no such file, or no JSON (with the line).
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ArtifactError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ArtifactError(f"{path} is not UTF-8 text") from None
    except json.JSONDecodeError as error:
        raise ArtifactError(f"{path}, line {error.lineno}: no JSON: {error.msg}") from None


def read_config(directory: Path) -> dict[str, Any]:
    """``config.json``; GPTQ's ``quantize_config.json`` stands in for a missing section of it.

    Raises:
        ArtifactError: no directory, no ``config.json``, or one that holds no mapping.
    """
    if not directory.is_dir():
        raise ArtifactError(f"{directory} is no directory", hint="Give an artifact directory.")
    path = directory / "config.json"
    if not path.is_file():
        raise ArtifactError(
            f"{directory} has no config.json",
            hint="Copy the model's config.json beside the weights, or fetch the model again.",
        )
    config = read_json(path)
    if not isinstance(config, dict):
        raise ArtifactError(f"{path} holds no mapping")
    beside = directory / "quantize_config.json"
    if "quantization_config" not in config and beside.is_file():
        settings = read_json(beside)
        if not isinstance(settings, dict):
            raise ArtifactError(f"{beside} holds no mapping")
        config["quantization_config"] = {"quant_method": "gptq", **settings}
    return config


def read_header(path: Path) -> dict[str, TensorEntry]:
    """The header of a safetensors file, checked against the size of the file.

    The format is eight bytes with the header's length, the header as JSON, then the values, which
    have to fill the rest of the file.

    Raises:
        ArtifactError: a file that is truncated, or no safetensors at all.
    """
    hint = "Copy or fetch the file again; it was probably cut off on its way."
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            prefix = file.read(8)
            if len(prefix) < 8:
                raise ArtifactError(f"{path} is truncated: {size} bytes in all", hint=hint)
            length = struct.unpack("<Q", prefix)[0]
            if length > _MAX_HEADER:
                raise ArtifactError(f"{path} is no safetensors file", hint=hint)
            raw = file.read(length)
    except OSError as error:
        raise ArtifactError(f"cannot read {path}: {error.strerror}") from None
    if len(raw) < length:
        raise ArtifactError(f"{path} is truncated within its header", hint=hint)
    entries = _parse_header(path, raw, 8 + length)
    end = max((entry.end for entry in entries.values()), default=8 + length)
    if end > size:
        raise ArtifactError(
            f"{path} is truncated: its header promises {end} bytes, it has {size}", hint=hint
        )
    if end < size:
        raise ArtifactError(f"{path} has {size - end} bytes that its header does not name")
    return entries


_WIDTH = {"F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2}
_WIDTH |= {"I16": 2, "U16": 2, "I8": 1, "U8": 1, "BOOL": 1}


def _parse_header(path: Path, raw: bytes, base: int) -> dict[str, TensorEntry]:
    try:
        header = json.loads(raw)
        entries = {
            name: TensorEntry(
                name,
                path,
                str(item["dtype"]),
                tuple(int(n) for n in item["shape"]),
                base + int(item["data_offsets"][0]),
                base + int(item["data_offsets"][1]),
            )
            for name, item in header.items()
            if name != "__metadata__"
        }
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
        raise ArtifactError(
            f"{path} is no safetensors file: its header cannot be read",
            hint="Copy or fetch the file again.",
        ) from None
    for entry in entries.values():
        width = _WIDTH.get(entry.dtype)
        if width is not None and entry.bytes != width * entry.count:
            raise ArtifactError(
                f"{path}: {entry.name} has {entry.bytes} bytes, but {entry.dtype} of shape "
                f"{entry.shape} takes {width * entry.count}"
            )
    return entries


class WeightFiles(Mapping[str, TensorEntry]):
    """The tensors of a model directory by name; values are read from disk one at a time.

    Args:
        directory: of the model.
        config: its ``config.json``.
        entries: headers of all shards.
        sketch: layers that are read are checked and then kept without their values.
    """

    def __init__(
        self, directory: Path, config: dict[str, Any], entries: dict[str, TensorEntry]
    ) -> None:
        self.directory = directory
        self.config = config
        self.sketch = False
        self._entries = entries

    def kept(self, weight: QuantizedWeight) -> QuantizedWeight:
        """A layer as a reader keeps it: as it is, or for a sketch one of the same scheme and shape
        whose codes are all zero and take no memory."""
        if not self.sketch:
            return weight
        zeros = None if weight.zeros is None else weight.zeros.new_zeros(1, 1)
        return type(weight)(
            weight.codes.new_zeros(1, 1).expand(weight.codes.shape),
            weight.scales.new_ones(1, 1).expand(weight.scales.shape),
            None if zeros is None else zeros.expand(weight.scales.shape),
            weight.scheme,
            weight.shape,
        )

    def __getitem__(self, name: str) -> TensorEntry:
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def shards(self) -> list[Path]:
        """The weight files, sorted."""
        return sorted({entry.file for entry in self._entries.values()})

    @property
    def settings(self) -> dict[str, Any]:
        """The ``quantization_config``, empty where there is none.

        Raises:
            ArtifactError: one that is no mapping.
        """
        settings = self.config.get("quantization_config") or {}
        if not isinstance(settings, dict):
            raise ArtifactError(f"{self.directory}: quantization_config holds no mapping")
        return settings

    def tensor(self, name: str) -> Tensor:
        """The values of one tensor.

        Raises:
            ArtifactError: no such tensor, or one that safetensors cannot read.
        """
        from safetensors import SafetensorError, safe_open

        if name not in self._entries:
            raise ArtifactError(
                f"{self.directory} has no tensor {name!r}",
                hint="The weight files are incomplete; copy or fetch the directory again.",
            )
        entry = self._entries[name]
        try:
            with safe_open(entry.file, framework="pt") as file:
                tensor: Tensor = file.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise ArtifactError(f"{entry.file}: {name} cannot be read: {error}") from None
        return tensor


def _shards(directory: Path) -> tuple[list[Path], dict[str, str] | None]:
    """The weight files and, for a sharded model, which tensor lies in which."""
    indices = sorted(directory.glob(f"*{_INDEX_SUFFIX}"))
    if len(indices) > 1 and (directory / _INDEX) in indices:
        indices = [directory / _INDEX]
    if len(indices) > 1:
        raise ArtifactError(
            f"{directory} has {len(indices)} weight indices: {', '.join(p.name for p in indices)}",
            hint="Keep the one that belongs to the model.",
        )
    if indices:
        index = indices[0]
        content = read_json(index)
        weights = content.get("weight_map") if isinstance(content, dict) else None
        if not isinstance(weights, dict) or not weights:
            raise ArtifactError(f"{index} has no weight_map")
        missing = sorted({n for n in weights.values() if not (directory / str(n)).is_file()})
        if missing:
            raise ArtifactError(
                f"{directory} lacks {len(missing)} of its weight files: {', '.join(missing[:3])}",
                hint="Copy or fetch the missing files.",
            )
        return [directory / name for name in sorted(set(weights.values()))], weights
    files = sorted(directory.glob("*.safetensors"))
    if (directory / "model.safetensors").is_file():
        return [directory / "model.safetensors"], None
    if len(files) == 1 and "-of-" not in files[0].name:
        return files, None
    if files:
        raise ArtifactError(
            f"{directory} has {len(files)} safetensors files and no {_INDEX}",
            hint="Copy or fetch the index: it says which tensor lies in which file.",
        )
    pickles = sorted(p.name for p in directory.iterdir() if p.suffix in _PICKLES)
    if pickles:
        raise ArtifactError(
            f"{directory} has pickled weights only ({pickles[0]}), which evalq never loads: "
            "a pickle can run any code",
            hint="Convert them in a sandbox with save_pretrained(..., safe_serialization=True).",
        )
    raise ArtifactError(
        f"{directory} has no weights: no *.safetensors in it",
        hint="Copy or fetch the weight files.",
    )


def open_files(directory: Path) -> WeightFiles:
    """The configuration and all tensor headers of a model directory; reads no values.

    Raises:
        ArtifactError: no directory; no ``config.json``; no weights, pickled weights only, a missing
            or truncated shard; an index that does not fit its shards.
    """
    config = read_config(directory)
    shards, weight_map = _shards(directory)
    entries: dict[str, TensorEntry] = {}
    for shard in shards:
        for name, entry in read_header(shard).items():
            if name in entries:
                raise ArtifactError(f"{directory}: {name} is in two weight files")
            entries[name] = entry
    if weight_map is not None:
        astray = sorted(
            n for n, f in weight_map.items() if n not in entries or entries[n].file.name != f
        )
        if astray:
            raise ArtifactError(
                f"{directory}: the index names {len(astray)} tensors that are not in their file, "
                f"first {astray[0]!r}",
                hint="The index belongs to other weight files; copy or fetch the directory again.",
            )
    return WeightFiles(directory, config, entries)
