"""Statistics of a comparison: numpy in, frozen results out, generators passed in.

Everything is paired: the same items are answered by the parent and by the variant. Importing
this costs no statsmodels; functions that need it import it when they run.
"""

from evalq.stats.anytime import AnytimeResult, Evidence, anytime, decided, evidence, pooled_anytime
from evalq.stats.clusters import (
    Distribution,
    MeanResult,
    clustered_mean,
    design_effect,
    distribution,
    perplexity_ratio,
)
from evalq.stats.frontier import frontier_probability, pareto
from evalq.stats.multiplicity import Shrunken, benjamini_hochberg, holm, shrink, weighted_holm
from evalq.stats.noninferiority import (
    Equivalence,
    Outcome,
    Verdict,
    equivalence,
    relative_margin,
    threshold_verdict,
    verdict,
)
from evalq.stats.paired import (
    ChiSquare,
    PairedResult,
    clustered_tango,
    mcnemar_chi2,
    mcnemar_exact,
    mcnemar_midp,
    mcnemar_worse,
    paired_binary,
    paired_clustered,
    paired_mean,
    tango_interval,
    tango_z,
)
from evalq.stats.permutation import sign_flip_test
from evalq.stats.power import (
    Settling,
    detectable_margin,
    items_needed,
    items_to_settle,
    planned_power,
)
from evalq.stats.proportion import wilson
from evalq.stats.sequential import Monitoring, flip_e_value, monitor, noninferiority_log_e

__all__ = [
    "AnytimeResult",
    "ChiSquare",
    "Distribution",
    "Equivalence",
    "Evidence",
    "MeanResult",
    "Monitoring",
    "Outcome",
    "PairedResult",
    "Settling",
    "Shrunken",
    "Verdict",
    "anytime",
    "benjamini_hochberg",
    "clustered_mean",
    "clustered_tango",
    "decided",
    "design_effect",
    "detectable_margin",
    "distribution",
    "equivalence",
    "evidence",
    "flip_e_value",
    "frontier_probability",
    "holm",
    "items_needed",
    "items_to_settle",
    "mcnemar_chi2",
    "mcnemar_exact",
    "mcnemar_midp",
    "mcnemar_worse",
    "monitor",
    "noninferiority_log_e",
    "paired_binary",
    "paired_clustered",
    "paired_mean",
    "pareto",
    "perplexity_ratio",
    "planned_power",
    "pooled_anytime",
    "relative_margin",
    "shrink",
    "sign_flip_test",
    "tango_interval",
    "tango_z",
    "threshold_verdict",
    "verdict",
    "weighted_holm",
    "wilson",
]
