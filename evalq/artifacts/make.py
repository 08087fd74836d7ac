"""From a parent to an artifact on disk: quantize, write, name by content."""

from __future__ import annotations

import glob
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import evalq
from evalq.artifacts.api import FORMATS, storage
from evalq.artifacts.base import Artifact, Encoder
from evalq.artifacts.check import check, loadable
from evalq.artifacts.files import read_json
from evalq.artifacts.identity import MANIFEST, hash_directory
from evalq.artifacts.write import (
    Contents,
    StoredTypes,
    replacing,
    stored_types,
    write_json,
    write_model,
)
from evalq.errors import ArtifactError, PlanError
from evalq.quantize.api import quantize
from evalq.quantize.calibration import Calibration, overlap_warning
from evalq.quantize.config import METHODS, resolve_options, skipped_parts
from evalq.quantize.layerstore import LayerStore, in_use
from evalq.quantize.linear import decoder_layers, linears, weight_shape
from evalq.quantize.peak import PeakMemory
from evalq.schema import PerGroup, Scheme, content_hash

if TYPE_CHECKING:
    from evalq.quantize.api import QuantizedModel

__all__ = ["make_artifact", "open_artifact", "recipe_of"]

MANIFEST_VERSION = 1


def _scheme_record(scheme: Scheme) -> dict[str, Any]:
    weights = scheme.weights
    grouped = isinstance(weights.granularity, PerGroup)
    return {
        "text": str(scheme),
        "bits": weights.bits,
        "group_size": weights.granularity.size
        if isinstance(weights.granularity, PerGroup) and grouped
        else None,
        "symmetric": weights.symmetric,
        "activation_bits": scheme.activation_bits,
        "kv_bits": scheme.kv_bits,
    }


def recipe_of(
    parent_hash: str,
    scheme: Scheme,
    method: str,
    calibration: Calibration | None,
    options: Mapping[str, Any],
    seed: int,
    format: str,
) -> dict[str, Any]:
    """All that decides an artifact's content, as JSON values; ``content_hash`` of it names it.

    Options are completed with their defaults. Calibration counts only for methods that use it.

    Raises:
        PlanError: no such method, option or format.
    """
    chosen = METHODS.get(method)
    FORMATS.get(format)
    used = calibration is not None and chosen.needs_calibration
    return {
        "evalq_version": evalq.__version__,
        "parent": parent_hash,
        "scheme": _scheme_record(scheme),
        "method": method,
        "calibration": calibration.hash if calibration is not None and used else None,
        "options": resolve_options(chosen, options),
        "seed": seed,
        "format": format,
    }


def open_artifact(path: Path, recipe_hash: str | None = None) -> Artifact:
    """An artifact that evalq made, after its content is verified.

    Args:
        path: the directory.
        recipe_hash: what it has to be made by; ``None`` takes any.

    Raises:
        ArtifactError: no manifest, another recipe, or content that is not what was written.
    """
    manifest_path = path / MANIFEST
    if not manifest_path.is_file():
        raise ArtifactError(
            f"{path} exists and was not made by evalq: it has no {MANIFEST}",
            hint="Write to another place.",
        )
    manifest = read_json(manifest_path)
    if not isinstance(manifest, dict) or "recipe_hash" not in manifest:
        raise ArtifactError(f"{manifest_path} is no manifest of evalq")
    if recipe_hash is not None and manifest["recipe_hash"] != recipe_hash:
        raise ArtifactError(
            f"{path} already holds another artifact: {manifest.get('name', 'of another recipe')}",
            hint="Write to another place, or remove that directory.",
        )
    found = hash_directory(path)
    if found != manifest.get("content_hash"):
        raise ArtifactError(
            f"{path} was changed after it was written: its content is {found[:12]}, its manifest "
            f"says {str(manifest.get('content_hash'))[:12]}",
            hint="Remove the directory and make it again.",
        )
    return Artifact(path, found, manifest, reused=True)


def make_artifact(
    parent: Any,
    scheme: Scheme,
    method: str,
    calibration: Calibration | None,
    options: Mapping[str, Any],
    seed: int,
    out: Path,
    progress: Callable[[str, float], None] | None = None,
    format: str = "compressed-tensors",
    record: Mapping[str, Any] | None = None,
) -> Artifact:
    """Quantize ``parent`` and write the artifact to ``out``.

    Work is skipped when ``out`` already holds an artifact of the same recipe whose content is
    intact. Everything is written to a sibling first, synced, and renamed: ``out`` is whole or
    absent.

    Args:
        parent: an ``evalq.models.base.LoadedModel`` (name, hash, module, tokenizer, source).
        scheme: how weights (and activations) are stored.
        method: name in ``METHODS``.
        calibration: text, for methods that need it.
        options: of the method; unset ones take their defaults.
        seed: for whatever the method draws.
        out: the directory to make; its parents are made too.
        progress: called with a layer's name and the share done.
        format: name in ``FORMATS``.
        record: what else the manifest is to say (how bits were allocated), as JSON values.

    Raises:
        PlanError: an unknown method, option or format, or a scheme that the format cannot hold.
        ArtifactError: ``out`` holds something else, or cannot be written.
        QuantizationError: as for ``evalq.quantize.api.quantize``.
    """
    if scheme.kv_bits is not None:
        raise PlanError(
            "a quantized KV cache is not stored in artifacts",
            hint="Leave kv_bits out of the variant.",
        )
    encoder = FORMATS.get(format)()
    if encoder.scale_dtype is not None:
        options = {"scale_dtype": encoder.scale_dtype, **options}
    recipe = recipe_of(parent.hash, scheme, method, calibration, options, seed, format)
    recipe_hash = content_hash(recipe)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        return open_artifact(out, recipe_hash)
    _refuse_early(parent.module, scheme, encoder, recipe["options"])
    types = stored_types(parent.source.path, parent.module)
    device = getattr(parent, "device", None)
    with PeakMemory(device) as peak, _layer_store(out, recipe_hash, device) as store:
        resumed = store.finished
        model = quantize(
            parent.module,
            scheme,
            method,
            calibration,
            options,
            seed,
            progress,
            stored=types.main,
            store=store,
            device=device,
        )
        contents = Contents(
            module=parent.module,
            tokenizer=parent.tokenizer,
            layers=model.layers,
            dense=model.dense,
            activation_bits=scheme.activation_bits,
            types=types,
            source=parent.source.path if parent.source.path.is_dir() else None,
            experts=model.experts,
        )
        manifest = _manifest(parent, model, recipe, types, format)
        manifest |= {"recipe_hash": recipe_hash, "resumed_at_layer": resumed or None}
        return _write(contents, encoder, manifest, out, peak)


def _layer_store(out: Path, recipe_hash: str, device: Any) -> LayerStore:
    """Where finished layers of this recipe lie; those of other recipes for ``out`` are removed."""
    start = f".{out.name}.layers-"
    home = out.parent / f"{start}{recipe_hash[:16]}"
    for stale in out.parent.glob(f"{glob.escape(start)}*"):
        if stale != home and not in_use(stale):
            shutil.rmtree(stale, ignore_errors=True)
    # Other hardware and other versions round differently: half of one and half of the other would
    # be neither.
    return LayerStore(home, content_hash([recipe_hash, torch.__version__, str(device)]))


def _write(
    contents: Contents, encoder: Encoder, manifest: dict[str, Any], out: Path, peak: PeakMemory
) -> Artifact:
    """Write everything under ``out``, whole or not at all."""
    with replacing(out) as temporary:
        write_model(contents, encoder, temporary)
        digest = hash_directory(temporary)
        manifest |= {
            "content_hash": digest,
            "storage": asdict(storage(temporary)),
            # Reads everything back, too: nothing gets its name before it was seen to be sound.
            "engines": _engines(temporary),
            "memory": peak.record(),
        }
        write_json(temporary / MANIFEST, manifest)
    return Artifact(out, digest, manifest)


def _refuse_early(
    module: Any, scheme: Scheme, encoder: Encoder, options: Mapping[str, Any]
) -> None:
    """Refuse what the format cannot hold before hours are spent on making it.

    Raises:
        PlanError: as for ``Encoder.refuse``.
    """
    skip = skipped_parts(options)
    name, layers = decoder_layers(module)
    for index, layer in enumerate(layers):
        for part, linear in linears(layer):
            full = f"{name}.{index}.{part}"
            if any(word in full for word in skip):
                continue
            shape = weight_shape(linear)
            # A group size that does not divide is the quantizer's to report: it names sizes that
            # fit the whole model.
            if not _divides(scheme, shape[1]):
                continue
            encoder.refuse(full, scheme.weights, shape, scheme.activation_bits)


def _divides(scheme: Scheme, columns: int) -> bool:
    granularity = scheme.weights.granularity
    return not isinstance(granularity, PerGroup) or columns % granularity.size == 0


def _engines(directory: Path) -> dict[str, Any]:
    """Which engines load what was just written, and why not.

    Raises:
        ArtifactError: what was written cannot be read back.
    """
    findings = check(directory)
    broken = [f for f in findings if f.engine == "files" and f.severity == "error"]
    if broken:
        raise ArtifactError(f"what was written cannot be read back: {broken[0].message}")
    refusals = {f.engine: f.message for f in findings if f.severity == "error"}
    return {
        engine: {"loads": loads, "why": refusals.get(engine, "")}
        for engine, loads in loadable(findings).items()
    }


def _manifest(
    parent: Any, model: QuantizedModel, recipe: dict[str, Any], types: StoredTypes, format: str
) -> dict[str, Any]:
    warnings = list(model.warnings)
    overlap = overlap_warning(model.calibration)
    if overlap:
        warnings.append(overlap)
    if parent.source.kind == "gguf":
        warnings.append(
            f"The parent's values come from a GGUF file; unquantized tensors are stored as "
            f"{str(types.main).removeprefix('torch.')}."
        )
    return {
        "format_version": MANIFEST_VERSION,
        "evalq_version": evalq.__version__,
        "name": f"{parent.name}-{model.method}-{model.scheme}",
        "parent": {"name": parent.name, "hash": parent.hash, "source": parent.source.kind},
        "method": model.method,
        "scheme": recipe["scheme"],
        "format": format,
        "options": recipe["options"],
        "seed": model.seed,
        "calibration": None if model.calibration is None else dict(model.calibration),
        "warnings": warnings,
        "layers": [
            {**asdict(report), "bits": model.layers[report.name].scheme.bits}
            for report in model.reports
        ],
        **model.details,
        "seconds": model.seconds,
    }
