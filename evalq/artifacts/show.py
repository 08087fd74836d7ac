"""What is in an artifact, for people and for machines."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from evalq.artifacts.api import read, storage
from evalq.artifacts.files import read_json
from evalq.artifacts.identity import MANIFEST, hash_directory
from evalq.schema import PerGroup

__all__ = ["describe"]


def describe(directory: Path) -> dict[str, Any]:
    """The content of a model directory as JSON values.

    Returns:
        ``path``, ``hash``, ``format``, ``architecture``, ``dtype``, ``storage`` (as ``Storage``),
        ``schemes`` (each with its number of layers and weights), ``activation_bits``, ``layers``
        (name, scheme, shape), ``notes`` and ``manifest`` (``None`` where evalq did not write it).

    Raises:
        ArtifactError: as for ``read``.
    """
    stored = read(directory)
    schemes: dict[str, dict[str, Any]] = {}
    for weight in stored.layers.values():
        granularity = weight.scheme.granularity
        entry = schemes.setdefault(
            str(weight.scheme),
            {
                "scheme": str(weight.scheme),
                "bits": weight.scheme.bits,
                "group_size": granularity.size if isinstance(granularity, PerGroup) else None,
                "symmetric": weight.scheme.symmetric,
                "layers": 0,
                "weights": 0,
            },
        )
        entry["layers"] += 1
        entry["weights"] += weight.shape[0] * weight.shape[1]
    manifest = directory / MANIFEST
    return {
        "path": str(directory),
        "hash": hash_directory(directory),
        "format": stored.format,
        "architecture": (stored.config.get("architectures") or [None])[0],
        "dtype": stored.config.get("dtype") or stored.config.get("torch_dtype"),
        "storage": asdict(storage(directory)),
        "schemes": [schemes[name] for name in sorted(schemes)],
        "activation_bits": sorted(set(stored.activation_bits.values())),
        "layers": [
            {"name": name, "scheme": str(weight.scheme), "shape": list(weight.shape)}
            for name, weight in sorted(stored.layers.items())
        ],
        "notes": list(stored.notes),
        "manifest": read_json(manifest) if manifest.is_file() else None,
    }
