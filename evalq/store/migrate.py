"""``run.json`` of older formats, brought up to this one's, step by step, in memory.

Version 2 adds to version 1 the parent's ``config`` (what its KV cache follows from) and, for
variants whose layers differ in bits, ``layers`` and ``sensitivity``. Both were only in the
artifacts before; where those are still in the run directory, they are read from there.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from evalq.errors import StoreError
from evalq.memory import shape_config
from evalq.schema import FORMAT_VERSION
from evalq.store.layers import layer_record

__all__ = ["migrate"]

_MANIFEST = "evalq-manifest.json"


def _artifact_file(run: Path, entry: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A JSON file of a variant's artifact, where that lies in the run directory."""
    folder = Path(str(entry.get("path") or "")).name
    try:
        found = json.loads((run / "artifacts" / folder / name).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if folder and isinstance(found, dict) else {}


def _entries(info: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    listed = info.get("variants")
    return [e for e in listed if isinstance(e, Mapping)] if isinstance(listed, list) else []


def _from_1(info: Mapping[str, Any], run: Path) -> dict[str, Any]:
    out = {**info}
    configs = (_artifact_file(run, entry, "config.json") for entry in _entries(info))
    config = next((c for c in configs if c), None)
    if config is not None and isinstance(info.get("parent"), Mapping):
        out["parent"] = {**info["parent"], "config": shape_config(config)}
    if "variants" in info:
        out["variants"] = [
            {**entry, **layer_record(_artifact_file(run, entry, _MANIFEST))}
            for entry in _entries(info)
        ]
    return out


_STEPS: Mapping[int, Callable[[Mapping[str, Any], Path], dict[str, Any]]] = {1: _from_1}
"""From a version to the next."""


def migrate(info: Mapping[str, Any], run: Path) -> dict[str, Any]:
    """``info`` as this version writes it.

    Args:
        info: the content of ``run.json``, of this version or an older one.
        run: the run directory.

    Raises:
        StoreError: a version that no step starts from.
    """
    out = dict(info)
    while out["format_version"] != FORMAT_VERSION:
        version = out["format_version"]
        step = _STEPS.get(version)
        if step is None:
            raise StoreError(
                f"{run} has format version {version}, which this evalq cannot read",
                hint="It is no version that was ever written.",
            )
        out = {**step(out, run), "format_version": version + 1}
    return out
