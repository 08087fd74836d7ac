"""In gptqmodel's environment: load evalq's artifacts, and quantize the parent in its own ways."""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")

import torch
from gptqmodel import BACKEND, GPTQModel, QuantizeConfig
from safetensors.torch import load_file, save_file

TOKENS = torch.arange(1, 33)[None]
OWN = {
    "g3": {"bits": 3, "group_size": 32, "desc_act": False, "sym": True},
    "g4": {"bits": 4, "group_size": 32, "desc_act": False, "sym": True},
    "g4-asym": {"bits": 4, "group_size": 32, "desc_act": False, "sym": False},
    "g4-desc_act": {"bits": 4, "group_size": 32, "desc_act": True, "sym": True},
    "awq": {"bits": 4, "group_size": 32, "quant_method": "awq", "format": "gemm"},
}


def logits(directory: Path) -> torch.Tensor:
    backend = BACKEND.TORCH_AWQ if directory.name.startswith("awq") else BACKEND.TORCH
    model = GPTQModel.load(str(directory), device="cpu", backend=backend)
    with torch.no_grad():
        return model.model(TOKENS).logits.float()


def main(out: Path) -> None:
    for directory in sorted(p for p in (out / "ours").iterdir() if p.is_dir()):
        ours = load_file(f"{directory}.logits")["logits"]
        error = float((logits(directory) - ours).norm() / ours.norm())
        print(f"{directory.name}: gptqmodel reads evalq's file, relative error {error:.4f}")
    generator = torch.Generator().manual_seed(0)
    text = [
        {
            "input_ids": torch.randint(1, 64, (48,), generator=generator).tolist(),
            "attention_mask": [1] * 48,
        }
        for _ in range(16)
    ]
    for name, settings in OWN.items():
        model = GPTQModel.load(str(out / "parent"), QuantizeConfig(**settings), device="cpu")
        model.quantize(text, batch_size=1)
        model.save(str(out / "theirs" / name))
        save_file({"logits": logits(out / "theirs" / name)}, out / "theirs" / f"{name}.logits")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
