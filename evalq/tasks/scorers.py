"""Scorers of free answers in workloads: each says whether one answer is right.

A scorer gets the answer and the item (``targets``, any of which will do, and ``tolerance``) and
returns true or false, or a score from 0 to 1; nothing is right by default. An answer that cannot be
judged is wrong, and its record says why: no answer can end a run.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from evalq.errors import MissingDependencyError, TaskError
from evalq.tasks.code_scorers import CODE_SECONDS, Code, Function, without_fence
from evalq.tasks.worker import ScoringError, shared_worker

__all__ = ["CODE_SECONDS", "FUNCTION", "SCORERS", "Function", "Scorer", "judged", "numbers_in"]

_NUMBER = re.compile(r"[-+−]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:[eE][-+]?\d+)?|[-+−]?\.\d+")
JUDGE_SECONDS = 10.0
"""Longest that a regular expression or a schema may take over one answer."""


class Scorer(Protocol):
    """What a scorer has to do."""

    @property
    def metric(self) -> str:
        """Name of the metric."""

    def check(self, item: Mapping[str, Any]) -> None:
        """Raise TaskError when the item's targets are none for this scorer."""

    def correct(self, answer: str, item: Mapping[str, Any]) -> bool | float:
        """Whether the answer is right, or how right, from 0 to 1.

        Raises:
            ScoringError: it could not be judged.
        """


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
    """The target, a regular expression of Python, is found in the answer.

    One that takes longer than ``JUDGE_SECONDS`` over an answer is given up.
    """

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
        worker = shared_worker()
        return any(
            worker.ask({"kind": "regex", "pattern": str(t), "answer": answer}, JUDGE_SECONDS)
            for t in item["targets"]
        )


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
        try:
            found = json.loads(without_fence(answer))
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


@dataclass(frozen=True)
class JsonSchema:
    """The answer is JSON that the target, a JSON schema, allows.

    One code fence around the answer is taken off. The schema's ``$schema`` says its draft (2020-12
    without one); nothing that it refers to is fetched, and ``format`` is not looked at.
    """

    metric: str = "schema_match"

    def check(self, item: Mapping[str, Any]) -> None:
        """Every target is a schema that refers to itself alone."""
        for target in item["targets"]:
            _check_schema(str(target))

    def correct(self, answer: str, item: Mapping[str, Any]) -> bool:
        """Allowed by a target; what is no JSON is wrong."""
        try:
            value = json.loads(without_fence(answer))
        except (ValueError, RecursionError):
            return False
        worker = shared_worker()
        return any(
            worker.ask({"kind": "schema", "schema": str(t), "value": value}, JUDGE_SECONDS)
            for t in item["targets"]
        )


def _check_schema(text: str) -> None:
    import jsonschema

    try:
        schema = json.loads(text)
        if not isinstance(schema, dict | bool):
            raise ValueError("it is no object")
        kind = jsonschema.validators.validator_for(schema, jsonschema.Draft202012Validator)
        kind.check_schema(schema)
    except (ValueError, RecursionError, jsonschema.SchemaError) as error:
        reason = str(error).splitlines()[0]
        raise TaskError(f"'target' {text[:80]!r} is no JSON schema: {reason}") from None
    for reference in _references(schema):
        if not reference.startswith("#") and not reference.startswith(_DRAFTS):
            raise TaskError(
                f"the schema refers to {reference!r}, which is not fetched",
                hint="Put the definition into the schema's own $defs.",
            )


_DRAFTS = ("http://json-schema.org/", "https://json-schema.org/")


def _references(schema: Any) -> list[str]:
    """All ``$ref`` and ``$dynamicRef`` in a schema, wherever they are."""
    if isinstance(schema, list):
        return [found for part in schema for found in _references(part)]
    if not isinstance(schema, dict):
        return []
    own = [v for k, v in schema.items() if k in ("$ref", "$dynamicRef") and isinstance(v, str)]
    return own + [found for part in schema.values() for found in _references(part)]


SCORERS: dict[str, Scorer] = {
    "exact": Exact(),
    "contains": Contains(),
    "numeric": Numeric(),
    "regex": Regex(),
    "json": Json(),
    "json_schema": JsonSchema(),
    "code": Code(),
}
"""Scorers by the name that a workload uses."""

FUNCTION = "function"
"""The name that items of a workload with a function of the user's carry for it."""


def judged(scorer: Scorer, answer: str, item: Mapping[str, Any]) -> tuple[float, str]:
    """The score of an answer, whatever the answer holds, and why it could not be judged (or "").

    What raises for another reason than the answer is raised: a package or a system that is missing.
    """
    try:
        return float(scorer.correct(answer, item)), ""
    except (MissingDependencyError, ImportError):
        raise
    except ScoringError as fault:
        return 0.0, str(fault)
    except Exception as error:  # scorers are not to meet an answer that they raise on; if they do
        return 0.0, f"{type(error).__name__}: {error}"[:300]
