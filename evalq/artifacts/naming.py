"""Names of layers in a checkpoint, where the architecture's module has others.

transformers 5 keeps the experts of a mixture stacked in one parameter and their checkpoints keep
one matrix an expert and projection; other architectures rename on loading. The names of a
checkpoint are what every loader reads, so artifacts are written with them.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from evalq.errors import QuantizationError
from evalq.kernels.packing import QuantizedWeight
from evalq.schema import WeightScheme

__all__ = [
    "EXPERT",
    "checkpoint_layers",
    "checkpoint_names",
    "checkpoint_tensors",
    "stacked_names",
    "targets_of",
]

EXPERT = re.compile(r"\.experts\.\d+\.")
"""What the names of single experts' layers hold."""


def checkpoint_names(module: Any, layers: Iterable[str]) -> dict[str, str]:
    """The names that checkpoints have for linear layers of ``module``.

    Args:
        module: the transformers model.
        layers: names of submodules with a ``weight``.

    Raises:
        QuantizationError: no such layer, or one that checkpoints split or fuse with others.
    """
    from transformers.core_model_loading import revert_weight_conversion

    state = module.state_dict()
    keys = {}
    for layer in layers:
        key = f"{layer}.weight"
        if key not in state:
            raise QuantizationError(f"the model has no layer {layer!r} to store")
        keys[layer] = {key: state[key].to("meta")}
    together = {key: tensor for single in keys.values() for key, tensor in single.items()}
    # Most architectures rename nothing; asking for all layers at once is then enough.
    if set(revert_weight_conversion(module, together)) == set(together):
        return {layer: layer for layer in keys}
    names = {}
    for layer, single in keys.items():
        reverted = list(revert_weight_conversion(module, single))
        if len(reverted) != 1 or not reverted[0].endswith(".weight"):
            raise QuantizationError(
                f"{layer} is stored as {len(reverted)} tensors in this architecture's checkpoints "
                "and cannot be quantized as one",
                hint="Name it in the option 'skip' to leave it as it is.",
            )
        names[layer] = str(reverted[0]).removesuffix(".weight")
    return names


def checkpoint_layers(
    module: Any, layers: Mapping[str, QuantizedWeight], experts: Sequence[str]
) -> tuple[dict[str, QuantizedWeight], set[str]]:
    """Quantized layers under the names of the checkpoint.

    Args:
        module: the transformers model.
        layers: by module name; the experts of ``experts`` as ``<name>.<expert>.<parameter>``.
        experts: modules whose stacked parameters were quantized expert by expert.

    Returns:
        The layers by checkpoint name, and the names in the module's state dict that they stand for.

    Raises:
        QuantizationError: a layer that the model does not have, or that its checkpoints store in a
            way that no quantized matrix fits.
    """
    stacked = {
        f"{home}.{name}": parameter
        for home in experts
        for name, parameter in module.get_submodule(home).named_parameters(recurse=False)
        if parameter.ndim == 3 and _quantized(layers, home, name)
    }
    found: dict[str, QuantizedWeight] = {}
    covered: set[str] = set()
    of_experts = {f"{home}." for home in experts}
    single = [n for n in layers if not any(n.startswith(home) for home in of_experts)]
    for layer, name in checkpoint_names(module, single).items():
        found[name] = layers[layer]
        covered.add(f"{layer}.weight")
    if stacked:
        found |= _expert_layers(module, layers, stacked)
        covered |= set(stacked)
    return found, covered


def _quantized(layers: Mapping[str, QuantizedWeight], home: str, parameter: str) -> bool:
    """Whether a stacked parameter was quantized at all: the user may have it left as it is."""
    return any(n.startswith(f"{home}.") and n.endswith(f".{parameter}") for n in layers)


def checkpoint_tensors(module: Any, key: str) -> list[str]:
    """Names (without ``.weight``) that a checkpoint has for the tensor ``key`` of ``module``."""
    from transformers.core_model_loading import revert_weight_conversion

    tensor = module.state_dict()[key].to("meta")
    return [n.removesuffix(".weight") for n in revert_weight_conversion(module, {key: tensor})]


def stacked_names(module: Any, covered: Collection[str]) -> list[str]:
    """Names that checkpoints have for the experts that are not quantized, and for their modules.

    Args:
        module: the transformers model.
        covered: names in its state dict that quantized layers stand for.
    """
    state = module.state_dict()
    left = [k for k, tensor in state.items() if tensor.ndim == 3 and k not in covered]
    homes = dict.fromkeys(key.rpartition(".")[0] for key in left)
    return [*homes, *(name for key in left for name in checkpoint_tensors(module, key))]


def _expert_layers(
    module: Any, layers: Mapping[str, QuantizedWeight], stacked: Mapping[str, Any]
) -> dict[str, QuantizedWeight]:
    """Which rows of which expert each matrix of the checkpoint holds, found by converting numbers.

    Each stacked parameter ``[experts, out, in]`` is stood in for by its row numbers
    ``[experts, out, 1]``; what transformers makes of them on saving says what goes where.
    """
    from transformers.core_model_loading import revert_weight_conversion

    markers: dict[str, Tensor] = {}
    origins: list[tuple[str, int]] = []
    start = 0
    for key, parameter in stacked.items():
        experts, rows = int(parameter.shape[0]), int(parameter.shape[1])
        markers[key] = torch.arange(start, start + experts * rows).view(experts, rows, 1)
        home, _, part = key.rpartition(".")
        origins += [(f"{home}.{e}.{part}", row) for e in range(experts) for row in range(rows)]
        start += experts * rows
    found: dict[str, QuantizedWeight] = {}
    for name, marker in revert_weight_conversion(module, markers).items():
        sources = [origins[int(m)] for m in marker.flatten().tolist()]
        layer = sources[0][0]
        if marker.ndim != 2 or {source for source, _ in sources} != {layer}:
            raise QuantizationError(
                f"{name} is stored stacked in this architecture's checkpoints; no format of evalq "
                "holds quantized experts that way",
                hint="Name it in the option 'skip' to leave the experts as they are.",
            )
        if layer not in layers:
            raise QuantizationError(f"{layer} was not quantized with the other experts")
        rows_kept = torch.tensor([row for _, row in sources])
        found[name.removesuffix(".weight")] = _rows(layers[layer], rows_kept)
    return found


def _rows(weight: QuantizedWeight, rows: Tensor) -> QuantizedWeight:
    zeros = None if weight.zeros is None else weight.zeros[rows]
    shape = (len(rows), weight.shape[1])
    return QuantizedWeight(weight.codes[rows], weight.scales[rows], zeros, weight.scheme, shape)


def targets_of(
    scheme: WeightScheme, names: list[str], layers: Mapping[str, WeightScheme]
) -> list[str]:
    """What a config group of compressed-tensors of ``scheme`` targets; ``names`` are its layers.

    transformers (5.23, ``get_experts_scheme``) reads all experts by the first group with a pattern
    that mentions them, and else by the first group of all.
    """
    experts = {other for name, other in layers.items() if EXPERT.search(name)}
    if experts != {scheme}:
        return names
    return [*(n for n in names if not EXPERT.search(n)), r"re:.*\.experts\.\d+\..*"]
