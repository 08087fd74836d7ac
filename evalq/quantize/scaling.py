"""From the places that take up scales to the scales: search, folding, and what is seen then."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from evalq.quantize.awq import AwqChoice, search_scales
from evalq.quantize.folds import Fold, apply_fold
from evalq.quantize.job import InputStatistics, Job, Reading
from evalq.quantize.linear import get_weight
from evalq.quantize.smooth import search_smoothing
from evalq.quantize.trace import Block
from evalq.schema import WeightScheme

__all__ = ["fold_scales", "note_unfolded"]


def note_unfolded(job: Job, name: str, blocks: tuple[Block, ...], folds: list[Fold]) -> None:
    """Warn of layers of the decoder layer ``name`` whose inputs nothing scales."""
    folded = {consumer for fold in folds for consumer in fold.consumers}
    for block in blocks:
        if block.names[0] not in folded:
            job.warn(name, f"nothing before {', '.join(block.names)} takes up scales; not scaled")


def fold_scales(
    job: Job,
    layer: nn.Module,
    prefix: str,
    folds: list[Fold],
    wanted: set[str],
    seen: dict[str, InputStatistics],
    strengths: dict[str, float],
) -> None:
    """Search the scales of each fold in turn and fold them into ``layer``.

    Args:
        job: says how, and takes warnings.
        layer: a decoder layer in float32; changed.
        prefix: its full name.
        folds: in the order of the forward pass.
        wanted: names of the layers that are quantized.
        seen: statistics of each of these layers' input; changed to those of the scaled input.
        strengths: takes the exponent chosen, by layer.
    """
    for fold in folds:
        consumers = [c for c in fold.consumers if c in wanted]
        readings = _readings(layer, consumers, seen)
        if not sum(r.statistics.tokens for r in readings):
            continue
        if stacked := _left_stacked(job, prefix, fold, wanted):
            job.warn(prefix, f"{stacked} stays as it is, so {fold.producer} takes up no scales")
            continue
        # One search for all that read the channels: for the coarsest of them.
        schemes = (job.scheme_of(f"{prefix}.{c}") for c in consumers)
        choice = _search(job, fold, readings, min(schemes, key=lambda s: s.bits))
        columns = apply_fold(layer, fold, choice.scales, job.stored)
        scaled = {id(r.statistics): r.statistics.scaled(columns) for r in readings}
        for consumer in fold.consumers:
            if consumer in wanted:
                seen[consumer] = scaled[id(seen[consumer])]
                strengths[consumer] = choice.strength
            else:
                # Routers and layers that stay in high precision: as they will be stored.
                weight = get_weight(layer.get_submodule(consumer))
                weight.copy_(weight.to(job.stored).to(weight.dtype))


def _readings(
    layer: nn.Module, consumers: Sequence[str], seen: dict[str, InputStatistics]
) -> list[Reading]:
    """The consumers grouped by the input that they share; each expert of a mixture has its own."""
    grouped: dict[int, list[str]] = {}
    for consumer in consumers:
        grouped.setdefault(id(seen[consumer]), []).append(consumer)
    return [
        Reading(torch.cat([get_weight(layer.get_submodule(n)) for n in names]), seen[names[0]])
        for names in grouped.values()
    ]


def _left_stacked(job: Job, prefix: str, fold: Fold, wanted: set[str]) -> str | None:
    """A part of an expert that the fold would change and that is not quantized, if any.

    Experts are stored stacked, and what is left of them has no tensor of its own to change.
    """
    homes = tuple(f"{e}." for e in job.experts)
    for name in (fold.producer, *fold.consumers):
        if name not in wanted and f"{prefix}.{name}".startswith(homes):
            return name
    return None


def _search(job: Job, fold: Fold, readings: Sequence[Reading], scheme: WeightScheme) -> AwqChoice:
    grid = int(job.options["grid"])
    if job.method.smooths:
        return search_smoothing(
            readings, fold.rows, fold.channels, scheme, bits=job.activation_bits or 8, grid=grid
        )
    duo_scaling = bool(job.options["duo_scaling"])
    return search_scales(
        readings, fold.rows, fold.channels, scheme, grid=grid, duo_scaling=duo_scaling
    )
