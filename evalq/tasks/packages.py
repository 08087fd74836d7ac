"""Packages that some tasks need beyond lm-eval's own, checked before their code is imported."""

from __future__ import annotations

import shlex
from importlib import metadata

from packaging.requirements import InvalidRequirement, Requirement

from evalq.errors import MissingDependencyError, PlanError
from evalq.tasks.suites import SuiteTask

__all__ = ["check_packages", "missing_packages"]


def missing_packages(entry: SuiteTask) -> tuple[str, ...]:
    """The requirements of a task that are not installed, or not in that version.

    Raises:
        PlanError: a requirement that is none.
    """
    missing = []
    for text in entry.packages:
        try:
            wanted = Requirement(text)
        except InvalidRequirement as error:
            raise PlanError(
                f"task {entry.task!r}: package {text!r} is no requirement: {error}"
            ) from None
        try:
            fits = wanted.specifier.contains(metadata.version(wanted.name), prereleases=True)
        except metadata.PackageNotFoundError:
            fits = False
        if not fits:
            missing.append(text)
    return tuple(missing)


def check_packages(entry: SuiteTask) -> None:
    """Refuse a task whose packages are missing.

    Raises:
        MissingDependencyError: names them, and the command that installs them.
    """
    missing = missing_packages(entry)
    if missing:
        raise MissingDependencyError(
            f"task {entry.task!r} needs packages that are not installed: {', '.join(missing)}",
            hint=f"pip install {shlex.join(missing)}",
        )
