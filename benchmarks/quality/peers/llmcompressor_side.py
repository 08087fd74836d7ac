"""llm-compressor's GPTQ and AWQ on given tokens, in an environment that holds llm-compressor.

    python llmcompressor_side.py PARENT_DIR TEXTS OUT_DIR \
        '{"method": "gptq", "bits": 4, "group": 64, "symmetric": false, "observer": "mse"}'

Leaves a compressed-tensors directory and ``made.json`` beside the weights.
"""

from __future__ import annotations

import importlib.metadata
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from llmcompressor import oneshot
from llmcompressor.modifiers.gptq import GPTQModifier
from llmcompressor.modifiers.quantization import QuantizationModifier
from llmcompressor.modifiers.transform.awq import AWQModifier
from safetensors.torch import load_file
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, AutoTokenizer


def recipe(given: dict[str, Any]) -> list[Any]:
    """Modifiers of the method; all linear layers but the head."""
    weights = QuantizationArgs(
        num_bits=given["bits"],
        type="int",
        symmetric=given["symmetric"],
        strategy="group",
        group_size=given["group"],
        observer=given.get("observer", "mse"),
    )
    groups = {"group_0": QuantizationScheme(targets=["Linear"], weights=weights)}
    common = {"config_groups": groups, "ignore": ["lm_head"]}
    if given["method"] == "gptq":
        return [GPTQModifier(actorder="static", dampening_frac=0.01, **common)]
    return [
        AWQModifier(duo_scaling=given.get("duo_scaling", "both"), n_grid=20),
        QuantizationModifier(**common),
    ]


def main(parent: Path, texts: Path, out: Path, given: dict[str, Any]) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    module = AutoModelForCausalLM.from_pretrained(parent, dtype="auto").to(device)
    tokenizer = AutoTokenizer.from_pretrained(parent)
    rows = load_file(texts)["calibration"]
    tokens = [{"input_ids": r, "attention_mask": torch.ones_like(r)} for r in rows]
    begin = time.monotonic()
    oneshot(
        model=module,
        tokenizer=tokenizer,
        dataset=DataLoader(tokens, batch_size=1),
        recipe=recipe(given),
        num_calibration_samples=len(tokens),
        max_seq_length=rows.shape[1],
    )
    seconds = time.monotonic() - begin
    module.save_pretrained(out, save_compressed=True)
    tokenizer.save_pretrained(out)
    record = {
        "tool": "llm-compressor",
        "version": importlib.metadata.version("llmcompressor"),
        "settings": given,
        "seconds": round(seconds, 1),
    }
    (out / "made.json").write_text(json.dumps(record), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), json.loads(sys.argv[4]))
