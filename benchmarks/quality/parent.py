"""Save a parent as a plain transformers directory in bfloat16, which every tool reads.

    python -m benchmarks.quality.parent smollm2 OUT_DIR
    python -m benchmarks.quality.parent FILE.gguf OUT_DIR

What the tools are compared on is this directory, whatever the parent was stored in before.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from evalq.models.load import load_parent
from evalq.plan import EnginePlan


def save(spec: str, out: Path) -> None:
    """Write model and tokenizer of ``spec`` into ``out``."""
    loaded = load_parent(spec, EnginePlan(device="cpu", dtype="float32"))
    module = loaded.module.to(torch.bfloat16)
    module.config.dtype = torch.bfloat16
    module.save_pretrained(out)
    loaded.tokenizer.save_pretrained(out)


if __name__ == "__main__":
    save(sys.argv[1], Path(sys.argv[2]))
