"""What a peer left, as dense tensors by parameter name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from evalq.artifacts.api import read


def directory_of(out: Path) -> Path:
    """The folder with the model in it: ``out`` itself or the one below it that has a config."""
    found = sorted(out.rglob("config.json"))
    if len(found) != 1:
        raise SystemExit(f"{out} holds {len(found)} models, not one")
    return found[0].parent


def tensors(out: Path, fake: bool) -> dict[str, Tensor]:
    """Parameters of the model in ``out``, dequantized by evalq's readers.

    Args:
        out: what a script of ``peers`` left.
        fake: the weights are dense already, rounded to the grid by the tool itself.
    """
    place = directory_of(out)
    if fake:
        dense: dict[str, Tensor] = {}
        for file in sorted(place.glob("*.safetensors")):
            dense |= load_file(file)
        return dense
    stored = read(place)
    found = dict(stored.dense)
    for name, weight in stored.layers.items():
        found[f"{name}.weight"] = weight.dequantize()
    return found


def made(out: Path) -> dict[str, Any]:
    """Tool, version, settings and seconds."""
    record: dict[str, Any] = json.loads((out / "made.json").read_text(encoding="utf-8"))
    return record
