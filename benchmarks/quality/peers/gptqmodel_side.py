"""GPTQModel's GPTQ on given tokens, in an environment that holds gptqmodel.

    python gptqmodel_side.py PARENT_DIR TEXTS OUT_DIR \
        '{"bits": 4, "group": 64, "symmetric": true, "desc_act": false, "mse": 0.0}'

Leaves a GPTQ directory and ``made.json``.
"""

from __future__ import annotations

import importlib.metadata
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from gptqmodel import GPTQModel, QuantizeConfig
from safetensors.torch import load_file


def main(parent: Path, texts: Path, out: Path, given: dict[str, Any]) -> None:
    options = {k: v for k, v in given.items() if k not in ("bits", "group", "symmetric")}
    config = QuantizeConfig(
        bits=given["bits"], group_size=given["group"], sym=given["symmetric"], **options
    )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = GPTQModel.load(str(parent), config, device=device)
    rows = load_file(texts)["calibration"].tolist()
    tokens = [{"input_ids": r, "attention_mask": [1] * len(r)} for r in rows]
    begin = time.monotonic()
    model.quantize(tokens, batch_size=4)
    seconds = time.monotonic() - begin
    model.save(str(out))
    record = {
        "tool": "gptqmodel",
        "version": importlib.metadata.version("gptqmodel"),
        "settings": given,
        "seconds": round(seconds, 1),
    }
    (out / "made.json").write_text(json.dumps(record), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), json.loads(sys.argv[4]))
