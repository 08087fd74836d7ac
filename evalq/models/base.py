"""What a loaded model is, and what an engine does with it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

from evalq.schema import Request, RequestKind, Response

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["Engine", "LoadedModel", "ModelSource", "SourceKind", "StreamingEngine"]

SourceKind = Literal["directory", "gguf", "hub", "artifact"]


@dataclass(frozen=True, slots=True)
class ModelSource:
    """Where a model came from, and what its files hold.

    Args:
        path: the directory or GGUF file that was read.
        kind: what was read; ``hub`` is a directory that the hub's client fetched.
        notes: what every report has to say about this model, one sentence each.
        bytes: weight files on disk.
        bits: bits a parameter, all in: 8 * bytes of the stored tensors / parameters.
        parameters: of the model; tied ones counted once.
        dtype: floating-point type that the weights are stored in, and what they are computed in on
            an accelerator unless another is asked for (``"bfloat16"``); of a GGUF file what its
            values are dequantized to.
        gridded: the weights already lie on a quantization grid (they come from a quantized file).
        demonstration: a model that shows what evalq does and is fit for nothing else.
    """

    path: Path
    kind: SourceKind
    notes: tuple[str, ...]
    bytes: int
    bits: float
    parameters: int
    dtype: str = "float32"
    gridded: bool = False
    demonstration: bool = False


@dataclass
class LoadedModel:
    """A model in memory, in evaluation mode, with its tokenizer.

    Args:
        name: label.
        hash: content hash of the files it was read from.
        module: the transformers causal LM; parameters need no gradient.
        tokenizer: its tokenizer, chat template included where the files have one.
        device, dtype: where and in what the products are computed.
        execution: as in ``schema.CostRecord.execution``.
        source: where it came from.
        kv_bits: that engines round its KV cache to (``kvcache``); ``None`` leaves it.
    """

    name: str
    hash: str
    module: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    device: torch.device
    dtype: torch.dtype
    execution: str
    source: ModelSource
    kv_bits: int | None = None


class Engine(Protocol):
    """Answers requests.

    ``plan`` cuts requests into batches by the requests alone, and ``answer`` runs exactly one such
    batch: a resumed run re-runs a batch whole and gets the bits of an unbroken run.
    """

    @property
    def settings(self) -> Mapping[str, Any]:
        """All that changes an answer, as JSON values; hashed into the journal's key."""
        ...

    def supports(self, kind: RequestKind) -> bool:
        """Whether requests of that kind can be answered at all."""
        ...

    def plan(self, requests: Sequence[Request]) -> list[list[int]]:
        """Batches of indices into ``requests``; every index occurs in exactly one."""
        ...

    def answer(self, requests: Sequence[Request]) -> list[Response]:
        """The responses to one batch, in its order."""
        ...


@runtime_checkable
class StreamingEngine(Engine, Protocol):
    """An engine whose answers do not depend on what is asked beside them: each is stored as it
    comes, and a resumed run asks only what is missing."""

    def refuses(self, request: Request) -> str:
        """Why this one request cannot be asked; empty where it can."""
        ...

    def stream(self, requests: Sequence[Request]) -> Iterator[tuple[int, Response]]:
        """Each request's index and response, in any order, each once.

        What was under way when one fails is still yielded before the error is raised.
        """
        ...
