"""The values that artifacts are described by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    from torch import Tensor

    from evalq.artifacts.files import WeightFiles
    from evalq.kernels.packing import QuantizedWeight
    from evalq.schema import WeightScheme

__all__ = ["Artifact", "Encoder", "Finding", "Storage", "StoredModel"]


@dataclass(frozen=True, slots=True)
class Artifact:
    """An artifact directory.

    Args:
        path: the directory.
        hash: its content hash.
        manifest: content of its ``evalq-manifest.json``.
        reused: it was there already, with the same recipe, and nothing was computed.
    """

    path: Path
    hash: str
    manifest: Mapping[str, Any]
    reused: bool = False


@dataclass(frozen=True, slots=True)
class Storage:
    """What a model directory takes, from the headers of its weight files.

    Args:
        bytes_on_disk: size of the weight files, headers included.
        bits_per_weight: 8 * bytes of all stored tensors / parameters, all in (scales, zeros,
            embeddings, norms).
        linear_bits_per_weight: the same over the quantized layers only; over everything where
            nothing is quantized.
        parameters: of the model the files stand for; a quantized layer counts ``out * in``, and
            scales, zeros and shapes count nothing.
        quantized_parameters: those of them that lie in quantized layers.
    """

    bytes_on_disk: int
    bits_per_weight: float
    linear_bits_per_weight: float
    parameters: int
    quantized_parameters: int


@dataclass(frozen=True, slots=True)
class StoredModel:
    """What a model directory holds, read from its files alone.

    Args:
        path: the directory.
        format: ``"compressed-tensors"``, ``"gptq"``, ``"awq"``, or ``"dense"`` for a model that is
            not quantized.
        config: the whole ``config.json``.
        layers: quantized linear layers by module name (``model.layers.0.self_attn.q_proj``).
        dense: every other tensor by its name in the files (``model.norm.weight``).
        activation_bits: layers whose inputs are to be rounded to so many bits, one symmetric
            scale a token, found at run time.
        notes: what a reader of results has to know, one sentence each.
    """

    path: Path
    format: str
    config: Mapping[str, Any]
    layers: Mapping[str, QuantizedWeight]
    dense: Mapping[str, Tensor]
    activation_bits: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def model_config(self) -> dict[str, Any]:
        """``config.json`` without its ``quantization_config``: of the model as a dense one."""
        return {k: v for k, v in self.config.items() if k != "quantization_config"}


Severity = Literal["ok", "warning", "error"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that ``check`` found.

    Args:
        severity: ``error``: the engine will not take the artifact, or will read it wrongly;
            ``warning``: it loads, with something to know; ``ok``.
        engine: ``transformers``, ``vllm``, ``gptqmodel``, or ``files`` for what concerns all.
        rule: short stable name of the rule (``gptq-v1-zero``).
        message: the finding in a sentence.
        layers: layers it concerns; empty for the whole artifact.
    """

    severity: Severity
    engine: str
    rule: str
    message: str
    layers: tuple[str, ...] = ()


class Encoder(Protocol):
    """One artifact format: how quantized layers become tensors and a configuration, and back."""

    name: str
    scale_dtype: str | None
    """What a method's option ``scale_dtype`` has to be; ``None``: the parent's dtype decides."""

    def refuse(
        self, layer: str, scheme: WeightScheme, shape: tuple[int, int], activation_bits: int | None
    ) -> None:
        """Raise ``PlanError`` where the format cannot hold that layer at that scheme."""
        ...

    def encode(
        self, layer: str, weight: QuantizedWeight, activation_bits: int | None
    ) -> dict[str, Tensor]:
        """The layer's tensors by their full names."""
        ...

    def settings(
        self,
        layers: Mapping[str, WeightScheme],
        plain_linears: tuple[str, ...],
        activation_bits: int | None,
    ) -> dict[str, Any]:
        """The ``quantization_config``; ``plain_linears`` names linear layers that stay dense."""
        ...

    def decode(self, files: WeightFiles) -> StoredModel:
        """The model that the files stand for."""
        ...
