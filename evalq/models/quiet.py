"""Keeps transformers' own progress bars off the terminal while evalq shows its."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from transformers.utils import logging

__all__ = ["quiet"]


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bars of transformers within; what was set before is set again after."""

    def silent(
        factory: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> logging.EmptyTqdm:
        return logging.EmptyTqdm(*args, **kwargs)  # type: ignore[no-untyped-call]

    before = logging.set_tqdm_hook(silent)
    try:
        yield
    finally:
        logging.set_tqdm_hook(before)
