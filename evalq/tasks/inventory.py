"""What data the tasks of a suite need, what of it is here, and what would be fetched."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from evalq.tasks.data import expected, find_local
from evalq.tasks.index import find_task, load_config
from evalq.tasks.load import data_spec
from evalq.tasks.packages import missing_packages
from evalq.tasks.suites import SuiteTask

__all__ = ["DataStatus", "data_status"]


@dataclass(frozen=True, slots=True)
class DataStatus:
    """Where a task's documents come from.

    Args:
        task: its name.
        dataset: name on the hub, or empty for files beside the task.
        config: configuration of the dataset, or empty.
        status: ``shipped`` (beside the task's YAML), ``local`` (under the data directory) or
            ``hub`` (would be fetched, or taken from the hub's cache).
        files: the local files, or the one that would be looked for.
        missing: packages that the task needs and that are not installed.
    """

    task: str
    dataset: str
    config: str
    status: Literal["shipped", "local", "hub"]
    files: tuple[str, ...]
    missing: tuple[str, ...] = ()


def data_status(entry: SuiteTask, data_dir: Path | None) -> DataStatus:
    """The status of one task; nothing is fetched.

    Raises:
        TaskError: no such task, or a local file that is there and cannot be read.
        PlanError: an unknown layout.
    """
    path = Path(entry.file) if entry.file else find_task(entry.task)
    config = load_config(path, resolve=False)
    missing = missing_packages(entry)
    spec, judged = data_spec(entry, config)
    if spec.path in ("json", "csv", "parquet", ""):
        return DataStatus(entry.task, "", "", "shipped", (), missing)
    if data_dir is not None:
        local = find_local(spec, data_dir)
        if local is not None and judged in local.splits:
            files = tuple(str(path) for path in local.files)
            return DataStatus(entry.task, spec.path, spec.config, "local", files, missing)
    looked = expected(spec, data_dir or Path("DATA_DIR"), judged)
    return DataStatus(entry.task, spec.path, spec.config, "hub", (looked,), missing)
