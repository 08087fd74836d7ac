"""evalq's own variants: what is tried, and how one is made in memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from evalq.quantize.api import QuantizedModel, quantize
from evalq.quantize.calibration import Calibration
from evalq.quantize.distill import DistillSettings, distill
from evalq.schema import PerGroup, Scheme, WeightScheme

__all__ = ["OURS", "Ours", "dense_tensors", "make"]


@dataclass(frozen=True, slots=True)
class Ours:
    """A method with its options, and the settings of a distillation after it (or none)."""

    method: str
    options: Mapping[str, Any] = field(default_factory=dict)
    distillation: Mapping[str, Any] | None = None

    @property
    def label(self) -> str:
        """``gptq refine=2 + distill epochs=4``."""
        parts = [self.method, *(f"{k}={v}" for k, v in self.options.items())]
        if self.distillation is not None:
            parts += ["+ distill", *(f"{k}={v}" for k, v in self.distillation.items())]
        return " ".join(parts)


OURS = (
    Ours("gptq", {"refine": 0}),
    Ours("gptq", {"refine": 2}),
    Ours("gptq", {"refine": 4}),
    Ours("awq+gptq", {"refine": 2}),
)


def scheme_of(bits: int, group: int, symmetric: bool) -> Scheme:
    """Weights of that width in groups, activations as they are."""
    return Scheme(WeightScheme(bits, PerGroup(group), symmetric))


def make(module: Any, recipe: Ours, scheme: Scheme, tokens: Tensor) -> dict[str, Tensor]:
    """The variant's tensors that differ from the parent's, by parameter name, in float32."""
    calibration = Calibration.from_tokens(tokens, "benchmarks.quality")
    made = quantize(module, scheme, recipe.method, calibration, recipe.options)
    return finish(module, made, recipe, tokens)


def finish(module: Any, made: QuantizedModel, recipe: Ours, tokens: Tensor) -> dict[str, Tensor]:
    """Distil where the recipe says so, and dequantize."""
    layers = made.layers
    if recipe.distillation is not None:
        settings = DistillSettings(**recipe.distillation)
        layers = distill(module, layers, made.dense, tokens, settings).layers
    return dense_tensors(made, layers)


def dense_tensors(made: QuantizedModel, layers: Mapping[str, Any]) -> dict[str, Tensor]:
    """Dequantized weights by parameter name."""
    tensors = {name: tensor.float() for name, tensor in made.dense.items()}
    for name, weight in layers.items():
        plain = weight.dequantize()
        tensors[f"{name}.weight"] = plain.T.contiguous() if name in made.transposed else plain
    return tensors
