"""What a decoder keeps in memory, by arithmetic: KV cache a token, users a device, price a token.

Nothing here is measured; whatever shows these numbers says that they are modelled. No torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from evalq.errors import PlanError

__all__ = [
    "CacheShape",
    "cache_shape",
    "dollars_per_million",
    "kv_cache_bytes",
    "shape_config",
    "users_that_fit",
]

_WINDOWED = frozenset({"mistral", "mixtral", "phi3", "starcoder2"})
"""Families whose ``sliding_window`` holds for every layer where they name no ``layer_types``."""

_STATEFUL = ("mamba", "rwkv", "jamba", "zamba", "recurrent_gemma", "falcon_h1", "bamba", "lfm2")
"""Families that keep a state of fixed size in some or all layers."""


@dataclass(frozen=True, slots=True)
class CacheShape:
    """What one sequence keeps in the KV cache.

    Args:
        full: layers that keep every token.
        windows: tokens that each of the other attention layers keeps at most.
        values: numbers a token leaves in one layer: ``2 * kv_heads * head_dim``, or for latent
            attention (DeepSeek-V2, arXiv 2405.04434) ``kv_lora_rank + qk_rope_head_dim``.
        longest: longest context in tokens that the configuration allows; ``None`` if it says none.
        notes: what is left out or assumed, a sentence each.
    """

    full: int
    windows: tuple[int, ...]
    values: int
    longest: int | None
    notes: tuple[str, ...] = ()

    def tokens(self, context: int) -> int:
        """Tokens kept, summed over the layers, after ``context`` tokens."""
        return self.full * context + sum(min(w, context) for w in self.windows)


def _first(config: Mapping[str, Any], *names: str) -> int | None:
    for name in names:
        value = config.get(name)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
    return None


def _need(config: Mapping[str, Any], what: str, *names: str) -> int:
    value = _first(config, *names)
    if value is None:
        raise PlanError(
            f"the model's configuration does not say {what}: it has none of {', '.join(names)}",
            hint="Without it the KV cache cannot be modelled; give the config.json of a decoder.",
        )
    return value


def _values(config: Mapping[str, Any]) -> int:
    rank = _first(config, "kv_lora_rank")
    if rank is not None:
        return rank + _need(config, "the width of rotary keys", "qk_rope_head_dim")
    heads = _need(config, "its attention heads", "num_attention_heads", "n_head", "n_heads")
    if config.get("multi_query") and not config.get("new_decoder_architecture"):
        shared: int | None = 1
    else:
        shared = _first(config, "num_key_value_heads", "num_kv_heads", "multi_query_group_num")
    width = _first(config, "head_dim", "kv_channels")
    if width is None:
        hidden = _need(config, "its width", "hidden_size", "n_embd", "d_model")
        if hidden % heads:
            raise PlanError(f"a width of {hidden} is not shared evenly by {heads} heads")
        width = hidden // heads
    return 2 * (shared or heads) * width


def _layers(config: Mapping[str, Any]) -> tuple[int, tuple[int, ...], tuple[str, ...]]:
    count = _need(config, "its layers", "num_hidden_layers", "n_layer", "n_layers", "num_layers")
    family = str(config.get("model_type") or "")
    window = _first(config, "sliding_window", "attention_chunk_size")
    kinds = config.get("layer_types")
    if isinstance(kinds, list) and kinds:
        full = sum(k == "full_attention" for k in kinds)
        local = sum(k in ("sliding_attention", "chunked_attention") for k in kinds)
        if local and window is None:
            raise PlanError("the model's configuration has windowed layers and names no window")
        other = len(kinds) - full - local
        note = f"{other} of {len(kinds)} layers keep a state of fixed size, which is not counted"
        return full, (window or 0,) * local, (note,) if other else ()
    if family.startswith(_STATEFUL):
        raise PlanError(
            f"the memory of {family!r} models is not modelled without 'layer_types'",
            hint="Some of their layers keep no KV cache; measure them instead.",
        )
    if window is not None and config.get("use_sliding_window") is not False:
        if family in _WINDOWED:
            return 0, (window,) * count, ()
        note = f"every layer is taken to keep every token, though a window of {window} is named"
        return count, (), (note,)
    return count, (), ()


def cache_shape(config: Mapping[str, Any]) -> CacheShape:
    """The cache of a decoder, from its ``config.json`` (nested ``text_config`` is looked into).

    Raises:
        PlanError: the configuration does not say enough, or of layers that keep no KV cache.
    """
    inner = config.get("text_config")
    text = inner if isinstance(inner, Mapping) else config
    full, windows, notes = _layers(text)
    longest = _first(text, "max_position_embeddings", "n_positions", "max_seq_len", "seq_length")
    return CacheShape(full, windows, _values(text), longest, notes)


_KEYS = (
    *("model_type", "num_hidden_layers", "n_layer", "n_layers", "num_layers", "layer_types"),
    *("num_attention_heads", "n_head", "n_heads", "num_key_value_heads", "num_kv_heads"),
    *("multi_query", "new_decoder_architecture", "multi_query_group_num", "head_dim"),
    *("kv_channels", "hidden_size", "n_embd", "d_model", "kv_lora_rank", "qk_rope_head_dim"),
    *("sliding_window", "use_sliding_window", "attention_chunk_size"),
    *("max_position_embeddings", "n_positions", "max_seq_len", "seq_length"),
)


def shape_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a configuration that ``cache_shape`` reads, as JSON values."""
    inner = config.get("text_config")
    text = inner if isinstance(inner, Mapping) else config
    return {key: text[key] for key in _KEYS if text.get(key) is not None}


def kv_cache_bytes(shape: CacheShape, context: int, bits: float = 16.0) -> int:
    """Bytes of the KV cache of one sequence of ``context`` tokens.

    >>> llama3_8b = CacheShape(full=32, windows=(), values=2 * 8 * 128, longest=8192)
    >>> kv_cache_bytes(llama3_8b, 1)            # 128 KiB a token
    131072

    Args:
        shape: of the model.
        context: tokens, prompt and answer.
        bits: of a cached number, scales included.
    """
    return math.ceil(shape.tokens(context) * shape.values * bits / 8)


def users_that_fit(memory: float, weights: float, per_user: float, usable: float = 0.9) -> int:
    """Sequences whose caches fit beside the weights.

    Args:
        memory: of the device in bytes.
        weights: of the model in bytes.
        per_user: KV cache of one sequence in bytes.
        usable: share of the memory that weights and caches may take; the rest is left for
            activations and the runtime.
    """
    left = usable * memory - weights
    return max(0, math.floor(left / per_user)) if per_user > 0 else 0


def dollars_per_million(per_hour: float, tokens_per_second: float) -> float:
    """Price of a million tokens on a machine of ``per_hour`` dollars.

    >>> round(dollars_per_million(3.6, 1000.0), 6)
    1.0

    Raises:
        PlanError: a price or a speed that is not above zero.
    """
    for value, name in ((per_hour, "price per hour"), (tokens_per_second, "speed")):
        if not (math.isfinite(value) and value > 0):
            raise PlanError(f"a {name} of {value:g} gives no price a token")
    return per_hour / 3600 / tokens_per_second * 1e6
