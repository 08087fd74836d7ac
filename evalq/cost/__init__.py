"""The verb cost: what a variant takes, measured here or modelled for another machine."""

from evalq.cost.measure import (
    Candidate,
    Costs,
    Timing,
    measure_costs,
    peak_memory,
    time_model,
)

__all__ = ["Candidate", "Costs", "Timing", "measure_costs", "peak_memory", "time_model"]
