"""One forward pass over padded rows with a key-value cache that grows in place."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, CacheLayerMixin

from evalq.errors import ParentError
from evalq.models import kvcache

__all__ = ["ENOUGH", "Forward", "Side", "SlabCache", "SlabLayer", "State"]

_GRAIN = 64
"""Cache slots are allocated in multiples of this many tokens."""

ENOUGH = {"cpu": 512, "cuda": 8192}
"""Tokens by device from which on a pass gets no faster a token: what is longer is not padded to."""

Side = Literal["left", "right"]
"""Where padding goes."""

_ATTENTION_TYPES = {"full_attention", "sliding_attention"}


class SlabLayer(CacheLayerMixin):  # type: ignore[no-untyped-call]
    """Keys and values of one layer in buffers with spare room, so that a step copies one token.

    transformers' own dynamic layer concatenates, which copies the whole cache once a step.
    """

    is_sliding = False

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)  # type: ignore[no-untyped-call]
        self.length = 0
        self._buffers: tuple[Tensor, Tensor] | None = None

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Allocate buffers for the states and one grain more."""
        self._grow(key_states, value_states)
        self.is_initialized = True

    def _grow(self, keys: Tensor, values: Tensor) -> None:
        room = (self.length + keys.shape[-2] + _GRAIN) // _GRAIN * _GRAIN
        fresh = []
        for old, like in zip((self.keys, self.values), (keys, values), strict=True):
            buffer = like.new_empty(*like.shape[:-2], room, like.shape[-1])
            if old is not None and self.length:
                buffer[..., : self.length, :] = old
            fresh.append(buffer)
        self._buffers = (fresh[0], fresh[1])

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Append the states ``[rows, heads, new, width]``; the whole of both comes back."""
        end = self.length + key_states.shape[-2]
        if self._buffers is None or end > self._buffers[0].shape[-2]:
            self._grow(key_states, value_states)
            self.is_initialized = True
        assert self._buffers is not None
        keys, values = self._buffers
        keys[..., self.length : end, :] = key_states
        values[..., self.length : end, :] = value_states
        self.length = end
        self.keys, self.values = keys[..., :end, :], values[..., :end, :]
        return self.keys, self.values

    @property
    def states(self) -> tuple[Tensor, Tensor]:
        """Keys and values held, each ``[rows, heads, tokens, width]``."""
        assert self.keys is not None
        assert self.values is not None
        return self.keys, self.values

    def select(self, rows: Tensor) -> None:
        """Keep (or repeat) the rows of the batch with these indices; int64 ``[new rows]``."""
        if self.keys is None or self.values is None:
            return
        self.keys = self.keys.index_select(0, rows)
        self.values = self.values.index_select(0, rows)
        # The next update sees no buffer with room and makes one, from these views.
        self._buffers = None

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Keys after ``query_length`` more tokens, and the index of the first: 0."""
        return self.length + query_length, 0

    def get_seq_length(self) -> int:
        """Tokens held."""
        return self.length

    def get_max_length(self) -> int:
        """No limit."""
        return -1


class _RoundedLayer(SlabLayer):  # type: ignore[no-untyped-call]
    """The same, with all but the recent tokens rounded to few bits (``kvcache``)."""

    bits = 16

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._rounded = 0

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Append the states of tokens of one aligned group, see ``kvcache.first_exact``."""
        end = kvcache.first_exact(self.length)
        if end > self._rounded and self.keys is not None and self.values is not None:
            old = slice(self._rounded, end)
            self.keys[..., old, :] = kvcache.round_keys(self.keys[..., old, :], self.bits)
            self.values[..., old, :] = kvcache.round_values(self.values[..., old, :], self.bits)
            self._rounded = end
        return super().update(key_states, value_states, *args, **kwargs)


def _layer_class(bits: int | None) -> type[SlabLayer]:
    if bits is None:
        return SlabLayer
    return type(f"_Rounded{bits}Layer", (_RoundedLayer,), {"bits": bits})


class SlabCache(Cache):
    """A cache for models whose layers attend to all, or to a window, of what came before.

    Args:
        bits: that all but the recent tokens are rounded to; ``None`` leaves them.
    """

    def __init__(self, bits: int | None = None) -> None:
        super().__init__(layer_class_to_replicate=_layer_class(bits))

    @property
    def slabs(self) -> list[SlabLayer]:
        """Its layers."""
        found = [layer for layer in self.layers if isinstance(layer, SlabLayer)]
        assert len(found) == len(self.layers)
        return found

    def shared(self) -> SlabCache:
        """A cache with the same keys and values: rows that are selected in it are copies."""
        made = copy.copy(self)
        made.layers = [copy.copy(layer) for layer in self.layers]
        return made

    def select(self, rows: Tensor) -> None:
        """Keep (or repeat) the rows of the batch with these indices; int64 ``[new rows]``."""
        for layer in self.slabs:
            layer.select(rows)


class State:
    """What a model has read so far, for each row of a batch.

    Args:
        cache: keys and values, ``None`` when nothing was kept.
        mask: bool ``[rows, read]``, False at padding; ``None`` when there is none.
        lengths: int64 ``[rows]``, tokens read without padding: the position of the next one.
        read: columns read, padding included.
    """

    __slots__ = ("cache", "lengths", "mask", "read")

    def __init__(self, rows: int, device: torch.device, bits: int | None = None) -> None:
        self.cache = SlabCache(bits)
        self.mask: Tensor | None = None
        self.lengths = torch.zeros(rows, dtype=torch.int64, device=device)
        self.read = 0

    def select(self, rows: Sequence[int]) -> None:
        """Keep (or repeat) these rows, in this order."""
        index = torch.tensor(list(rows), dtype=torch.int64, device=self.lengths.device)
        self.cache.select(index)
        self.lengths = self.lengths[index]
        if self.mask is not None:
            self.mask = self.mask[index]

    def taken(self, rows: Sequence[int]) -> State:
        """A state of these rows, in this order; this one stays as it is."""
        made = copy.copy(self)
        made.cache = self.cache.shared()
        made.select(rows)
        return made


class Forward:
    """Runs a causal LM on rows of tokens.

    Args:
        module: a transformers causal LM in evaluation mode.
        tokens: at most so many tokens are read by one call of the module.
        logits: at most so many rows of logits are made by one call.
        kv_bits: of the cache; rows then have to be of one length where they are padded on the left,
            and are read in groups of 32 tokens.

    Raises:
        ParentError: an architecture whose layers keep something other than keys and values
            (recurrent states), or an encoder-decoder; neither can be padded and shared this way.
    """

    def __init__(
        self, module: PreTrainedModel, tokens: int, logits: int, kv_bits: int | None = None
    ) -> None:
        if kv_bits is not None:
            kvcache.check_bits(kv_bits)
        config = module.config.get_text_config()
        types = set(getattr(config, "layer_types", None) or ()) - _ATTENTION_TYPES
        if config.is_encoder_decoder or getattr(module, "_is_stateful", False) or types:
            what = ", ".join(sorted(types)) or config.model_type
            raise ParentError(
                f"the transformers engine cannot run {type(module).__name__} ({what})",
                hint="It runs decoder-only models whose layers attend to keys and values; serve "
                "others behind an endpoint.",
            )
        names = inspect.signature(module.forward).parameters
        self._module = module
        self.tokens = tokens
        self.enough = ENOUGH.get(module.device.type, ENOUGH["cpu"])
        self._logits = logits
        self._positions = "position_ids" in names
        self._keep = "logits_to_keep" in names
        head: Any = module.get_output_embeddings  # which transformers leaves untyped
        self._head = head()
        self.device: torch.device = module.device
        self.dtype: torch.dtype = module.dtype
        self.vocabulary: int = config.vocab_size
        sliding = "sliding_attention" in (getattr(config, "layer_types", None) or ())
        window = getattr(config, "sliding_window", None) is not None
        # Padding between a shared prefix and a row's own tokens would shift a window that
        # transformers counts in columns.
        self.gaps = self._positions and not (sliding or window)
        self.kv_bits = kv_bits
        if kv_bits is not None and (sliding or window):
            raise ParentError(
                f"a KV cache of {kv_bits} bits is not rounded in layers that attend to a window",
                hint="Leave kv_bits out for this model.",
            )

    def start(self, rows: int) -> State:
        """The state of ``rows`` rows that have read nothing."""
        return State(rows, self.device, self.kv_bits)

    def read(self, state: State, rows: Sequence[Sequence[int]], side: Side) -> Tensor:
        """Read more tokens into every row, and predict what follows.

        Args:
            state: is changed in place.
            rows: the tokens of each row; shorter rows are padded.
            side: where padding goes. Nothing may be read after right padding, whose columns hold
                keys that a row's next tokens would have to step over.

        Returns:
            Logits after the last column, ``[rows, vocabulary]``, in the model's dtype.
        """
        last = None
        for _, logits in self.scan(state, rows, 1, side):
            last = logits[:, -1]
        assert last is not None
        return last

    def scan(
        self, state: State, rows: Sequence[Sequence[int]], keep: int, side: Side
    ) -> Iterator[tuple[int, Tensor]]:
        """Read more tokens into every row, in spans of columns that memory allows.

        Args:
            state: is changed in place.
            rows: as for ``read``.
            keep: the logits of so many last columns are wanted.
            side: as for ``read``.

        Yields:
            ``(start, logits)``: logits ``[rows, columns, vocabulary]`` of the columns from
            ``start`` on, for each span that reaches into the last ``keep`` columns.
        """
        width = max(len(row) for row in rows)
        padded, real = [], []
        for row in rows:
            gap = width - len(row)
            pad = [0] * gap
            padded.append([*pad, *row] if side == "left" else [*row, *pad])
            if side == "left":
                real.append([False] * gap + [True] * len(row))
            else:
                real.append([True] * len(row) + [False] * gap)
        tokens = torch.tensor(padded, dtype=torch.int64, device=self.device)
        mask = torch.tensor(real, dtype=torch.bool, device=self.device)
        full = all(len(row) == width for row in rows)
        if self.kv_bits is not None and side == "left" and not full:
            raise ValueError("rows of one length only: groups of the cache are counted in columns")
        start, first = 0, width - keep
        while start < width:
            end = min(width, start + max(1, self.tokens // len(rows)))
            if self.kv_bits is not None:
                end = min(end, start + kvcache.GROUP - state.read % kvcache.GROUP)
            if end > first:
                # Only as many of the kept columns as their logits have room.
                end = min(end, max(start, first) + max(1, self._logits // len(rows)))
            wide = max(1, end - max(start, first))
            logits = self._run(
                state, tokens[:, start:end], None if full else mask[:, start:end], wide
            )
            if end > first:
                yield end - wide, logits
            start = end

    def step(self, state: State, tokens: Tensor) -> Tensor:
        """Read one token a row, int64 ``[rows]``; logits ``[rows, vocabulary]``."""
        return self._run(state, tokens[:, None], None, 1)[:, -1]

    @torch.inference_mode()
    def step_at(self, cache: Cache, tokens: Tensor, at: Tensor) -> Tensor:
        """Read one token a row of a cache whose rows have no padding and lengths of their own.

        Args:
            cache: writes slot ``at`` of each row; a row attends to its slots up to that one.
            tokens: int64 ``[rows]``.
            at: int64 ``[rows]``, the tokens that a row holds already.

        Returns:
            Logits ``[rows, vocabulary]``, in the model's dtype.
        """
        columns = torch.arange(cache.get_seq_length(), device=self.device)
        hidden = torch.finfo(self.dtype).min
        mask = torch.where(columns <= at[:, None], 0.0, hidden).to(self.dtype)
        extra = {"logits_to_keep": 1} if self._keep else {}
        logits: Tensor = self._module(
            input_ids=tokens[:, None],
            attention_mask=mask[:, None, None],
            position_ids=at[:, None],
            past_key_values=cache,
            use_cache=True,
            **extra,
        ).logits
        return logits[:, -1]

    @torch.inference_mode()
    def _run(self, state: State, tokens: Tensor, mask: Tensor | None, keep: int) -> Tensor:
        rows, width = tokens.shape
        before = state.lengths[:, None]
        if mask is None:
            positions = before + torch.arange(width, device=self.device)
            if state.mask is not None:
                state.mask = torch.cat([state.mask, state.mask.new_ones(rows, width)], 1)
            state.lengths = state.lengths + width
        else:
            past = state.mask
            if past is None:
                past = mask.new_ones(rows, state.read)
            state.mask = torch.cat([past, mask], 1)
            seen = mask.cumsum(1)
            positions = (before + seen - 1).clamp_min(0)
            state.lengths = state.lengths + seen[:, -1]
        state.read += width
        extra: dict[str, Any] = {}
        if self._positions:
            extra["position_ids"] = positions
        if self._keep:
            extra["logits_to_keep"] = keep
        with _dense_input(self._head):
            logits: Tensor = self._module(
                input_ids=tokens,
                attention_mask=None if state.mask is None else state.mask.to(torch.int64),
                past_key_values=state.cache,
                use_cache=True,
                **extra,
            ).logits
        return logits[:, -keep:]


@contextmanager
def _dense_input(head: Any) -> Iterator[None]:
    """Let the head read its columns from memory in one piece.

    A product with a strided view of the last columns would be cut into one a row, for each of
    which torch copies the whole head.
    """
    if head is None:
        yield
        return
    handle = head.register_forward_pre_hook(
        lambda _, args: (args[0].clone(memory_format=torch.contiguous_format), *args[1:])
    )
    try:
        yield
    finally:
        handle.remove()
