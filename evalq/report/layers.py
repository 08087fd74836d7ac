"""Bits and sensitivity by layer, of variants that mix bits: a grid of blocks and projections."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd
from markupsafe import Markup

from evalq.compare import Run
from evalq.report.palette import TIERS
from evalq.report.svg import element, root, text
from evalq.report.text import short, visible
from evalq.store.layers import layer_record

__all__ = ["Layer", "bits_chart", "layer_table", "mixed_layers", "sensitivity_chart"]

_BLOCK = re.compile(r"^(.*?)\.(\d+)\.(.+)$")


@dataclass(frozen=True)
class Layer:
    """One quantized layer.

    Args:
        name: of the module.
        block: index of the decoder block, 0 where the name has none.
        kind: what follows the index, ``self_attn.q_proj``.
        bits: of its weights.
        weight_error, output_error: relative errors as the method recorded them.
        sensitivity: loss by bits, in the method's own unit.
    """

    name: str
    block: int
    kind: str
    bits: float
    weight_error: float | None
    output_error: float | None
    sensitivity: Mapping[float, float]


def _keyed(values: Mapping[str, float]) -> dict[float, float]:
    out = {}
    for bits, value in values.items():
        try:
            out[float(bits)] = value
        except ValueError:
            continue
    return dict(sorted(out.items()))


def mixed_layers(run: Run) -> dict[str, tuple[Layer, ...]]:
    """By variant, the layers of those whose layers differ in bits."""
    out = {}
    for entry in run.info["variants"]:
        record = layer_record(entry)
        sensitivity = record.get("sensitivity", {})
        layers = []
        for layer in record.get("layers", ()):
            found = _BLOCK.match(layer["name"])
            layers.append(
                Layer(
                    name=layer["name"],
                    block=int(found[2]) if found else 0,
                    kind=found[3] if found else layer["name"],
                    bits=layer["bits"],
                    weight_error=layer["weight_error"],
                    output_error=layer["output_error"],
                    sensitivity=_keyed(sensitivity.get(layer["name"], {})),
                )
            )
        if layers:
            out[str(entry["name"])] = tuple(layers)
    return out


_LEFT, _TOP, _ROW = 132.0, 26.0, 24.0


def _grid(layers: Sequence[Layer], width: float) -> tuple[list[str], list[int], float]:
    kinds = list(dict.fromkeys(layer.kind for layer in layers))
    blocks = sorted({layer.block for layer in layers})
    return kinds, blocks, (width - _LEFT - 12) / len(blocks)


def _frame(kinds: Sequence[str], blocks: Sequence[int], cell: float) -> list[Markup]:
    body = [
        text(_LEFT - 8, _TOP + _ROW * (i + 0.5) + 4, short(kind, 19), "tick", text_anchor="end")
        for i, kind in enumerate(kinds)
    ]
    step = max(1, math.ceil(26 / cell))
    for i, block in enumerate(blocks):
        if i % step == 0:
            at = _LEFT + cell * (i + 0.5)
            body.append(text(at, _TOP - 8, str(block), "tick", text_anchor="middle"))
    body.append(text(8, _TOP - 8, "block", "tick"))
    return body


def _box(
    at: tuple[int, int], cell: float, class_: str | None = None, opacity: float | None = None
) -> Markup:
    column, row = at
    return element(
        "rect",
        x=_LEFT + cell * column + 0.5,
        y=_TOP + _ROW * row + 0.5,
        width=max(1.0, cell - 1),
        height=_ROW - 1,
        rx=2,
        class_=class_,
        fill_opacity=opacity,
    )


def _tip(layer: Layer) -> str:
    lines = [layer.name, f"{layer.bits:g} bits"]
    lines += [f"sensitivity at {b:g} bits {v:.3g}" for b, v in layer.sensitivity.items()]
    if layer.output_error is not None:
        lines.append(f"output error {layer.output_error:.3g}")
    return visible("\n".join(lines))


def bits_chart(name: str, layers: Sequence[Layer], width: float) -> Markup:
    """Bits of every layer: a column a block, a row a projection, coloured by tier."""
    kinds, blocks, cell = _grid(layers, width)
    body = _frame(kinds, blocks, cell)
    for layer in layers:
        at = (blocks.index(layer.block), kinds.index(layer.kind))
        key = f"{layer.bits:g}" if f"{layer.bits:g}" in TIERS else "other"
        inner = element("title", _tip(layer)) + _box(at, cell)
        if cell >= 15:
            x, y = _LEFT + cell * (at[0] + 0.5), _TOP + _ROW * (at[1] + 0.5) + 4
            inner += text(x, y, f"{layer.bits:g}", "on", text_anchor="middle")
        body.append(element("g", inner, class_=f"pt layer tier-{key}"))
    size = (width, _TOP + _ROW * len(kinds) + 8)
    return root(size, f"Bits by layer of {name}", body, "chart")


def sensitivity_chart(name: str, layers: Sequence[Layer], width: float) -> Markup:
    """Sensitivity at the fewest bits that all layers have a value for, as shades on a log scale.

    Empty where the sensitivity was not recorded.
    """
    shared = [set(layer.sensitivity) for layer in layers if layer.sensitivity]
    common = sorted(set.intersection(*shared)) if shared else []
    if not common:
        return Markup("")
    bits = common[0]
    values = {x.name: x.sensitivity[bits] for x in layers if x.sensitivity}
    above = [v for v in values.values() if v > 0]
    if not above:
        return Markup("")
    low, high = math.log(min(above)), math.log(max(above))
    kinds, blocks, cell = _grid(layers, width)
    body = _frame(kinds, blocks, cell)
    for layer in layers:
        at = (blocks.index(layer.block), kinds.index(layer.kind))
        value = values.get(layer.name)
        inner = element("title", _tip(layer))
        if value is None:
            body.append(element("g", inner + _box(at, cell, "none"), class_="pt layer"))
            continue
        share = 0.0 if value <= 0 else (math.log(value) - low) / ((high - low) or 1.0)
        shade = _box(at, cell, "heat", 0.06 + 0.94 * share)
        body.append(element("g", inner + shade, class_="pt layer"))
    size = (width, _TOP + _ROW * len(kinds) + 34)
    legend = f"darker: loses more at {bits:g} bits, {min(above):.2g} to {max(above):.2g} (log)"
    body.append(text(_LEFT, size[1] - 10, legend, "tick"))
    return root(size, f"Sensitivity by layer of {name} at {bits:g} bits", body, "chart")


def layer_table(found: Mapping[str, Sequence[Layer]]) -> pd.DataFrame:
    """One row a variant and layer; a column ``sensitivity_N`` for each N bits it was taken at."""
    rows = []
    for variant, layers in found.items():
        for layer in layers:
            row: dict[str, object] = {
                "variant": variant,
                "layer": layer.name,
                "bits": layer.bits,
                "weight_error": layer.weight_error,
                "output_error": layer.output_error,
            }
            row |= {f"sensitivity_{b:g}": v for b, v in layer.sensitivity.items()}
            rows.append(row)
    return pd.DataFrame(rows)
