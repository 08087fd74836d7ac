"""Layers whose columns are not in groups of consecutive inputs (GPTQ's ``desc_act``)."""

from __future__ import annotations

import torch
from torch import Tensor

from evalq.errors import ArtifactError

__all__ = ["dequantize_by_index", "is_consecutive"]


def is_consecutive(index: Tensor, size: int) -> bool:
    """Whether input ``i`` belongs to group ``i // size`` throughout.

    Args:
        index: integer ``[in]``, the group of each input column.
        size: columns a group.
    """
    return torch.equal(index.long(), torch.arange(len(index)) // size)


def dequantize_by_index(
    codes: Tensor, scales: Tensor, zeros: Tensor | int, index: Tensor
) -> Tensor:
    """The dense weight of codes whose groups are named column by column.

    Args:
        codes: uint8 ``[out, in]``.
        scales: floating point ``[out, groups]``.
        zeros: uint8 ``[out, groups]``, or one zero for all.
        index: integer ``[in]``, in ``[0, groups)``.

    Returns:
        ``[out, in]`` in the dtype of the scales, each product rounded once.

    Raises:
        ArtifactError: an index outside the groups, or of another length.
    """
    index = index.long()
    if len(index) != codes.shape[1] or bool((index < 0).any() | (index >= scales.shape[1]).any()):
        raise ArtifactError(
            f"g_idx of {len(index)} columns in {scales.shape[1]} groups does not fit a weight of "
            f"{codes.shape[1]} columns",
            hint="The artifact is damaged or was written with other settings; make it again.",
        )
    zero = zeros if isinstance(zeros, int) else zeros.float()[:, index]
    return ((codes.float() - zero) * scales.float()[:, index]).to(scales.dtype)
