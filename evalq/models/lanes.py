"""Where the rows of a generation are kept between steps: a growing batch, or lanes refilled.

A growing batch (``Grown``) reads all prompts at once; rows that have finished leave it, and none
comes in. Lanes (``Lanes``) are a fixed number of rows with room for a fixed number of tokens each,
every row from its first slot on without padding: a row that has finished makes room for the next
prompt, and on CUDA a step is one graph that is captured once and replayed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from evalq.errors import KernelError
from evalq.models.forward import Forward, SlabLayer, State
from evalq.models.prefix import Prompts

__all__ = ["Grown", "Keeper", "Lanes"]

_GRAIN = 128
"""Lanes are made for multiples of so many tokens, so that one graph serves many batches."""

_TOLERANCE = {torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 8e-2}
"""Largest relative difference (norm) of a step's logits from those of a growing batch."""


class Keeper(Protocol):
    """Rows of a generation; a row is a number below ``rows``."""

    rows: int
    refills: bool
    """Whether a row that has finished can take another prompt."""

    def fill(self, rows: Sequence[int], prompts: Sequence[Sequence[int]]) -> Tensor:
        """Read prompts into these rows; logits ``[prompts, vocabulary]`` of what follows each."""
        ...

    def step(self, tokens: Sequence[int | None]) -> Tensor:
        """Read one more token a row, ``None`` for a free row; logits ``[rows, vocabulary]``."""
        ...

    def keep(self, rows: Sequence[int]) -> list[int]:
        """Go on with these rows alone: what each row was before, or all of them as they were."""
        ...


class Grown:
    """A batch whose rows are read together; ``fill`` is called once, for all rows.

    Args:
        forward: the model.
        prompts: reads them.
        rows: how many.
    """

    refills = False

    def __init__(self, forward: Forward, prompts: Prompts, rows: int) -> None:
        self.rows = rows
        self._forward, self._prompts = forward, prompts
        self._state: State | None = None

    def fill(self, rows: Sequence[int], prompts: Sequence[Sequence[int]]) -> Tensor:
        """See ``Keeper``."""
        assert len(rows) == self.rows
        self._state, logits = self._prompts.read(prompts)
        return logits

    def step(self, tokens: Sequence[int | None]) -> Tensor:
        """See ``Keeper``."""
        assert self._state is not None
        read = torch.tensor([t or 0 for t in tokens], device=self._forward.device)
        return self._forward.step(self._state, read)

    def keep(self, rows: Sequence[int]) -> list[int]:
        """See ``Keeper``."""
        assert self._state is not None
        self._state.select(rows)
        self.rows = len(rows)
        return list(rows)


class _LaneLayer(CacheLayerMixin):  # type: ignore[no-untyped-call]
    """Keys and values of one layer, ``[rows, heads, slots, width]``; a step writes one slot a row.

    Args:
        at: int64 ``[rows]``, the slot that the next step writes; shared by all layers.
    """

    is_sliding = False

    def __init__(self, keys: Tensor, values: Tensor, at: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.states, self.at = (keys, values), at
        self.seen = keys.shape[2]
        """Slots that a step attends to, from the first."""
        self.is_initialized = True

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing: the buffers are given."""

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Write the states ``[rows, heads, 1, width]`` of one token a row."""
        for buffer, states in zip(self.states, (key_states, value_states), strict=True):
            where = self.at[:, None, None, None].expand(states.shape)
            buffer.scatter_(2, where, states)
        keys, values = self.states
        return keys[:, :, : self.seen], values[:, :, : self.seen]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Slots attended to, and the index of the first: 0."""
        return self.seen, 0

    def get_seq_length(self) -> int:
        """Slots attended to."""
        return self.seen

    def get_max_length(self) -> int:
        """Slots."""
        return self.seen


class Lanes:
    """Rows of a fixed room that take one prompt after another.

    Args:
        forward: the model; it must read positions and a mask of its own (``Forward.gaps``).
        prompts: reads them.
        rows: how many.
        length: tokens of the longest row, generated ones included.

    Raises:
        KernelError: the step gives other logits than the model's own cache does, or cannot be
            captured; the message says which.
    """

    refills = True

    def __init__(self, forward: Forward, prompts: Prompts, rows: int, length: int) -> None:
        self.rows = rows
        self._forward, self._prompts = forward, prompts
        self._slots = -(-length // _GRAIN) * _GRAIN
        self._lengths = [0] * rows
        self._at = torch.zeros(rows, dtype=torch.int64, device=forward.device)
        self._tokens = torch.zeros(rows, dtype=torch.int64, device=forward.device)
        self._layers: list[_LaneLayer] = []
        self._used: set[int] = set()
        self._graphs = forward.device.type == "cuda"
        self._graph: torch.cuda.CUDAGraph | None = None
        self._logits: Tensor | None = None
        self._checked = False

    def fill(self, rows: Sequence[int], prompts: Sequence[Sequence[int]]) -> Tensor:
        """See ``Keeper``.

        Raises:
            KernelError: as for the class.
        """
        state, logits = self._prompts.read(prompts)
        if not self._layers:
            self._layers = [self._made(layer) for layer in state.cache.slabs]
        for row, prompt in zip(rows, prompts, strict=True):
            self._lengths[row] = len(prompt)
        self._copy(state, rows, prompts)
        if not self._checked:
            self._check(state, rows, logits.argmax(-1))
        return logits

    def step(self, tokens: Sequence[int | None]) -> Tensor:
        """See ``Keeper``; on CUDA the next step overwrites the logits."""
        pairs = list(zip(tokens, self._lengths, strict=True))
        # A free row writes its first slot, again and again.
        self._lengths = [0 if token is None else length for token, length in pairs]
        self._tokens.copy_(torch.tensor([token or 0 for token in tokens]))
        self._at.copy_(torch.tensor(self._lengths))
        logits = self._run()
        self._lengths = [0 if token is None else length + 1 for token, length in pairs]
        return logits

    def keep(self, rows: Sequence[int]) -> list[int]:
        """See ``Keeper``; a captured step has a fixed number of rows."""
        if self._graph is not None:
            return list(range(self.rows))
        count = len(rows)
        order = list(range(count))
        # Only rows beyond the new end move, into free ones before it.
        free = sorted(set(order).difference(rows))
        moved = [row for row in rows if row >= count]
        for place, row in zip(free, moved, strict=True):
            order[place] = row
        if moved:
            target, source = (torch.tensor(x, device=self._forward.device) for x in (free, moved))
            for layer in self._layers:
                for states in layer.states:
                    states[target] = states[source]
        self.rows = count
        self._lengths = [self._lengths[row] for row in order]
        self._at, self._tokens = self._at[:count], self._tokens[:count]
        for layer in self._layers:
            keys, values = layer.states
            layer.states, layer.at = (keys[:count], values[:count]), self._at
        return order

    def _made(self, slab: SlabLayer) -> _LaneLayer:
        keys, values = (
            s.new_zeros(self.rows, s.shape[1], self._slots, s.shape[3]) for s in slab.states
        )
        return _LaneLayer(keys, values, self._at)

    def _copy(self, state: State, rows: Sequence[int], prompts: Sequence[Sequence[int]]) -> None:
        """Keys and values of prompts, without their padding, to the first slots of rows."""
        shared, used = self._prompts.shared, not self._used.isdisjoint(rows)
        self._used.update(rows)
        index = torch.tensor(list(rows), device=self._forward.device)
        for slab, layer in zip(state.cache.slabs, self._layers, strict=True):
            for old, new in zip(slab.states, layer.states, strict=True):
                # What an earlier prompt left may be infinite, and 0 times that is no 0.
                if used:
                    new.index_fill_(0, index, 0)
                if shared:
                    new[index, :, :shared] = old[:1, :, :shared]
                for place, (row, prompt) in enumerate(zip(rows, prompts, strict=True)):
                    rest = len(prompt) - shared
                    new[row, :, shared : len(prompt)] = old[place, :, old.shape[2] - rest :]

    def _run(self) -> Tensor:
        if self._graph is not None and self._logits is not None:
            self._graph.replay()
            return self._logits
        if not self._graphs:
            for layer in self._layers:
                layer.seen = max(self._lengths) + 1
        return self._forward.step_at(Cache(layers=list(self._layers)), self._tokens, self._at)

    def _check(self, state: State, rows: Sequence[int], tokens: Tensor) -> None:
        """Hold the first step against that of a growing batch, then capture it."""
        self._checked = True
        own = self._forward.step(state, tokens).float()
        self._tokens[torch.tensor(list(rows), device=tokens.device)] = tokens
        self._at.copy_(torch.tensor(self._lengths))
        ours = self._run()
        if self._graphs:
            self._capture()
            ours = self._run()
        error = float((ours[list(rows)].float() - own).norm() / own.norm().clamp_min(1e-30))
        # A NaN that the model itself computes is no fault of the lanes.
        if not error <= _TOLERANCE.get(self._forward.dtype, 1e-3) and bool(own.isfinite().all()):
            raise KernelError(f"a step over lanes gives other logits (relative error {error:.2g})")

    @torch.inference_mode()
    def _capture(self) -> None:
        graph = torch.cuda.CUDAGraph()
        try:
            stream = torch.cuda.Stream(self._forward.device)  # type: ignore[no-untyped-call]
            stream.wait_stream(torch.cuda.current_stream(self._forward.device))
            with torch.cuda.stream(stream):
                for _ in range(2):
                    self._run()
            torch.cuda.current_stream(self._forward.device).wait_stream(stream)
            with torch.cuda.graph(graph):
                logits = self._run()
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            reason = str(error).splitlines()[0] if str(error) else "no reason given"
            raise KernelError(f"a step cannot be captured as a CUDA graph: {reason}") from None
        self._graph, self._logits = graph, logits
