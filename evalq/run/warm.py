"""Importing what a run needs, quickly."""

from __future__ import annotations

import gc
from importlib import import_module

__all__ = ["import_engine"]

_HEAVY = ("evalq.tasks.bridge", "lm_eval.api.task", "evalq.models.load", "evalq.models.hf")


def import_engine() -> None:
    """Import what builds tasks and answers requests, with the garbage collector paused.

    Importing makes half a million objects and nearly no garbage; looking through them again and
    again takes a quarter of the time (benchmarks/RESULTS.md).
    """
    was = gc.isenabled()
    gc.disable()
    try:
        for name in _HEAVY:
            import_module(name)
    finally:
        if was:
            gc.enable()
