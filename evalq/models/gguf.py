"""Loads a GGUF file: dequantized, and marked as what it is."""

from __future__ import annotations

import importlib.util
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from evalq.artifacts.identity import hash_file
from evalq.errors import MissingDependencyError, ParentError

__all__ = ["GgufModel", "load_gguf"]

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
    types, bytes_stored, parameters = _census(path)
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            path.parent, gguf_file=path.name, local_files_only=True
        )
        auto: Any = AutoModelForCausalLM
        module, info = auto.from_pretrained(
            path.parent,
            gguf_file=path.name,
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
    quantized = {name: count for name, count in types.items() if name not in _DENSE}
    return GgufModel(
        module=module,
        tokenizer=tokenizer,
        hash=hash_file(path),
        bits=8 * bytes_stored / parameters,
        parameters=parameters,
        gridded=bool(quantized),
        notes=(_note(path, quantized),) if quantized else (),
    )


def _note(path: Path, quantized: dict[str, int]) -> str:
    kinds = ", ".join(f"{count} {name}" for name, count in sorted(quantized.items()))
    return (
        f"The parent was dequantized from {path.name} ({kinds} tensors): its weights already lie "
        "on a quantization grid, and what the file's maker lost does not show here."
    )


def _census(path: Path) -> tuple[Counter[str], int, int]:
    """Tensors by type, bytes of all, and values of all."""
    from gguf import GGUFReader

    if not path.is_file():
        raise ParentError(f"no such parent: {path}", hint="Give the path of a GGUF file.")
    with path.open("rb") as file:
        magic = file.read(4)
    if magic != b"GGUF":
        raise ParentError(f"{path} is no GGUF file: it begins with {magic!r}")
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
    return types, total, values
