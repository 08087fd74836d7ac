"""Prompts that begin alike: what they have in common is read once."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from evalq.models.batching import common_prefix
from evalq.models.forward import Forward, State

__all__ = ["Prompts", "shared_prefix"]

_MIN_SHARED = 32


def shared_prefix(forward: Forward, heads: Sequence[Sequence[int]]) -> int:
    """Tokens that all ``heads`` begin with and that are read once for all of them.

    0 where it does not pay (fewer than 32 tokens, a single head), or where padding between the
    prefix and the rest would change what a layer attends to.
    """
    if len(heads) < 2 or not forward.gaps:
        return 0
    first = heads[0]
    common = min(common_prefix(first, head) for head in heads[1:])
    # Every head keeps a token of its own, whose logits predict what follows.
    common = min(common, min(len(head) for head in heads) - 1)
    return common if common >= _MIN_SHARED else 0


class Prompts:
    """Reads prompts that may begin alike: what all have in common is read once.

    Args:
        forward: the model.
        heads: tokens of every prompt that will be read.
    """

    def __init__(self, forward: Forward, heads: Sequence[Sequence[int]]) -> None:
        self._forward = forward
        self.shared = shared_prefix(forward, heads)
        """Tokens of the common beginning, 0 where none is read apart."""
        self._common: State | None = None
        if self.shared:
            self._common = forward.start(1)
            forward.read(self._common, [heads[0][: self.shared]], "left")

    def read(self, heads: Sequence[Sequence[int]]) -> tuple[State, Tensor]:
        """The state after some of the prompts, and the logits of what follows each."""
        if self._common is None:
            state = self._forward.start(len(heads))
        else:
            state = self._common.taken([0] * len(heads))
        return state, self._forward.read(state, [h[self.shared :] for h in heads], "left")
