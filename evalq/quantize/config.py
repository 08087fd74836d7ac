"""What a quantization method is, which exist, and what may be set on each. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from evalq.errors import PlanError, QuantizationError, nearest
from evalq.registry import Registry
from evalq.schema import BITS, Scheme

__all__ = ["METHODS", "Method", "Option", "check_scheme", "resolve_options"]


@dataclass(frozen=True, slots=True)
class Option:
    """One setting of a method.

    Args:
        default: the value when none is given; its type is the type that is taken.
        summary: what it does.
        choices: the only values allowed, or empty.
        low, high: inclusive limits of a number, or ``None``.
    """

    default: bool | int | float | str
    summary: str
    choices: tuple[str, ...] = ()
    low: float | None = None
    high: float | None = None

    def check(self, name: str, value: Any) -> bool | int | float | str:
        """``value`` in the option's own type.

        Raises:
            PlanError: of another type, outside the limits, or none of the choices.
        """
        kind = type(self.default)
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if type(value) is not kind:
            raise PlanError(f"option {name!r} takes a {kind.__name__}, not {value!r}")
        if self.choices and value not in self.choices:
            raise PlanError(
                f"option {name!r} cannot be {value!r}", hint=nearest(str(value), self.choices)
            )
        if not isinstance(value, str):
            low = -math.inf if self.low is None else self.low
            high = math.inf if self.high is None else self.high
            if not low <= value <= high:
                raise PlanError(f"option {name!r} is {value}, outside {low:g} to {high:g}")
        result: bool | int | float | str = value
        return result


@dataclass(frozen=True, slots=True)
class Method:
    """How the numbers of a scheme are found.

    Args:
        name: as in a plan.
        summary: one line.
        bits: widths that it makes.
        needs_calibration: whether it must see text.
        options: what may be set, by name.
        folds: activation-aware scales are folded into the preceding norm or linear (AWQ).
        compensates: rounding errors are moved on to columns not yet rounded (GPTQ).
        learns_rounding: the codes of each decoder layer are trained together on its output.
        distills: scales (and codes) are trained afterwards on the parent's distribution.
        smooths: the folded scales weigh activations, which are rounded too, against weights
            (SmoothQuant); it makes schemes with 8-bit activations only.
    """

    name: str
    summary: str
    needs_calibration: bool
    bits: tuple[int, ...] = BITS
    options: Mapping[str, Option] = field(default_factory=dict)
    folds: bool = False
    compensates: bool = False
    learns_rounding: bool = False
    distills: bool = False
    smooths: bool = False


_COMMON = {
    "quantize_head": Option(False, "quantize the output head as well"),
    "scale_dtype": Option(
        "auto",
        "dtype of stored scales; auto is bfloat16 for a bfloat16 parent, else float16",
        choices=("auto", "float32", "bfloat16", "float16"),
    ),
    "skip": Option("", "layers left as they are: comma-separated parts of their names"),
    "rotate": Option(
        "none",
        "turn the residual stream and the values by Hadamard matrices merged into the weights "
        "(arXiv 2404.00456); a tied output head gets a weight of its own",
        choices=("none", "hadamard"),
    ),
    "layer_bits": Option(
        "", "widths of single layers, LAYER=BITS with commas between (what --target-bits makes)"
    ),
}
_DATA = {
    "batch_tokens": Option(4096, "tokens that pass through a layer at a time", low=1),
    "products": Option(
        "auto",
        "dtype of matrix products in calibration passes; auto is bfloat16 for a bfloat16 parent "
        "(sums over tokens are always float32)",
        choices=("auto", "float32", "bfloat16"),
    ),
    "minimum_tokens": Option(
        16,
        "expert layers that saw fewer tokens are reported (and learn no rounding, nor do those "
        "with fewer tokens than inputs)",
        low=1,
    ),
    "keep": Option(
        0.0,
        "share of the weights, in whole layers of the highest measured sensitivity, that keeps "
        "keep_bits",
        low=0.0,
        high=0.9,
    ),
    "keep_bits": Option(8, "bits of what keep keeps; 16 leaves it as it is", low=3, high=16),
}
_GPTQ = {
    "damping": Option(0.01, "share of the mean diagonal added to the Hessian", low=1e-8, high=1.0),
    "act_order": Option(True, "columns by falling activation (groups stay where they are)"),
    "block_size": Option(128, "columns between two updates of the rest", low=1),
    "scale_search": Option(
        "weighted",
        "scales by the weights' range, or by least error, plain or weighted by the Hessian",
        choices=("minmax", "mse", "weighted"),
    ),
    "refine": Option(
        2, "passes that refit all scales and move every code again (arXiv 2309.01885)", low=0
    ),
}
_AWQ = {
    "grid": Option(20, "strengths tried for each scale search", low=1, high=200),
    "duo_scaling": Option(True, "scales look at weights as well as activations"),
    "clip": Option(True, "search the clipping of each group"),
}

_SMOOTH = {
    "grid": Option(20, "strengths tried for each place that takes up scales", low=1, high=200),
    "clip": Option(False, "search the clipping of each row of weights"),
}

_DISTILL = {
    "epochs": Option(4, "times that distillation goes over the calibration windows", low=1),
    "windows": Option(4, "calibration windows a step of distillation", low=1),
    "scale_rate": Option(1e-3, "largest relative step of a scale", low=0.0, high=0.1),
    "code_rate": Option(0.0, "largest step of a code in levels; 0 trains scales alone", low=0.0),
}

_LEARNED_ROUNDING = {
    "rounding_steps": Option(
        200, "steps that train all codes and scales of a decoder layer on its output", low=1
    ),
}

METHODS: Registry[Method] = Registry("method")


def _register(method: Method) -> None:
    METHODS.add(method.name, method, method.summary)


_register(
    Method(
        "rtn",
        "round to nearest; needs no data",
        needs_calibration=False,
        options={
            **_COMMON,
            "clip": Option(
                "minmax", "scales by range, or by least squared error", choices=("minmax", "mse")
            ),
        },
    )
)
_register(
    Method(
        "gptq",
        "column by column, each error compensated in the columns that follow (arXiv 2210.17323)",
        needs_calibration=True,
        options={**_COMMON, **_DATA, **_GPTQ},
        compensates=True,
    )
)
_register(
    Method(
        "awq",
        "channels scaled by their activations before rounding (arXiv 2306.00978)",
        needs_calibration=True,
        options={**_COMMON, **_DATA, **_AWQ},
        folds=True,
    )
)
_register(
    Method(
        "awq+gptq",
        "AWQ's scales, then GPTQ's rounding",
        needs_calibration=True,
        options={**_COMMON, **_DATA, **_GPTQ, **{k: v for k, v in _AWQ.items() if k != "clip"}},
        folds=True,
        compensates=True,
    )
)
_register(
    Method(
        "smoothquant",
        "8-bit weights and activations, outliers shared between them (arXiv 2211.10438)",
        needs_calibration=True,
        bits=(8,),
        options={**_COMMON, **_DATA, **_SMOOTH},
        folds=True,
        smooths=True,
    )
)
_register(
    Method(
        "smoothquant+gptq",
        "SmoothQuant's scales, then GPTQ's rounding of the weights",
        needs_calibration=True,
        bits=(8,),
        options={**_COMMON, **_DATA, **_GPTQ, "grid": _SMOOTH["grid"]},
        folds=True,
        compensates=True,
        smooths=True,
    )
)


_register(
    Method(
        "gptq+kd",
        "GPTQ, then scales distilled against the parent's distribution (arXiv 2407.11062)",
        needs_calibration=True,
        options={**_COMMON, **_DATA, **_GPTQ, **_DISTILL},
        compensates=True,
        distills=True,
    )
)
_register(
    Method(
        "gptq+signround",
        "GPTQ, then rounding learned a decoder layer at a time (arXiv 2309.05516, 2102.05426)",
        needs_calibration=True,
        options={**_COMMON, **_DATA, **_GPTQ, **_LEARNED_ROUNDING},
        compensates=True,
        learns_rounding=True,
    )
)
_register(
    Method(
        "gptq+signround+kd",
        "GPTQ, learned rounding, then distilled scales: the most exact, and the slowest",
        needs_calibration=True,
        options={**_COMMON, **_DATA, **_GPTQ, **_LEARNED_ROUNDING, **_DISTILL},
        compensates=True,
        learns_rounding=True,
        distills=True,
    )
)


def skipped_parts(options: Mapping[str, Any]) -> tuple[str, ...]:
    """The option ``skip``: a layer whose full name holds one of these parts stays as it is."""
    return tuple(s.strip() for s in str(options.get("skip", "")).split(",") if s.strip())


def resolve_options(method: Method, given: Mapping[str, Any]) -> dict[str, Any]:
    """All options of ``method``: those given, checked, and the defaults of the rest.

    Raises:
        PlanError: an unknown option (the nearest is suggested) or a value it cannot take.
    """
    for name in given:
        if name not in method.options:
            raise PlanError(
                f"method {method.name!r} has no option {name!r}",
                hint=nearest(name, method.options),
            )
    return {
        name: option.check(name, given[name]) if name in given else option.default
        for name, option in method.options.items()
    }


def check_scheme(method: Method, scheme: Scheme) -> None:
    """Whether ``method`` can make ``scheme`` at all.

    Raises:
        QuantizationError: a width that the method does not make.
    """
    if scheme.weights.bits not in method.bits:
        known = ", ".join(map(str, method.bits))
        raise QuantizationError(
            f"method {method.name!r} does not make {scheme.weights.bits} bits",
            hint=f"It makes {known}.",
        )
    if scheme.activation_bits not in (None, 8):
        raise QuantizationError(
            f"{scheme.activation_bits} bits is not a width that activations are quantized to",
            hint="Use 8, or leave activations as they are.",
        )
    if method.learns_rounding and scheme.activation_bits is not None:
        raise QuantizationError(
            f"method {method.name!r} learns the rounding of weights under exact activations, and "
            f"the scheme rounds them to {scheme.activation_bits} bits",
            hint="Use smoothquant+gptq for 8-bit activations.",
        )
    if method.smooths and scheme.activation_bits is None:
        raise QuantizationError(
            f"method {method.name!r} is for activations of 8 bits, and the scheme has none",
            hint="Add --activation-bits 8 (activation_bits: 8 in a plan, :a8 in --variant).",
        )
