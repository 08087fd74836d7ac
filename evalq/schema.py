"""The value types that cross floors: schemes, requests and responses, and the records of a run.

Everything here is frozen and knows no torch and no pandas. The tables of a run directory have one
column for each field of the record classes below, in this order.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any, Literal

from evalq.errors import PlanError

__all__ = [
    "BITS",
    "FORMAT_VERSION",
    "KV_BITS",
    "TASK_TEXT",
    "CostRecord",
    "FidelityRecord",
    "Granularity",
    "ItemRecord",
    "PerChannel",
    "PerGroup",
    "Request",
    "RequestKind",
    "Response",
    "Scheme",
    "WeightScheme",
    "canonical_json",
    "content_hash",
    "slice_ancestors",
]

FORMAT_VERSION = 2
"""Version of the run directory and of ``summary.json``; ``store/migrate.py`` reads older ones."""

BITS = (2, 3, 4, 5, 6, 7, 8)
"""Widths that a weight can be stored in."""

TASK_TEXT = "tasks"
"""Name of the text that is what a run evaluates; it counts in its slices and not in the whole."""

KV_BITS = (2, 4, 8)
"""Widths that a KV cache can be kept in."""


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces: the text that hashes are taken of."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def content_hash(value: Any) -> str:
    """SHA-256 (hex, 64 characters) of ``canonical_json(value)``."""
    return hashlib.sha256(canonical_json(value).encode("utf-8", "surrogatepass")).hexdigest()


def slice_ancestors(name: str) -> tuple[str, ...]:
    """``"a/b/c"`` gives ``("a", "a/b", "a/b/c")``: the slices an item of that slice counts in."""
    parts = name.split("/")
    return tuple("/".join(parts[: i + 1]) for i in range(len(parts)))


@dataclass(frozen=True, slots=True)
class PerChannel:
    """One scale for each output channel (row of a weight)."""

    def __str__(self) -> str:
        return "channel"


@dataclass(frozen=True, slots=True)
class PerGroup:
    """One scale for each ``size`` consecutive input columns of a row."""

    size: int

    def __post_init__(self) -> None:
        if self.size < 1:
            raise PlanError(
                f"group size {self.size} is not a positive number of columns",
                hint="Use 32, 64 or 128, or 'channel' for one scale a row.",
            )

    def __str__(self) -> str:
        return f"g{self.size}"


Granularity = PerChannel | PerGroup


@dataclass(frozen=True, slots=True)
class WeightScheme:
    """How weights are stored.

    A weight is stored as an unsigned code u in [0, 2**bits) and read as ``(u - zero) * scale``. A
    symmetric scheme has zero = 2**(bits-1) everywhere and stores none.
    """

    bits: int
    granularity: Granularity = PerGroup(128)
    symmetric: bool = True

    def __post_init__(self) -> None:
        if self.bits not in BITS:
            raise PlanError(
                f"{self.bits} bits is not a width that weights are stored in",
                hint=f"Use one of {', '.join(map(str, BITS))}.",
            )

    def __str__(self) -> str:
        return f"w{self.bits}-{self.granularity}{'' if self.symmetric else '-asym'}"


@dataclass(frozen=True, slots=True)
class Scheme:
    """How weights, activations and KV cache are stored.

    ``activation_bits`` 8 means int8 with a scale a token, found at run time; ``None`` leaves the
    activations as they are. ``kv_bits`` likewise.
    """

    weights: WeightScheme
    activation_bits: int | None = None
    kv_bits: int | None = None

    def __str__(self) -> str:
        text = str(self.weights)
        if self.activation_bits is not None:
            text += f"-a{self.activation_bits}"
        if self.kv_bits is not None:
            text += f"-kv{self.kv_bits}"
        return text


RequestKind = Literal["loglikelihood", "loglikelihood_rolling", "generate_until"]


@dataclass(frozen=True, slots=True)
class Request:
    """One question to a model, as lm-eval asks it.

    Args:
        kind: lm-eval's request type.
        context: the prompt (for ``loglikelihood_rolling`` the whole text).
        continuation: what is scored after the context (``loglikelihood`` only, else ``""``).
        until: stop strings (``generate_until`` only).
        max_tokens: at most so many new tokens; ``None`` lets the engine's own limit rule.
        temperature: 0 is greedy.
        seed: for temperature > 0.
        messages: ``(role, content)`` of the conversation that ``context`` is the rendering of;
            empty for plain text. Chat endpoints get these (``generate_until`` only).
        prompts: hash of the chat template and the system message that it was made with; empty for
            plain prompts. It keeps answers under one template from standing in for another's.
    """

    kind: RequestKind
    context: str
    continuation: str = ""
    until: tuple[str, ...] = ()
    max_tokens: int | None = None
    temperature: float = 0.0
    seed: int = 0
    messages: tuple[tuple[str, str], ...] = ()
    prompts: str = ""

    @property
    def hash(self) -> str:
        """Identity of the request, by content."""
        data = asdict(self)
        for name in ("messages", "prompts"):  # as before these were, so that old journals answer
            if not data[name]:
                del data[name]
        return content_hash(data)


@dataclass(frozen=True, slots=True)
class Response:
    """What a model answered to one request.

    Args:
        text: the generated text, stop string removed (``generate_until``), else ``""``.
        logprob: summed log-probability in nats of the continuation or the text; ``None`` for
            generations.
        greedy: whether the continuation is what greedy decoding would give.
        tokens_in: prompt tokens read.
        tokens_out: tokens generated or scored.
        truncated: the prompt was cut at the left to fit the context, or the generation hit its
            limit of tokens before a stop string.
        seconds: this request's share of the wall time of its batch.
    """

    text: str = ""
    logprob: float | None = None
    greedy: bool | None = None
    tokens_in: int = 0
    tokens_out: int = 0
    truncated: bool = False
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class ItemRecord:
    """One (variant, task, item): a row of ``items.parquet``.

    Times are not in it (they are in the journal): the same run gives the same bytes, whether it was
    interrupted or not.

    Args:
        variant: label of the variant.
        variant_hash: content hash of what was measured.
        suite: the suite that listed the task, or ``"workload"``.
        task: lm-eval task name.
        task_version: as the task declares it.
        slice: the most specific slice of the item, ``"multilingual/sw"``.
        item_id: unique within the task; lm-eval's ``doc_id`` unless the workload names its own.
        cluster: items of one document, passage or template share it; equals ``task/item_id`` where
            nothing is shared.
        doc_hash, prompt_hash, target_hash: SHA-256 as lm-eval takes them; pairing goes by these.
        filter: lm-eval filter that the metrics are of.
        metric: the primary metric's name.
        score: the primary metric, in [0, 1], higher is better; ``None`` for perplexity tasks.
        nll: summed negative log-likelihood in nats (perplexity tasks), else ``None``.
        units: tokens (of the parent's tokenizer) or words that ``nll`` is over, else ``None``.
        metrics: all of the task's metrics of this item, as JSON.
        prompt: first prompt of the item.
        target: what was expected.
        response: what was answered (for multiple choice: the chosen option).
        tokens_in, tokens_out: summed over the item's requests.
        truncated: any request of it was.
    """

    variant: str
    variant_hash: str
    suite: str
    task: str
    task_version: str
    slice: str
    item_id: str
    cluster: str
    doc_hash: str
    prompt_hash: str
    target_hash: str
    filter: str
    metric: str
    score: float | None
    nll: float | None
    units: int | None
    metrics: str
    prompt: str
    target: str
    response: str
    tokens_in: int
    tokens_out: int
    truncated: bool


@dataclass(frozen=True, slots=True)
class FidelityRecord:
    """One predicted position of held-out text: a row of ``fidelity.parquet``.

    Args:
        variant: label of the variant; the negative control is ``"<parent>@control"``.
        text: name of the text.
        slice: slice of the text (``"prose"``, ``"multilingual/sw"``…).
        document: id of the document, the cluster of every interval.
        position: index of the predicted token in its window.
        kl: KL(parent || variant) in nats over the whole vocabulary.
        top1: the two likeliest tokens agree.
        nll_parent, nll_variant: of the token that follows in the text, in nats.
    """

    variant: str
    text: str
    slice: str
    document: str
    position: int
    kl: float
    top1: bool
    nll_parent: float
    nll_variant: float


@dataclass(frozen=True, slots=True)
class CostRecord:
    """What one variant takes: a row of ``costs.parquet``, one a repeat of the measurement.

    Args:
        variant: label of the variant.
        repeat: index of the repeat; all variants are timed in turn within one repeat.
        execution: ``"dense"`` (the parent's own precision), ``"dequantized"`` (stored low-bit, run
            as dense: its speed is not the format's) or ``"packed:<kernel>"``.
        device, dtype: where and in what the products were computed.
        bytes_on_disk: weight files, all in.
        bits_per_weight: 8 * bytes of all stored tensors / parameters, all in (scales, zeros,
            embeddings, norms).
        linear_bits_per_weight: the same over the quantized layers only.
        peak_memory_bytes: highest memory of a forward pass, weights included.
        prefill_tokens_per_second, decode_tokens_per_second: at the batch and lengths given.
        batch, prefill_tokens, decode_tokens: of the measurement.
    """

    variant: str
    repeat: int
    execution: str
    device: str
    dtype: str
    bytes_on_disk: int
    bits_per_weight: float
    linear_bits_per_weight: float
    peak_memory_bytes: int
    prefill_tokens_per_second: float
    decode_tokens_per_second: float
    batch: int
    prefill_tokens: int
    decode_tokens: int
