"""Stored runs, opened and compared: records paired by hash, effects with intervals, flips.

>>> from evalq.compare import load_run, compare          # doctest: +SKIP
>>> compare(load_run(Path("runs/demo")), "gptq-w4-g128").overall.delta   # doctest: +SKIP
-0.0125
"""

from evalq.compare.across import Entrant, Shared, shared_items
from evalq.compare.fidelity import (
    FidelityResult,
    fidelity_by_text,
    fidelity_result,
    kl_by_slice,
    whole,
)
from evalq.compare.pairs import Pairs, pair
from evalq.compare.runs import Run, load_run
from evalq.compare.slices import Comparison, PerplexityResult, SliceResult, compare, slice_result

__all__ = [
    "Comparison",
    "Entrant",
    "FidelityResult",
    "Pairs",
    "PerplexityResult",
    "Run",
    "Shared",
    "SliceResult",
    "compare",
    "fidelity_by_text",
    "fidelity_result",
    "kl_by_slice",
    "load_run",
    "pair",
    "shared_items",
    "slice_result",
    "whole",
]
