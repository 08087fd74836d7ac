"""Everything evalq raises on purpose.

The tree::

    EvalqError                  exit code 2: bad input or usage
    ├── PlanError               a plan, policy, suite or option that cannot mean anything
    ├── ParentError             a parent model that is missing, incomplete or unreadable
    ├── ArtifactError           an artifact directory that breaks its own format
    ├── TaskError               a task, dataset or workload that cannot be built
    ├── QuantizationError       a method that cannot make this scheme of this layer
    │   └── NonFiniteError      a NaN or an infinity in a weight or an activation
    ├── KernelError             no kernel for this device, dtype and scheme
    ├── StoreError              a run directory that cannot be read, written or resumed
    ├── ComparisonError         results that must not be compared (other prompts, other items)
    ├── StatisticsError         numbers that no test is defined for
    ├── EndpointError           an endpoint that refuses, or answers what nobody can use
    └── MissingDependencyError       an optional package that a feature needs

A message says what is wrong; ``hint`` says what to do about it. The command line prints both and
exits with ``exit_code``; a traceback is only ever shown for a defect of evalq itself.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = [
    "ArtifactError",
    "ComparisonError",
    "EndpointError",
    "EvalqError",
    "KernelError",
    "MissingDependencyError",
    "NonFiniteError",
    "ParentError",
    "PlanError",
    "QuantizationError",
    "StatisticsError",
    "StoreError",
    "TaskError",
    "nearest",
]


class EvalqError(Exception):
    """Base of all errors that a user can cause and mend.

    Args:
        message: what is wrong, with the offending value in it.
        hint: what to do about it; may be empty.
    """

    exit_code = 2

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n  {self.hint}" if self.hint else self.message


class PlanError(EvalqError):
    """A plan, policy, suite or option that cannot mean anything."""


class ParentError(EvalqError):
    """A parent model that is missing, incomplete or unreadable."""


class ArtifactError(EvalqError):
    """An artifact directory that breaks its own format."""


class TaskError(EvalqError):
    """A task, dataset or workload that cannot be built."""


class QuantizationError(EvalqError):
    """A method that cannot make this scheme of this layer."""


class NonFiniteError(QuantizationError):
    """A NaN or an infinity in a weight or an activation."""


class KernelError(EvalqError):
    """No kernel for this device, dtype and scheme."""


class StoreError(EvalqError):
    """A run directory that cannot be read, written or resumed."""


class ComparisonError(EvalqError):
    """Results that must not be compared."""


class StatisticsError(EvalqError):
    """Numbers that no test is defined for."""


class EndpointError(EvalqError):
    """An endpoint that refuses, or answers what nobody can use."""


class MissingDependencyError(EvalqError):
    """An optional package that a feature needs."""


def nearest(word: str, known: Iterable[str]) -> str:
    """The hint for a misspelt ``word``: the closest of ``known``, and else all of them."""
    options = sorted(known)
    close = difflib.get_close_matches(word, options, n=1, cutoff=0.6)
    if close:
        return f"Did you mean {close[0]!r}?"
    return f"Known: {', '.join(options)}." if options else ""
