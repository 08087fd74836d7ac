"""What an artifact's manifest says of its layers, kept small enough for ``run.json``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

__all__ = ["layer_record"]

_NUMBERS = ("bits", "weight_error", "output_error")


def _number(value: Any) -> float | None:
    plain = isinstance(value, (int, float)) and not isinstance(value, bool)
    return float(value) if plain and math.isfinite(value) else None


def layer_record(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The layers of an artifact whose bits differ between layers; empty for any other.

    Returns:
        ``{"layers": [{"name", "bits", "weight_error", "output_error"}…], "sensitivity": {layer:
        {bits: value}}}``; errors that were not recorded are ``None``. A manifest of another shape,
        such as a peer's, gives an empty record.
    """
    listed = manifest.get("layers")
    layers = []
    for entry in listed if isinstance(listed, list) else []:
        if not isinstance(entry, Mapping) or _number(entry.get("bits")) is None:
            continue
        numbers = {key: _number(entry.get(key)) for key in _NUMBERS}
        layers.append({"name": str(entry.get("name", "")), **numbers})
    if len({layer["bits"] for layer in layers}) < 2:
        return {}
    out: dict[str, Any] = {"layers": layers}
    given = manifest.get("sensitivity")
    sensitivity = {}
    for name, values in given.items() if isinstance(given, Mapping) else ():
        if isinstance(values, Mapping):
            found = {str(b): _number(v) for b, v in values.items()}
            sensitivity[str(name)] = {b: v for b, v in found.items() if v is not None}
    if sensitivity:
        out["sensitivity"] = sensitivity
    return out
