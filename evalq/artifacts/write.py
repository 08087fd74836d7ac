"""Writing a model directory: shards, configuration and tokenizer, whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from evalq.artifacts.base import Encoder
from evalq.artifacts.files import open_files
from evalq.artifacts.naming import checkpoint_layers, checkpoint_names, stacked_names
from evalq.errors import ArtifactError, NonFiniteError, QuantizationError
from evalq.kernels.packing import QuantizedWeight
from evalq.quantize.tensorfile import TensorWriter

__all__ = ["Contents", "StoredTypes", "replacing", "stored_types", "write_model"]

_SHARD_BYTES = 4 * 10**9
_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True, slots=True)
class StoredTypes:
    """In what dtype each tensor of a parent is stored.

    Args:
        main: dtype that most of its bytes have; scales are stored in it.
        by_name: of single tensors.
    """

    main: torch.dtype
    by_name: Mapping[str, torch.dtype] = field(default_factory=dict)

    def of(self, name: str) -> torch.dtype:
        """The dtype to store a tensor in."""
        return self.by_name.get(name, self.main)


def stored_types(path: Path, module: nn.Module) -> StoredTypes:
    """The dtypes of a parent's own files, whatever dtype it was loaded in.

    A parent that is no safetensors directory (GGUF: its values were dequantized) is stored as
    float16, or as its own dtype when that is a half-precision one.

    Raises:
        ArtifactError: a directory that cannot be read.
    """
    if path.is_dir():
        sizes: dict[torch.dtype, int] = {}
        names = {}
        for name, entry in open_files(path).items():
            dtype = _DTYPES.get(entry.dtype)
            if dtype is not None:
                names[name] = dtype
                sizes[dtype] = sizes.get(dtype, 0) + entry.bytes
        if sizes:
            return StoredTypes(max(sizes, key=lambda d: sizes[d]), names)
    loaded = next(p.dtype for p in module.parameters() if p.is_floating_point())
    return StoredTypes(torch.float16 if loaded == torch.float32 else loaded)


@dataclass(frozen=True, slots=True)
class Contents:
    """What is to be written.

    Args:
        module: the transformers model that quantization started from.
        tokenizer: saved beside it; ``None`` saves none.
        layers: quantized linear layers by module name.
        dense: tensors that differ from the module's (norms that scales were folded into), by name
            in its state dict.
        activation_bits: of the inputs of all quantized layers.
        types: dtypes to store in.
        source: the parent's own directory, for its ``generation_config.json``.
        experts: modules whose stacked experts are in ``layers`` one by one.
    """

    module: Any
    tokenizer: Any
    layers: Mapping[str, QuantizedWeight]
    dense: Mapping[str, Tensor]
    activation_bits: int | None
    types: StoredTypes
    source: Path | None = None
    experts: tuple[str, ...] = ()


def write_model(contents: Contents, encoder: Encoder, directory: Path) -> None:
    """Write weights, configuration and tokenizer into an existing, empty directory.

    Raises:
        ArtifactError: the disk is full or read-only.
        PlanError: a layer that the format cannot hold.
        QuantizationError: a layer or tensor that the model does not have.
        NonFiniteError: a tensor that is NaN or infinite, or becomes so in the stored dtype.
    """
    layers, covered = checkpoint_layers(contents.module, contents.layers, contents.experts)
    for name, weight in layers.items():
        encoder.refuse(name, weight.scheme, weight.shape, contents.activation_bits)
    untied = _untied(contents)
    try:
        _write_shards(_tensors(contents, encoder, layers, covered, untied), directory)
        _write_config(contents, encoder, layers, covered, bool(untied), directory)
        if contents.tokenizer is not None:
            contents.tokenizer.save_pretrained(directory)
        for path in directory.iterdir():
            _sync(path)
    except (OSError, SafetensorError) as error:
        raise ArtifactError(
            f"cannot write {directory.parent}: {getattr(error, 'strerror', None) or error}",
            hint="Free some space, or write to another place.",
        ) from None


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _untied(contents: Contents) -> set[str]:
    """Tied names that have values of their own now, so that the model is tied no longer."""
    tied: Mapping[str, str] = getattr(contents.module, "all_tied_weights_keys", None) or {}
    if not getattr(contents.module.config, "tie_word_embeddings", False):
        return set()
    changed = set(contents.dense) | {f"{layer}.weight" for layer in contents.layers}
    loose = set()
    for name, origin in tied.items():
        if name in contents.dense and origin in contents.dense:
            same = torch.equal(contents.dense[name], contents.dense[origin])
        else:
            same = name not in changed and origin not in changed
        if not same:
            loose.add(name)
    return loose


def _tensors(
    contents: Contents,
    encoder: Encoder,
    layers: Mapping[str, QuantizedWeight],
    covered: set[str],
    untied: set[str],
) -> Iterator[tuple[str, Tensor]]:
    from transformers.core_model_loading import revert_weight_conversion

    state = contents.module.state_dict()
    unknown = sorted(set(contents.dense) - set(state))
    if unknown:
        raise QuantizationError(f"the model has no tensor {unknown[0]!r} to store")
    tied = set(getattr(contents.module, "all_tied_weights_keys", None) or {})
    kept = {
        name: contents.dense.get(name, tensor)
        for name, tensor in state.items()
        if name not in covered and not (name in tied and name not in untied and _is_tied(contents))
    }
    for name, tensor in sorted(revert_weight_conversion(contents.module, kept).items()):
        yield name, _stored(name, tensor, contents.types)
    for layer, weight in layers.items():
        yield from encoder.encode(layer, weight, contents.activation_bits).items()


def _is_tied(contents: Contents) -> bool:
    return bool(getattr(contents.module.config, "tie_word_embeddings", False))


def _stored(name: str, tensor: Tensor, types: StoredTypes) -> Tensor:
    tensor = tensor.detach().to("cpu")
    if tensor.is_floating_point():
        tensor = tensor.to(types.of(name))
        if not bool(torch.isfinite(tensor).all()):
            raise NonFiniteError(f"{name} holds a NaN or an infinity as {tensor.dtype}")
    return tensor


def _write_shards(tensors: Iterator[tuple[str, Tensor]], directory: Path) -> None:
    shards: list[dict[str, int]] = []
    left = next(tensors, None)
    while left is not None:
        with TensorWriter(directory / f"part-{len(shards)}.safetensors") as writer:
            while left is not None:
                name, tensor = left
                if writer.bytes and writer.bytes + tensor.nbytes > _SHARD_BYTES:
                    break
                writer.add(name, tensor)
                left = next(tensors, None)
            writer.finish()
            shards.append(writer.sizes)
    if len(shards) == 1:
        (directory / "part-0.safetensors").rename(directory / "model.safetensors")
        return
    weight_map: dict[str, str] = {}
    for index, shard in enumerate(shards):
        final = f"model-{index + 1:05d}-of-{len(shards):05d}.safetensors"
        (directory / f"part-{index}.safetensors").rename(directory / final)
        weight_map |= dict.fromkeys(shard, final)
    total = sum(sum(shard.values()) for shard in shards)
    content = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    write_json(directory / "model.safetensors.index.json", content)


def _write_config(
    contents: Contents,
    encoder: Encoder,
    layers: Mapping[str, QuantizedWeight],
    covered: set[str],
    untied: bool,
    directory: Path,
) -> None:
    module = contents.module
    module.config.save_pretrained(directory)
    path = directory / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    for key in ("_name_or_path", "torch_dtype", "quantization_config"):
        config.pop(key, None)
    config["dtype"] = str(contents.types.main).removeprefix("torch.")
    config["architectures"] = [type(module).__name__]
    if untied:
        config["tie_word_embeddings"] = False
    if contents.layers:
        left = [
            name
            for name, part in module.named_modules()
            if isinstance(part, nn.Linear) and name not in contents.layers
        ]
        # transformers matches these names with those of its modules, vLLM with the checkpoint's.
        names = [*left, *checkpoint_names(module, left).values(), *stacked_names(module, covered)]
        plain = tuple(dict.fromkeys(names))
        schemes = {layer: weight.scheme for layer, weight in layers.items()}
        schemes |= {layer: weight.scheme for layer, weight in contents.layers.items()}
        config["quantization_config"] = encoder.settings(schemes, plain, contents.activation_bits)
    write_json(path, config)
    generation = None if contents.source is None else contents.source / "generation_config.json"
    if generation is not None and generation.is_file():
        shutil.copyfile(generation, directory / generation.name)


def write_json(path: Path, content: Any) -> None:
    """Write JSON, sorted and indented, with a newline at the end."""
    text = json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")


@contextmanager
def replacing(out: Path) -> Iterator[Path]:
    """A temporary sibling of ``out`` that becomes ``out`` when the block ends without an error.

    What is written lies under ``out`` whole or not at all; an error removes the sibling. Siblings
    that a killed process left are removed first.

    Raises:
        ArtifactError: ``out`` cannot be made there.
    """
    temporary = out.parent / f".{out.name}.partial-{os.getpid()}"
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        for stale in out.parent.glob(f".{out.name}.partial-*"):
            if not _alive(stale.name.rpartition("-")[2]) or stale == temporary:
                shutil.rmtree(stale)
        temporary.mkdir()
    except OSError as error:
        raise ArtifactError(
            f"cannot write {out}: {error.strerror}",
            hint="Free some space, or write to another place.",
        ) from None
    try:
        yield temporary
        _sync(temporary)
        temporary.rename(out)
        _sync(out.parent)
    except OSError as error:
        raise ArtifactError(f"cannot write {out}: {error.strerror}") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _alive(pid: str) -> bool:
    try:
        os.kill(int(pid), 0)
    except (ValueError, ProcessLookupError):
        return False
    except PermissionError:
        return True
    return True
