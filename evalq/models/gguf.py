"""Loads a GGUF file: dequantized, and marked as what it is."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from evalq.artifacts.files import open_files
from evalq.artifacts.identity import hash_file
from evalq.errors import ArtifactError, MissingDependencyError, ParentError
from evalq.models.quiet import quiet
from evalq.models.sources import kept_conversion

__all__ = ["GgufModel", "load_gguf"]

_CENSUS = "evalq-gguf.json"
_DENSE = {"F32", "F16", "BF16", "F64"}


@dataclass(frozen=True, slots=True)
class GgufModel:
    """A GGUF file in memory.

    Args:
        module: the dequantized model.
        tokenizer: with its chat template, where the file has one.
        hash: SHA-256 of the file.
        bits: 8 * bytes of the stored tensors / parameters.
        parameters: values of the stored tensors.
        gridded: some tensors are quantized.
        notes: what reports have to say.
    """

    module: PreTrainedModel
    tokenizer: Any
    hash: str
    bits: float
    parameters: int
    gridded: bool
    notes: tuple[str, ...]


def load_gguf(path: Path, dtype: torch.dtype, attention: str) -> GgufModel:
    """Load a GGUF file through transformers, whose dequantization is that of the gguf package.

    That takes half a minute for the smallest models, so the float32 values are kept as safetensors
    in a cache of the user's (``EVALQ_CACHE``, else ``XDG_CACHE_HOME/evalq``, else
    ``~/.cache/evalq``), by content hash. Where it cannot be written, the file is read again.

    Args:
        path: the file.
        dtype: to compute in; the values are dequantized in float32 and rounded once.
        attention: transformers' attention implementation.

    Raises:
        ParentError: no such file, no GGUF, a truncated one, or an architecture that transformers
            does not read from GGUF files.
        MissingDependencyError: the packages that read it are not installed.
    """
    for package in ("gguf", "accelerate"):
        if importlib.util.find_spec(package) is None:
            raise MissingDependencyError(
                f"a GGUF file needs the package {package}", hint=f"pip install {package}"
            )
    _check_magic(path)
    digest = hash_file(path)
    place = kept_conversion(path, digest)
    with quiet():
        census = _read_kept(place) or _convert(path, place)
        if _read_kept(place) is not None:
            source: dict[str, Any] = {"pretrained_model_name_or_path": place}
        else:
            source = {"pretrained_model_name_or_path": path.parent, "gguf_file": path.name}
        module, tokenizer = _load(path, source, dtype, attention)
    types: dict[str, int] = census["types"]
    quantized = {name: count for name, count in types.items() if name not in _DENSE}
    return GgufModel(
        module=module,
        tokenizer=tokenizer,
        hash=digest,
        bits=8 * census["bytes"] / census["parameters"],
        parameters=census["parameters"],
        gridded=bool(quantized),
        notes=(_note(path, quantized),) if quantized else (),
    )


def _load(
    path: Path, source: dict[str, Any], dtype: torch.dtype, attention: str
) -> tuple[PreTrainedModel, Any]:
    auto: Any = AutoModelForCausalLM
    try:
        tokenizer = AutoTokenizer.from_pretrained(**source, local_files_only=True)
        module, info = auto.from_pretrained(
            **source,
            local_files_only=True,
            dtype=dtype,
            attn_implementation=attention,
            output_loading_info=True,
        )
    except (OSError, ValueError, KeyError, NotImplementedError, RuntimeError) as error:
        text = " ".join(str(error).split())
        raise ParentError(
            f"{path} cannot be loaded: {text[:300]}",
            hint="transformers reads only some architectures from GGUF files; give the model as a "
            "directory.",
        ) from error
    if info["missing_keys"] or info["mismatched_keys"]:
        lost = sorted(info["missing_keys"]) or [str(k) for k in info["mismatched_keys"]]
        raise ParentError(f"{path} lacks {len(lost)} tensors of the model: {', '.join(lost[:3])}")
    # It is a dense model from here on; what is written from it must not claim to be a GGUF file.
    for holder in (module.config, module):
        for name in ("quantization_config", "hf_quantizer", "quantization_method"):
            if getattr(holder, name, None) is not None:
                delattr(holder, name)
    module.is_quantized = False
    return module, tokenizer


def _read_kept(place: Path) -> dict[str, Any] | None:
    """The census of a conversion that is there and whole, else ``None``."""
    try:
        open_files(place)
        found: dict[str, Any] = json.loads((place / _CENSUS).read_text(encoding="utf-8"))
    except (ArtifactError, OSError, ValueError):
        return None
    return found


def _convert(path: Path, place: Path) -> dict[str, Any]:
    """Read the file, keep its values as safetensors where that is possible; returns the census."""
    census = _census(path)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        if shutil.disk_usage(place.parent).free < 8 * census["parameters"]:
            return census
        with tempfile.TemporaryDirectory(dir=place.parent, prefix=".partial-") as name:
            source = {"pretrained_model_name_or_path": path.parent, "gguf_file": path.name}
            module, tokenizer = _load(path, source, torch.float32, "sdpa")
            module.save_pretrained(name)
            tokenizer.save_pretrained(name)
            (Path(name) / _CENSUS).write_text(json.dumps(census), encoding="utf-8")
            shutil.rmtree(place, ignore_errors=True)
            os.rename(name, place)
            # The context manager removes what it made; an empty folder is left for it.
            os.mkdir(name)
    except OSError:
        # A cache is a convenience: without it the file itself is read.
        return census
    return census


def _note(path: Path, quantized: dict[str, int]) -> str:
    kinds = ", ".join(f"{count} {name}" for name, count in sorted(quantized.items()))
    return (
        f"The parent was dequantized from {path.name} ({kinds} tensors): its weights already lie "
        "on a quantization grid, and what the file's maker lost does not show here."
    )


def _check_magic(path: Path) -> None:
    if not path.is_file():
        raise ParentError(f"no such parent: {path}", hint="Give the path of a GGUF file.")
    with path.open("rb") as file:
        magic = file.read(4)
    if magic != b"GGUF":
        raise ParentError(f"{path} is no GGUF file: it begins with {magic!r}")


def _census(path: Path) -> dict[str, Any]:
    """``types``: tensors by type; ``bytes`` and ``parameters`` of all."""
    from gguf import GGUFReader

    try:
        reader = GGUFReader(path)
        types = Counter(str(t.tensor_type.name) for t in reader.tensors)
        total = sum(int(t.n_bytes) for t in reader.tensors)
        values = sum(int(t.n_elements) for t in reader.tensors)
    except (ValueError, IndexError, KeyError, UnicodeDecodeError, OverflowError) as error:
        raise ParentError(
            f"{path} is truncated or damaged: {error}",
            hint="Copy or fetch the file again; it was probably cut off on its way.",
        ) from None
    if not types:
        raise ParentError(f"{path} holds no tensors")
    return {"types": dict(types), "bytes": total, "parameters": values}
