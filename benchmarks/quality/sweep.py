"""Sweep the settings of a distillation on one quantized start.

    python -m benchmarks.quality.sweep PARENT_DIR TEXTS OUT.jsonl --bits 4 --group 64 --asym \
        --method gptq --refine 2 --set 4,1e-3,0 --set 8,1e-3,1e-2

Each ``--set`` is ``epochs,scale_rate,code_rate[,windows]``. A line of OUT is one variant; the start
comes first. Several sweeps may append to one file.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks.quality import texts as stored
from benchmarks.quality.evaluate import Judge
from benchmarks.quality.ours import Ours, dense_tensors, scheme_of
from evalq.quantize.api import quantize
from evalq.quantize.calibration import Calibration
from evalq.quantize.distill import DistillSettings, distill


def load(directory: Path, device: str) -> Any:
    """The parent in its own dtype."""
    from transformers import AutoModelForCausalLM

    module: Any = AutoModelForCausalLM.from_pretrained(
        directory, local_files_only=True, dtype="auto"
    )
    return module.to(device).eval().requires_grad_(False)


def _settings(text: str) -> DistillSettings:
    epochs, scale_rate, code_rate, *rest = text.split(",")
    windows = int(rest[0]) if rest else 4
    return DistillSettings(int(epochs), windows, float(scale_rate), float(code_rate))


def sweep(given: argparse.Namespace) -> None:
    """Make the start, judge it, then judge each distillation of it."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    module = load(given.parent, device)
    texts = stored.read(given.texts)
    given.name = str(texts.record["parent"])
    judge = Judge(module, {"near": texts.near, "other": texts.other})
    recipe = Ours(given.method, {"refine": given.refine} if "gptq" in given.method else {})
    scheme = scheme_of(given.bits, given.group, not given.asym)
    begin = time.monotonic()
    calibration = Calibration.from_tokens(texts.calibration, "benchmarks.quality")
    made = quantize(module, scheme, recipe.method, calibration, recipe.options)
    note = {"seconds": round(time.monotonic() - begin, 1)}
    _report(given, judge, recipe.label, dense_tensors(made, made.layers), note)
    for text in given.set:
        settings = _settings(text)
        begin = time.monotonic()
        done = distill(module, made.layers, made.dense, texts.calibration, settings)
        note = {
            "seconds": round(time.monotonic() - begin, 1),
            "train": [round(done.before, 4), round(done.after, 4)],
        }
        label = f"{recipe.label} + distill {text}"
        _report(given, judge, label, dense_tensors(made, done.layers), note)


def _report(
    given: argparse.Namespace, judge: Judge, label: str, tensors: Any, note: dict[str, Any]
) -> None:
    found = judge.judge(judge.variant(tensors))
    side = "asym" if given.asym else "sym"
    row: dict[str, Any] = {
        "parent": given.name,
        "scheme": f"w{given.bits}-g{given.group}-{side}",
        "tool": "evalq",
        "label": f"evalq {label}",
        **note,
    }
    row |= {name: asdict(quality) for name, quality in found.items()}
    with given.out.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
    kl = "  ".join(f"{name} {q.kl:.4f}" for name, q in found.items())
    print(f"{row['scheme']:12} {label:60} {kl}  {json.dumps(note)}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parent", type=Path)
    parser.add_argument("texts", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--bits", type=int, required=True)
    parser.add_argument("--group", type=int, required=True)
    parser.add_argument("--asym", action="store_true")
    parser.add_argument("--method", default="gptq")
    parser.add_argument("--refine", type=int, default=2)
    parser.add_argument("--set", action="append", default=[])
    sweep(parser.parse_args())


if __name__ == "__main__":
    main()
