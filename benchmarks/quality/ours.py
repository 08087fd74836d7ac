"""evalq's own variants: what is tried, made and judged one after another.

python -m benchmarks.quality.ours PARENT_DIR TEXTS OUT.jsonl --bits 4 --group 64 --asym
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from benchmarks.quality.rows import Scheduled
from evalq.quantize.api import QuantizedModel, quantize
from evalq.quantize.calibration import Calibration
from evalq.schema import PerGroup, Scheme, WeightScheme

__all__ = ["OURS", "Ours", "dense_tensors", "make", "scheme_of"]


@dataclass(frozen=True, slots=True)
class Ours:
    """A method with the options that are not its defaults."""

    method: str
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """``evalq gptq refine=2``."""
        return " ".join(["evalq", self.method, *(f"{k}={v}" for k, v in self.options.items())])


OURS = (
    Ours("gptq", {"refine": 0}),
    Ours("gptq", {"refine": 2}),
    Ours("gptq", {"refine": 4}),
    Ours("awq+gptq", {"refine": 2}),
    Ours("gptq+kd", {"epochs": 2}),
    Ours("gptq+kd", {"epochs": 8}),
    Ours("gptq+signround", {"rounding_steps": 200}),
    Ours("gptq+signround+kd", {"rounding_steps": 200, "epochs": 4}),
    Ours("gptq+signround+kd", {"rounding_steps": 600, "epochs": 8}),
)


def scheme_of(bits: int, group: int, symmetric: bool) -> Scheme:
    """Weights of that width in groups, activations as they are."""
    return Scheme(WeightScheme(bits, PerGroup(group), symmetric))


def make(module: Any, recipe: Ours, scheme: Scheme, tokens: Tensor) -> dict[str, Tensor]:
    """The variant's tensors that differ from the parent's, by parameter name, in float32."""
    calibration = Calibration.from_tokens(tokens, "benchmarks.quality")
    made = quantize(module, scheme, recipe.method, calibration, recipe.options)
    return dense_tensors(made, made.layers)


def dense_tensors(made: QuantizedModel, layers: Mapping[str, Any]) -> dict[str, Tensor]:
    """Dequantized weights by parameter name."""
    tensors = {name: tensor.float() for name, tensor in made.dense.items()}
    for name, weight in layers.items():
        plain = weight.dequantize()
        tensors[f"{name}.weight"] = plain.T.contiguous() if name in made.transposed else plain
    return tensors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    Scheduled.arguments(parser)
    parser.add_argument("--only", default="", help="recipes whose label contains this")
    given = parser.parse_args()
    job = Scheduled.of(given)
    scheme = scheme_of(given.bits, given.group, not given.asym)
    for recipe in OURS:
        if given.only in recipe.label:
            with job.timed() as note:
                tensors = make(job.module, recipe, scheme, job.texts.calibration)
            job.report(recipe.label, tensors, note)


if __name__ == "__main__":
    main()
