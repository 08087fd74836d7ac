"""The cost model: what any model takes at any width, from its configuration alone.

Nothing here is measured, and every number that comes out is marked as modelled. Bytes are counted
from the shapes of the model's own layers, built without memory; speeds are a roofline: a decoding
step reads all weights and every user's cache once, at a share of the device's bandwidth, or is
bound by its arithmetic, whichever takes longer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evalq.cost.devices import DEVICES, Device
from evalq.errors import PlanError
from evalq.memory import cache_shape, dollars_per_million, kv_cache_bytes, users_that_fit
from evalq.schema import KV_BITS, PerGroup, WeightScheme

if TYPE_CHECKING:
    from torch import nn

__all__ = ["Layout", "Question", "kv_bits_stored", "layout_of", "model_cost", "read_config"]

USABLE = 0.9
"""Share of a device's memory that weights and caches take."""

EFFICIENCY = 0.5
"""Share of the bandwidth that decoding reaches, unless a measured one is given."""

_KV_GROUP = 32
_KV_WINDOW = 128


@dataclass(frozen=True, slots=True)
class Layout:
    """A model's parameters.

    Args:
        shapes: ``(out, in)`` of every matrix that would be quantized, each as often as it occurs.
        parameters: all of them, tied ones once.
        read: parameters that one token reads: without embedding rows that it does not look up and,
            in a mixture, without experts that it does not use.
        notes: what is assumed.
    """

    shapes: tuple[tuple[int, int], ...]
    parameters: int
    read: int
    notes: tuple[str, ...] = ()

    @property
    def quantized(self) -> int:
        """Parameters that would be quantized."""
        return sum(out * columns for out, columns in self.shapes)

    def weight_bytes(self, scheme: WeightScheme | None, dense_bits: int = 16) -> int:
        """Bytes of all weights: codes, 16-bit scales and packed zeros, the rest dense."""
        return math.ceil(sum(self._weight_bits(scheme, dense_bits).values()) / 8)

    def weight_parts(self, scheme: WeightScheme | None, dense_bits: int = 16) -> dict[str, int]:
        """``weight_bytes`` by part: ``{codes, scales, dense}``, zeros among the scales."""
        bits = self._weight_bits(scheme, dense_bits)
        return {part: math.ceil(count / 8) for part, count in bits.items()}

    def _weight_bits(self, scheme: WeightScheme | None, dense_bits: int) -> dict[str, int]:
        rest = (self.parameters - self.quantized) * dense_bits
        if scheme is None:
            return {"codes": 0, "scales": 0, "dense": rest + self.quantized * dense_bits}
        scales = 0
        for out, columns in self.shapes:
            groups = 1
            if isinstance(scheme.granularity, PerGroup):
                groups = math.ceil(columns / scheme.granularity.size)
            scales += out * groups * (16 + (0 if scheme.symmetric else scheme.bits))
        return {"codes": self.quantized * scheme.bits, "scales": scales, "dense": rest}


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked of the model.

    Args:
        scheme: of the weights; ``None`` leaves them dense.
        context: tokens a user, prompt and answer.
        kv_bits: of the cache; 16 is not quantized.
        device: that is served on.
        price_per_hour: of one device in dollars; ``None`` gives no price.
        users: at once; ``None`` for as many as fit.
        efficiency: share of the bandwidth that decoding reaches.
    """

    scheme: WeightScheme | None
    context: int
    kv_bits: int = 16
    device: Device | None = None
    price_per_hour: float | None = None
    users: int | None = None
    efficiency: float = EFFICIENCY


def kv_bits_stored(bits: int, context: int) -> float:
    """Bits a cached number takes, all in, for a context of that many tokens.

    A quantized cache (KIVI, arXiv 2402.02750) keeps a 16-bit scale and a 16-bit least value for
    each group of 32 numbers, and the last 128 tokens as they are.

    Raises:
        PlanError: a width that no cache is kept in.
    """
    if bits == 16:
        return 16.0
    if bits not in KV_BITS:
        raise PlanError(f"a KV cache of {bits} bits", hint="Use 16, 8, 4 or 2.")
    recent = min(context, _KV_WINDOW)
    low = bits + 32 / _KV_GROUP
    return (recent * 16 + (context - recent) * low) / context


def read_config(path: Path) -> dict[str, Any]:
    """The ``config.json`` at ``path``, or in that directory.

    Raises:
        PlanError: missing, or no configuration.
    """
    import json

    file = path / "config.json" if path.is_dir() else path
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise PlanError(f"{file} cannot be read as JSON: {error}") from None
    if not isinstance(data, dict) or "model_type" not in data:
        raise PlanError(
            f"{file} is no model configuration: it names no model_type",
            hint="Give the config.json of a model, or the directory it is in.",
        )
    return data


def _skeleton(config: Mapping[str, Any]) -> nn.Module:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    plain = {k: v for k, v in config.items() if k != "quantization_config"}
    kind = plain.pop("model_type")
    try:
        made = AutoConfig.for_model(kind, **plain)
        auto: Any = AutoModelForCausalLM
        with torch.device("meta"):
            module: nn.Module = auto.from_config(made)
    except (ValueError, KeyError, TypeError, AttributeError, ImportError, RuntimeError) as error:
        text = " ".join(str(error).split())[:200]
        raise PlanError(
            f"no model can be made of this configuration ({kind}): {text}",
            hint="transformers has to know its model_type as a causal language model.",
        ) from None
    return module


def layout_of(config: Mapping[str, Any]) -> Layout:
    """Shapes of a model, from its configuration; nothing is allocated.

    Raises:
        PlanError: a configuration that transformers makes no causal language model of.
    """
    from evalq.quantize.linear import decoder_layers, linears, weight_shape

    module = _skeleton(config)
    model: Any = module
    _, layers = decoder_layers(module)
    shapes: list[tuple[int, int]] = []
    experts = 0
    for layer in layers:
        shapes += [weight_shape(part) for _, part in linears(layer)]
        for parameter in layer.parameters():
            if parameter.ndim == 3:
                stacked, out, columns = parameter.shape
                shapes += [(int(out), int(columns))] * int(stacked)
                experts += parameter.numel()
    unique = {id(p): p.numel() for p in module.parameters()}
    total = sum(unique.values())
    text = model.config.get_text_config()
    unread, notes = 0, []
    embedding = model.get_input_embeddings().weight
    head = model.get_output_embeddings()
    if head is None or head.weight is not embedding:
        unread = embedding.numel()
    if experts:
        used = getattr(text, "num_experts_per_tok", None)
        count = getattr(text, "num_local_experts", None) or getattr(text, "num_experts", None)
        if not used or not count:
            raise PlanError("the configuration does not say how many of its experts a token uses")
        unread += experts - math.ceil(experts * used / count)
        notes.append(
            f"a token reads {used} of {count} experts; several users together read more of them, "
            "up to all, which is not modelled"
        )
    return Layout(tuple(shapes), total, total - unread, tuple(notes))


def _per_user(config: Mapping[str, Any], question: Question) -> int:
    bits = kv_bits_stored(question.kv_bits, question.context)
    return kv_cache_bytes(cache_shape(config), question.context, bits)


def _speed(
    layout: Layout, weights: int, cache: int, users: int, device: Device, count: int, share: float
) -> dict[str, Any]:
    """Tokens a second of a step of ``users`` rows: bytes over bandwidth, or arithmetic."""
    read = weights * layout.read / layout.parameters
    memory = (read + users * cache) / (count * device.bandwidth * share)
    arithmetic = 0.0
    if device.flops:
        arithmetic = 2 * layout.read * users / (count * device.flops * share)
    seconds = max(memory, arithmetic)
    return {
        "users": users,
        "tokens_per_second": users / seconds,
        "tokens_per_second_a_user": 1 / seconds,
        "bound_by": "arithmetic" if arithmetic > memory else "memory bandwidth",
    }


def _fits(device: Device, weights: int, cache: int, count: int = 1) -> int:
    return users_that_fit(device.memory * count, weights, cache, USABLE)


def _smallest(weights: int, cache: int, kind: str) -> str | None:
    order = sorted(
        (d for d in DEVICES.values() if d.kind == kind), key=lambda d: (d.memory, d.bandwidth)
    )
    return next((d.name for d in order if _fits(d, weights, cache)), None)


def model_cost(config: Mapping[str, Any], question: Question) -> dict[str, Any]:
    """What a model takes.

    Args:
        config: its ``config.json``.
        question: width, context, device and price.

    Returns:
        ``{"modelled": True, …}``: parameters, bytes of weights, whole and as codes, scales and what
            stays dense (embeddings, head, norms), and of a token's and a user's cache,
        bits a weight, the smallest GPU and laptop that hold one user, and for the device named how
        many of it are needed, how many users fit, tokens a second and $ per million tokens.

    Raises:
        PlanError: a configuration that says too little, a context that is too long, more users than
            fit, or a share that is none.
    """
    shape = cache_shape(config)
    if question.context < 1 or (shape.longest and question.context > shape.longest):
        raise PlanError(
            f"a context of {question.context} tokens, where the model reads 1 to {shape.longest}",
            hint="Give --context within that.",
        )
    if not 0 < question.efficiency <= 1:
        raise PlanError(f"an efficiency of {question.efficiency:g}", hint="Between 0 and 1.")
    layout = layout_of(config)
    weights = layout.weight_bytes(question.scheme)
    cache = _per_user(config, question)
    found: dict[str, Any] = {
        "modelled": True,
        "scheme": "dense-16" if question.scheme is None else str(question.scheme),
        "parameters": layout.parameters,
        "weight_bytes": weights,
        "weight_parts": layout.weight_parts(question.scheme),
        "bits_per_weight": 8 * weights / layout.parameters,
        "dense_bytes": layout.weight_bytes(None),
        "context": question.context,
        "kv_bits": question.kv_bits,
        "kv_bytes_a_user": cache,
        "kv_bytes_a_token": cache / question.context,
        "smallest_gpu": _smallest(weights, cache, "gpu"),
        "smallest_laptop": _smallest(weights, cache, "laptop"),
        "notes": [*layout.notes, *shape.notes],
    }
    if question.device is not None:
        found["serving"] = _serving(layout, weights, cache, question)
    return found


def _serving(layout: Layout, weights: int, cache: int, question: Question) -> dict[str, Any]:
    device = question.device
    assert device is not None
    count = next((n for n in (1, 2, 4, 8, 16) if _fits(device, weights, cache, n)), None)
    if count is None:
        raise PlanError(
            f"sixteen {device.name} do not hold the model and one user",
            hint="Fewer bits, a shorter context or a larger device.",
        )
    room = _fits(device, weights, cache, count)
    users = question.users or room
    if users > room:
        raise PlanError(
            f"{users} users do not fit: {count} {device.name} hold {room} at {question.context} "
            "tokens each",
            hint="Fewer users, a shorter context, or a cache of fewer bits (--kv-bits).",
        )
    share = question.efficiency
    out: dict[str, Any] = {
        "device": device.name,
        "devices": count,
        "users_that_fit": room,
        "efficiency": share,
        "alone": _speed(layout, weights, cache, 1, device, count, share),
        "full": _speed(layout, weights, cache, users, device, count, share),
    }
    if question.price_per_hour is not None:
        price = question.price_per_hour * count
        for name in ("alone", "full"):
            speed = out[name]["tokens_per_second"]
            out[name]["dollars_per_million_tokens"] = dollars_per_million(price, speed)
    return out
