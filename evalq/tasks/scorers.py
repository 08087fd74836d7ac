"""Scorers of free answers in workloads: each says whether one answer is right.

A scorer gets the answer and the item (``targets``, any of which will do, and ``tolerance``) and
returns true or false; nothing is right by default.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from evalq.errors import TaskError

__all__ = ["SCORERS", "Scorer", "numbers_in"]

_NUMBER = re.compile(r"[-+−]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:[eE][-+]?\d+)?|[-+−]?\.\d+")
_FENCE = re.compile(r"```(?:json)?\s*\n(.*?)\n?```", re.DOTALL)


class Scorer(Protocol):
    """What a scorer has to do."""

    @property
    def metric(self) -> str:
        """Name of the metric."""

    def check(self, item: Mapping[str, Any]) -> None:
        """Raise TaskError when the item's targets are none for this scorer."""

    def correct(self, answer: str, item: Mapping[str, Any]) -> bool:
        """Whether the answer is right."""


def numbers_in(text: str) -> list[float]:
    """All numbers in a text, in order; commas that group thousands are read as such.

    >>> numbers_in("from 3 to 1,250.5 (-2e3)")
    [3.0, 1250.5, -2000.0]
    """
    return [float(m.replace(",", "").replace("−", "-")) for m in _NUMBER.findall(text)]


@dataclass(frozen=True)
class Exact:
    """The whole answer is the target, outer white space aside."""

    metric: str = "exact_match"

    def check(self, item: Mapping[str, Any]) -> None:
        """Any target will do."""

    def correct(self, answer: str, item: Mapping[str, Any]) -> bool:
        """Equal to a target."""
        return any(answer.strip() == str(target).strip() for target in item["targets"])


@dataclass(frozen=True)
class Contains:
    """The target occurs in the answer, upper and lower case told apart."""

    metric: str = "contains"

    def check(self, item: Mapping[str, Any]) -> None:
        """A target of white space occurs in everything."""
        if not all(str(target).strip() for target in item["targets"]):
            raise TaskError("an empty 'target' is contained in every answer")

    def correct(self, answer: str, item: Mapping[str, Any]) -> bool:
        """Holds a target."""
        return any(str(target).strip() in answer for target in item["targets"])


@dataclass(frozen=True)
class Numeric:
    """The last number in the answer is the target, to within ``tolerance`` (absolute).

    An answer without a number is wrong.
    """

    metric: str = "numeric_match"

    def check(self, item: Mapping[str, Any]) -> None:
        """Every target is one number."""
        for target in item["targets"]:
            if not _NUMBER.fullmatch(str(target).strip()):
                raise TaskError(f"'target' is {target!r}, which is no number")

    def correct(self, answer: str, item: Mapping[str, Any]) -> bool:
        """The last number is a target."""
        found = numbers_in(answer)
        if not found or not math.isfinite(found[-1]):
            return False
        # A double holds a decimal to 1 part in 10**16; 0.1 + 0.2 is 0.3 here.
        return any(
            abs(found[-1] - value) <= float(item["tolerance"]) + 1e-12 * abs(value)
            for target in item["targets"]
            for value in numbers_in(str(target))
        )


@dataclass(frozen=True)
class Regex:
    """The target, a regular expression of Python, is found in the answer."""

    metric: str = "regex_match"

    def check(self, item: Mapping[str, Any]) -> None:
        """Every target compiles."""
        for target in item["targets"]:
            try:
                re.compile(str(target))
            except re.error as error:
                raise TaskError(f"'target' {target!r} is no regular expression: {error}") from None

    def correct(self, answer: str, item: Mapping[str, Any]) -> bool:
        """A target matches somewhere."""
        return any(re.search(str(target), answer) for target in item["targets"])


@dataclass(frozen=True)
class Json:
    """The answer is JSON equal to the target: the order of keys and white space do not count.

    One code fence around the answer is taken off; any other text around it makes it wrong.
    """

    metric: str = "json_match"

    def check(self, item: Mapping[str, Any]) -> None:
        """Every target is JSON."""
        for target in item["targets"]:
            try:
                json.loads(str(target))
            except ValueError as error:
                raise TaskError(f"'target' {target!r} is no JSON: {error}") from None

    def correct(self, answer: str, item: Mapping[str, Any]) -> bool:
        """Equal as JSON to a target; ``1`` and ``1.0`` are equal, ``1`` and ``true`` are not."""
        text = answer.strip()
        fenced = _FENCE.fullmatch(text)
        try:
            found = json.loads(fenced[1] if fenced else text)
        except (ValueError, RecursionError):
            return False
        return any(_same(found, json.loads(str(target))) for target in item["targets"])


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(one[k], other[k]) for k in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_same, one, other))
    return bool(one == other)


SCORERS: dict[str, Scorer] = {
    "exact": Exact(),
    "contains": Contains(),
    "numeric": Numeric(),
    "regex": Regex(),
    "json": Json(),
}
"""Scorers by the name that a workload uses."""
