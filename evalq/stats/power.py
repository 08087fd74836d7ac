"""How many items a margin needs, by the normal theory of a paired difference.

n = (z_{1-alpha} + z_{power})^2 (p_d - delta^2) / (M - delta)^2, with p_d the flip rate (share of
items that change, either way), delta the true loss assumed and M the margin. p_d - delta^2 is the
variance of one item's difference.

In simulation (``make bench-gate``) the score interval reaches the planned power within 3 points
where flips are at least 2.5 times the margin. With fewer it falls short, because it takes the
variance at the margin, which then exceeds that of the plan.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from scipy.special import ndtr, ndtri

from evalq.errors import StatisticsError
from evalq.stats._check import inside, positive_count
from evalq.stats.paired import FEW_FLIPS

__all__ = ["Settling", "detectable_margin", "items_needed", "items_to_settle", "planned_power"]


@dataclass(frozen=True, slots=True)
class Settling:
    """Items, all told, that would settle an open verdict.

    Args:
        items: all told, those at hand included.
        more: of them still to be run.
        towards: what they would show, if what was seen so far is the truth.
    """

    items: int
    more: int
    towards: str


def _rates(flip_rate: float, loss: float) -> float:
    """Variance of one difference."""
    if not (0 < flip_rate <= 1):
        raise StatisticsError(
            f"flip rate {flip_rate!r} is not in (0, 1]",
            hint="It is the share of items that change, for example 0.09.",
        )
    if not abs(loss) <= flip_rate:
        raise StatisticsError(
            f"a true loss of {loss!r} cannot come from a flip rate of {flip_rate!r}",
            hint="At most the items that flip can be lost.",
        )
    return flip_rate - loss * loss


def _quantiles(confidence: float, power: float) -> float:
    inside(confidence, 0, 1, "confidence")
    inside(power, 0.5, 1, "power")
    return float(ndtri((1 + confidence) / 2) + ndtri(power))


def items_needed(
    flip_rate: float,
    margin: float,
    true_loss: float = 0.0,
    confidence: float = 0.90,
    power: float = 0.80,
    design_effect: float = 1.0,
) -> int:
    """Items for ``power`` to pass at ``margin`` when the true loss is ``true_loss``.

    Args:
        flip_rate: p_d in (0, 1].
        margin: in accuracy (0 to 1), above ``true_loss``.
        true_loss: positive for a loss; 0 for a variant that lost nothing.
        confidence: of the two-sided interval that will judge.
        power: in (.5, 1).
        design_effect: of clusters; 1 where items are independent.

    Raises:
        StatisticsError: a number outside its range, or a loss at the margin or beyond.

    >>> items_needed(0.09, 0.01), items_needed(0.09, 0.02)
    (5565, 1392)
    >>> items_needed(0.13, 0.01), items_needed(0.13, 0.02)
    (8038, 2010)
    """
    inside(margin, 0, 1, "margin")
    variance = _rates(flip_rate, true_loss)
    if true_loss >= margin:
        raise StatisticsError(
            f"no number of items shows a loss of {true_loss:g} to be below a margin of {margin:g}",
            hint="Assume a smaller loss, or allow a larger margin.",
        )
    if not (math.isfinite(design_effect) and design_effect > 0):
        raise StatisticsError(f"design effect {design_effect!r} is not a positive number")
    z = _quantiles(confidence, power)
    # z is above 0, and a variance of 0 (all items lost) still takes one item.
    needed = z * z * variance * design_effect / (margin - true_loss) ** 2
    return max(1, math.ceil(needed - 1e-9 * needed))


def detectable_margin(
    flip_rate: float,
    items: int,
    true_loss: float = 0.0,
    confidence: float = 0.90,
    power: float = 0.80,
    design_effect: float = 1.0,
) -> float:
    """The least margin that ``items`` can resolve: the inverse of ``items_needed``.

    Returns:
        A margin in accuracy (0 to 1 and beyond: more than 1 means that nothing is resolved).

    Raises:
        StatisticsError: as ``items_needed``, or items below 1.

    >>> round(detectable_margin(0.09, 5565), 4)
    0.01
    """
    variance = _rates(flip_rate, true_loss)
    count = positive_count(items, "items")
    if not (math.isfinite(design_effect) and design_effect > 0):
        raise StatisticsError(f"design effect {design_effect!r} is not a positive number")
    z = _quantiles(confidence, power)
    return true_loss + z * math.sqrt(variance * design_effect / count)


def planned_power(
    flip_rate: float,
    margin: float,
    items: int,
    true_loss: float = 0.0,
    confidence: float = 0.90,
) -> float:
    """Probability of a pass with ``items`` under the same normal theory.

    Raises:
        StatisticsError: as ``items_needed``.

    >>> round(planned_power(0.09, 0.02, 1392), 3)
    0.8
    """
    inside(margin, 0, 1, "margin")
    inside(confidence, 0, 1, "confidence")
    variance = _rates(flip_rate, true_loss)
    if variance == 0:
        return 1.0 if true_loss < margin else 0.0
    error = math.sqrt(variance / positive_count(items, "items"))
    return float(ndtr((margin - true_loss) / error - ndtri((1 + confidence) / 2)))


def items_to_settle(
    delta: float,
    flip_rate: float,
    items: int,
    margin: float,
    confidence: float = 0.90,
    power: float = 0.80,
    design_effect: float = 1.0,
) -> Settling:
    """How many items would settle an inconclusive verdict, taking what was seen for the truth.

    A loss below the margin is settled as a pass (a gain counts as no loss, to be careful); one at
    the margin or beyond as a fail, once its interval lies below 0. With fewer than 10 flips the
    flip rate is itself uncertain and is taken as (flips + 1) / (items + 2).

    Args:
        delta: the observed difference, variant - parent.
        flip_rate: observed, in [0, 1]; at least ``|delta|``.
        items: at hand.
        margin, confidence, power, design_effect: as in ``items_needed``.

    Raises:
        StatisticsError: a number outside its range.
    """
    count = positive_count(items, "items")
    inside(margin, 0, 1, "margin")
    if not 0 <= flip_rate <= 1 or not abs(delta) <= flip_rate + 1e-12:
        raise StatisticsError(f"flip rate {flip_rate!r} and difference {delta!r} do not fit")
    loss = max(0.0, -delta)
    rate = flip_rate
    if flip_rate * count < FEW_FLIPS:
        rate = (flip_rate * count + 1) / (count + 2)
    rate = min(1.0, max(rate, loss))
    if loss < margin:
        total = items_needed(rate, margin, loss, confidence, power, design_effect)
        towards = "pass"
    else:
        z = _quantiles(confidence, power)
        total = math.ceil(z * z * (rate - loss * loss) * design_effect / loss**2)
        towards = "fail"
    total = max(total, count + 1)
    return Settling(total, total - count, towards)
