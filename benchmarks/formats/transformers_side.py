"""Load evalq's compressed-tensors files with transformers and compare the logits with evalq's own.

python -m benchmarks.formats.transformers_side /tmp/formats-ct
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from benchmarks.formats.write import TOKENS, parent, trained
from evalq.artifacts.api import FORMATS
from evalq.artifacts.write import Contents, StoredTypes, write_model
from evalq.kernels.packing import QuantizedWeight
from evalq.models.load import load_artifact
from evalq.plan import EnginePlan
from evalq.schema import PerChannel, PerGroup, WeightScheme
from tests.artifacts.helpers import random_layers, tiny_tokenizer


def made(directory: Path, layers: dict[str, QuantizedWeight], activations: int | None) -> None:
    """Write one artifact of the parent."""
    directory.mkdir(parents=True)
    types = StoredTypes(torch.float16)
    contents = Contents(parent(), tiny_tokenizer(), layers, {}, activations, types)
    write_model(contents, FORMATS.get("compressed-tensors")(), directory)


def compared(directory: Path) -> str:
    """Relative errors of transformers' logits against evalq's in float32, by dtype."""
    errors = []
    with torch.no_grad():
        engine = EnginePlan(device="cpu", dtype="float32")
        ours = load_artifact(directory, engine).module(TOKENS).logits
        for dtype in (torch.float32, torch.bfloat16):
            peer = AutoModelForCausalLM.from_pretrained(directory, dtype=dtype)
            theirs = peer(TOKENS).logits.float()
            errors.append(f"{float((theirs - ours).norm() / ours.norm()):.2e}")
    return f"{directory.name}: float32 {errors[0]}, bfloat16 {errors[1]}"


def main(out: Path) -> None:
    """One line an artifact."""
    for bits in (2, 3, 4, 8):
        for symmetric in (True, False):
            scheme = WeightScheme(bits, PerGroup(32), symmetric)
            name = f"w{bits}-{'sym' if symmetric else 'asym'}"
            made(out / name, random_layers(parent(), scheme, torch.float16), None)
            made(out / f"{name}-trained", trained(scheme), None)
    channel = random_layers(parent(), WeightScheme(8, PerChannel()), torch.float16)
    made(out / "w8a8", channel, 8)
    for directory in sorted(out.iterdir()):
        print(compared(directory), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
