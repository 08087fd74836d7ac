"""Read gptqmodel's files in evalq and compare the logits with its own."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

from benchmarks.formats.write import TOKENS
from evalq.models.load import load_artifact
from evalq.plan import EnginePlan


def main(out: Path) -> None:
    for directory in sorted(p for p in (out / "theirs").iterdir() if p.is_dir()):
        theirs = load_file(f"{directory}.logits")["logits"]
        model = load_artifact(directory, EnginePlan(device="cpu", dtype="float32"))
        with torch.no_grad():
            ours = model.module(TOKENS).logits
        error = float((ours - theirs).norm() / ours.norm())
        print(f"{directory.name}: evalq reads gptqmodel's file, relative error {error:.4f}")
        for note in model.source.notes:
            print(f"  {note}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
