"""One proportion with its interval."""

from __future__ import annotations

import math

from scipy.special import ndtri

from evalq.errors import StatisticsError
from evalq.stats._check import inside

__all__ = ["wilson"]


def wilson(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's (1927) score interval of ``successes / n``, for independent items.

    The closed form of ``statsmodels`` ``proportion_confint(method="wilson")``, which the tests
    hold it to; it saves that import, which takes longer than the rest of a gate.

    Raises:
        StatisticsError: no items, a negative or fractional count, more successes than items, a
            confidence outside (0, 1).

    >>> [round(x, 4) for x in wilson(0, 20)], [round(x, 4) for x in wilson(81, 263)]
    ([0.0, 0.1611], [0.2553, 0.3662])
    """
    inside(confidence, 0, 1, "confidence")
    for value in (successes, n):
        if not math.isfinite(value) or value != math.floor(value) or value < 0:
            raise StatisticsError(f"counts must be whole numbers of at least 0, not {value!r}")
    if n < 1 or successes > n:
        raise StatisticsError(f"{successes} of {n} is no proportion")
    z2 = float(ndtri((1 + confidence) / 2)) ** 2
    centre = (successes + z2 / 2) / (n + z2)
    half = math.sqrt(z2 * (successes * (n - successes) / n + z2 / 4)) / (n + z2)
    # The ends at 0 and n are exact; rounding would leave them a bit away.
    low = 0.0 if successes == 0 else max(0.0, centre - half)
    high = 1.0 if successes == n else min(1.0, centre + half)
    return low, high
