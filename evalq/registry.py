"""One generic registry: a collision raises, a miss suggests, targets may be lazy ``module:attr``.

Pattern: lm-eval's ``api/registry.py``. Lazy targets keep ``evalq --help`` and ``evalq list`` from
importing torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from typing import Generic, TypeVar, cast

from evalq.errors import PlanError, nearest

__all__ = ["Registry"]

T = TypeVar("T")


class Registry(Generic[T]):
    """Names to objects of one kind.

    Args:
        kind: what the names are, for messages (``"method"``, ``"format"``).
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._targets: dict[str, T | str] = {}
        self._summaries: dict[str, str] = {}

    def add(self, name: str, target: T | str, summary: str = "") -> None:
        """Register ``target`` (an object, or ``"module:attr"`` to import on first use).

        Raises:
            ValueError: the name is taken; that is a defect of the caller, not of a user.
        """
        if name in self._targets:
            raise ValueError(f"{self.kind} {name!r} is already registered")
        self._targets[name] = target
        self._summaries[name] = summary

    def get(self, name: str) -> T:
        """The object of that name.

        Raises:
            PlanError: no such name; the nearest one is suggested.
        """
        if name not in self._targets:
            raise PlanError(f"unknown {self.kind} {name!r}", hint=nearest(name, self._targets))
        target = self._targets[name]
        if isinstance(target, str):
            module, _, attribute = target.partition(":")
            target = cast(T, getattr(import_module(module), attribute))
            self._targets[name] = target
        return target

    def summary(self, name: str) -> str:
        """One line about the name, as given at registration."""
        return self._summaries[name]

    def __contains__(self, name: object) -> bool:
        return name in self._targets

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._targets))

    def __len__(self) -> int:
        return len(self._targets)
