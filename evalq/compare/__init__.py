"""Stored runs, opened and compared: records paired by hash, effects with intervals, flips.

>>> from evalq.compare import load_run, compare          # doctest: +SKIP
>>> compare(load_run(Path("runs/demo")), "gptq-w4-g128").overall.delta   # doctest: +SKIP
-0.0125
"""

from evalq.compare.fidelity import FidelityResult, fidelity_result, kl_by_slice
from evalq.compare.pairs import Pairs, pair
from evalq.compare.runs import Run, load_run
from evalq.compare.slices import Comparison, PerplexityResult, SliceResult, compare

__all__ = [
    "Comparison",
    "FidelityResult",
    "Pairs",
    "PerplexityResult",
    "Run",
    "SliceResult",
    "compare",
    "fidelity_result",
    "kl_by_slice",
    "load_run",
    "pair",
]
