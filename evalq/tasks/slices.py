"""Slices: the capabilities that tasks belong to, nested by ``/``."""

from __future__ import annotations

import re
from collections.abc import Iterable

from evalq.errors import PlanError

__all__ = ["check_slice", "in_slice", "slice_tree"]

_PART = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]*")


def check_slice(name: str, where: str) -> str:
    """``name``, when it is parts of letters, digits and ``_ . + -`` joined by ``/``.

    Raises:
        PlanError: it is not; ``where`` names the file and entry in the message.
    """
    if not name or not all(_PART.fullmatch(part) for part in name.split("/")):
        raise PlanError(
            f"{where}: {name!r} is not a slice",
            hint="Write parts of letters, digits and _ . + - joined by '/': multilingual/sw.",
        )
    return name


def in_slice(name: str, ancestor: str) -> bool:
    """Whether items of slice ``name`` count in ``ancestor``: itself, or one above it."""
    return name == ancestor or name.startswith(ancestor + "/")


def slice_tree(names: Iterable[str]) -> list[str]:
    """All slices that items of ``names`` count in, parents before children, sorted."""
    found: set[str] = set()
    for name in names:
        parts = name.split("/")
        found.update("/".join(parts[: i + 1]) for i in range(len(parts)))
    return sorted(found)
