"""Sweep the settings of a distillation on one quantized start.

    python -m benchmarks.quality.sweep PARENT_DIR TEXTS OUT.jsonl --bits 4 --group 64 --asym \
        --method gptq --refine 2 --set 4,1e-3,0 --set 8,1e-3,1e-2

Each ``--set`` is ``epochs,scale_rate,code_rate[,windows]``. A line of OUT is one variant; the start
comes first. Several sweeps may append to one file.
"""

from __future__ import annotations

import argparse

from benchmarks.quality.ours import Ours, dense_tensors, scheme_of
from benchmarks.quality.rows import Scheduled
from evalq.quantize.api import quantize
from evalq.quantize.calibration import Calibration
from evalq.quantize.distill import DistillSettings, distill


def _settings(text: str) -> DistillSettings:
    epochs, scale_rate, code_rate, *rest = text.split(",")
    windows = int(rest[0]) if rest else 4
    return DistillSettings(int(epochs), windows, float(scale_rate), float(code_rate))


def sweep(given: argparse.Namespace) -> None:
    """Make the start, judge it, then judge each distillation of it."""
    job = Scheduled.of(given)
    recipe = Ours(given.method, {"refine": given.refine} if "gptq" in given.method else {})
    scheme = scheme_of(given.bits, given.group, not given.asym)
    calibration = Calibration.from_tokens(job.texts.calibration, "benchmarks.quality")
    with job.timed() as note:
        made = quantize(job.module, scheme, recipe.method, calibration, recipe.options)
    job.report(recipe.label, dense_tensors(made, made.layers), note)
    for text in given.set:
        settings = _settings(text)
        with job.timed() as note:
            done = distill(job.module, made.layers, made.dense, job.texts.calibration, settings)
        note["train"] = [round(done.before, 4), round(done.after, 4)]
        job.report(f"{recipe.label} + distill {text}", dense_tensors(made, done.layers), note)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    Scheduled.arguments(parser)
    parser.add_argument("--method", default="gptq")
    parser.add_argument("--refine", type=int, default=2)
    parser.add_argument("--set", action="append", default=[])
    sweep(parser.parse_args())


if __name__ == "__main__":
    main()
