"""AutoRound on given tokens, in an environment that holds auto-round.

    python autoround_side.py PARENT_DIR TEXTS OUT_DIR \
        '{"bits": 4, "group": 64, "symmetric": false, "iters": 200}'

Leaves a directory with dense weights, quantized and dequantized (AutoRound's format ``fake``), and
``made.json``.
"""

from __future__ import annotations

import importlib.metadata
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from auto_round import AutoRound
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer


def main(parent: Path, texts: Path, out: Path, given: dict[str, Any]) -> None:
    module = AutoModelForCausalLM.from_pretrained(parent, dtype=given.get("dtype", "auto"))
    tokenizer = AutoTokenizer.from_pretrained(parent)
    rows = load_file(texts)["calibration"]
    tokens = [{"input_ids": r, "attention_mask": torch.ones_like(r)} for r in rows.split(8)]
    begin = time.monotonic()
    rounder = AutoRound(
        module,
        tokenizer,
        scheme=f"W{given['bits']}A16",
        group_size=given["group"],
        sym=given["symmetric"],
        iters=given["iters"],
        dataset=tokens,
        nsamples=rows.shape[0],
        seqlen=rows.shape[1],
        batch_size=8,
        enable_minmax_tuning=True,
        device_map=0 if torch.cuda.is_available() else "cpu",
        seed=42,
    )
    rounder.quantize_and_save(str(out), format=given.get("format", "fake"))
    seconds = time.monotonic() - begin
    record = {
        "tool": "auto-round",
        "version": importlib.metadata.version("auto-round"),
        "settings": given,
        "seconds": round(seconds, 1),
    }
    (out / "made.json").write_text(json.dumps(record), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), json.loads(sys.argv[4]))
