"""A gate over releases: every ``gate.json`` under a directory, in the order of its runs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from evalq.errors import StoreError

__all__ = ["Release", "history_table", "read_history"]

GATE_VERSION = 1
"""Newest version of ``gate.json`` that is read."""


@dataclass(frozen=True)
class Release:
    """One gated run.

    Args:
        name: of the run.
        created: when the run was made, ISO 8601; ``""`` where no run.json lies beside the gate.
        path: of ``gate.json``.
        verdict, exit_code: over all variants.
        policy: file name and hash.
        variants: as in ``gate.json``: ``variant``, ``verdict``, ``reasons``, ``checks``.
    """

    name: str
    created: str
    path: Path
    verdict: str
    exit_code: int
    policy: tuple[str, str]
    variants: tuple[Mapping[str, Any], ...]

    def check(self, variant: str, slice_: str, metric: str) -> Mapping[str, Any] | None:
        """A check by what it is of."""
        for found in self.variants:
            if found["variant"] != variant:
                continue
            for check in found["checks"]:
                if check["slice"] == slice_ and check["metric"] == metric:
                    result: Mapping[str, Any] = check
                    return result
        return None


def _created(path: Path) -> str:
    for folder in (path.parent, path.parent.parent):
        try:
            info = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(info, dict):
            return str(info.get("created", ""))
    return ""


def _release(path: Path) -> Release:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        version = data["format_version"]
        if version > GATE_VERSION:
            raise StoreError(
                f"{path} has format version {version}; this evalq reads up to {GATE_VERSION}",
                hint="Install a newer evalq.",
            )
        for variant in data["variants"]:
            for check in variant["checks"]:
                _ = check["slice"], check["metric"], check["verdict"]
            _ = variant["variant"], variant["verdict"]
        return Release(
            name=str(data["run"]),
            created=_created(path),
            path=path,
            verdict=str(data["verdict"]),
            exit_code=int(data["exit_code"]),
            policy=(str(data["policy"]["file"]), str(data["policy"]["hash"])),
            variants=tuple(data["variants"]),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StoreError(
            f"{path} is no gate.json of evalq: {error}",
            hint="Remove it, or run `evalq gate` again.",
        ) from None


def read_history(directory: Path) -> tuple[Release, ...]:
    """The gated runs under a directory, oldest first; those without a date first, by path.

    Raises:
        StoreError: no directory, no ``gate.json`` in it, or one that is broken or newer.
    """
    if not directory.is_dir():
        raise StoreError(f"{directory} is no directory", hint="Give one that holds gated runs.")
    found = [_release(path) for path in sorted(directory.rglob("gate.json"))]
    if not found:
        raise StoreError(
            f"{directory} holds no gate.json",
            hint="Gate runs first: evalq gate RUN --policy policy.yaml",
        )
    return tuple(sorted(found, key=lambda r: (r.created, str(r.path))))


def history_table(releases: Sequence[Release]) -> pd.DataFrame:
    """One row a release, variant and check."""
    keys = ("slice", "metric", "role", "verdict", "limit", "estimate", "count")
    rows = []
    for release in releases:
        for variant in release.variants:
            for check in variant["checks"]:
                ci = check.get("ci") or (None, None)
                rows.append(
                    {
                        "run": release.name,
                        "created": release.created,
                        "policy_hash": release.policy[1],
                        "variant": variant["variant"],
                        **{key: check.get(key) for key in keys},
                        "ci_low": ci[0],
                        "ci_high": ci[1],
                    }
                )
    return pd.DataFrame(rows)
