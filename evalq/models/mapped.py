"""Parents larger than memory: parameters that are views of the safetensors files.

transformers copies what it loads from files; from a state dict of tensors in the right dtype it
takes the tensors themselves. Given views of the mapped files, a model's weights are then read from
disk when a layer is worked on, and the system drops them again when it needs the room.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from evalq.artifacts.files import WeightFiles
from evalq.errors import ParentError
from evalq.quantize.linear import decoder_layers

__all__ = ["check_mapped", "free_of_files", "mapped_state"]

_LARGEST_COPIED_SHARE = 0.05


def mapped_state(files: WeightFiles) -> dict[str, Tensor]:
    """All tensors of a directory as views of its files, by their names there."""
    return {name: files.tensor(name) for name in files}


def check_mapped(module: nn.Module, state: dict[str, Tensor], label: str) -> None:
    """Raise unless nearly all parameters of ``module`` still are the views of ``state``.

    Raises:
        ParentError: transformers has converted them (stacked experts, fused projections, another
            dtype), so that they lie in memory; or its embeddings compute in the stored dtype.
    """
    embeddings = module.get_input_embeddings()  # type: ignore[operator]
    stored = embeddings.weight.dtype
    if type(embeddings) is not nn.Embedding and stored != torch.float32:
        # Gemma's multiply what they look up by a constant, which loses digits in the stored dtype.
        raise ParentError(
            f"{label} cannot be streamed from disk: {type(module).__name__} computes on its "
            f"embeddings, which would round in {str(stored).removeprefix('torch.')}",
            hint="Leave --stream out; the parent then has to fit into memory.",
        )
    views = {tensor.data_ptr() for tensor in state.values()}
    total = copied = 0
    for parameter in module.parameters():
        total += parameter.nbytes
        copied += 0 if parameter.data_ptr() in views else parameter.nbytes
    if copied > _LARGEST_COPIED_SHARE * total:
        raise ParentError(
            f"{label} cannot be streamed from disk: {copied / total:.0%} of its weights are "
            f"converted when {type(module).__name__} is loaded",
            hint="Leave --stream out; the parent then has to fit into memory.",
        )


def free_of_files(module: Any) -> None:
    """Make all but decoder layers, embeddings and output head float32, in place.

    What comes before the layers is then computed in float32 as when the whole parent is (rows of
    embeddings are made float32 as they are looked up), and it is small.
    """
    _, layers = decoder_layers(module)
    kept = {id(p) for p in layers.parameters()}
    kept |= {id(p) for m in module.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
    head = module.get_output_embeddings()
    if head is not None:
        kept |= {id(p) for p in head.parameters()}
    for parameter in module.parameters():
        if id(parameter) not in kept and parameter.is_floating_point():
            parameter.data = parameter.data.to(torch.float32)
