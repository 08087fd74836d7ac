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
    """Relative errors of transformers' logits: in the same dtype, and in bfloat16 to float32."""
    logits = {}
    with torch.no_grad():
        for name in ("float32", "bfloat16"):
            model = load_artifact(directory, EnginePlan(device="cpu", dtype=name)).module
            logits["ours", name] = model(TOKENS).logits.float()
            peer = AutoModelForCausalLM.from_pretrained(directory, dtype=getattr(torch, name))
            logits["theirs", name] = peer(TOKENS).logits.float()
    pairs = (("float32", "float32"), ("bfloat16", "bfloat16"), ("float32", "bfloat16"))
    words = []
    for mine, its in pairs:
        ours = logits["ours", mine]
        error = float((logits["theirs", its] - ours).norm() / ours.norm())
        words.append(f"{its} to our {mine} {error:.2e}")
    return f"{directory.name}: {', '.join(words)}"


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
