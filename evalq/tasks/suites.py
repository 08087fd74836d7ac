"""Suites: named, versioned lists of lm-eval tasks with their slices, read from YAML.

A suite is data. What it may say is ``Suite`` and ``SuiteTask`` below; nothing here imports lm-eval,
so that listing suites is quick.
"""

from __future__ import annotations

import fnmatch
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from evalq.errors import PlanError, nearest
from evalq.plan import read_yaml
from evalq.tasks.slices import check_slice

__all__ = ["DataPlan", "Suite", "SuiteTask", "list_suites", "load_suite", "suites_folder"]


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class DataPlan(_Entry):
    """How a local copy of a task's dataset is found under ``--data-dir``.

    Args:
        layout: name of a layout (``evalq.tasks.data.LAYOUTS``); by default the one known for the
            dataset, else ``hub``.
        folder: folder under the data directory; by default the layout's own.
    """

    layout: str = ""
    folder: str = ""


class SuiteTask(_Entry):
    """One task of a suite.

    Args:
        task: an lm-eval task name.
        slice: the most specific slice that its items belong to.
        file: the task's YAML, relative to the suite file (``load_suite`` makes it absolute); by
            default lm-eval's own.
        metric: primary metric; by default the task's first.
        filter: lm-eval filter that the metrics are of; by default the task's first.
        num_fewshot: examples in the prompt; by default the task's own number.
        limit: the first so many documents; by default all.
        version: the task version that the suite was written for; another one is refused.
        weight: what an item of it counts in the slices above and overall, beside 1 for others;
            multiplied by the suite's own.
        packages: requirements (``math-verify``, ``x==1.2.*``) that its code needs beyond lm-eval's.
        cluster: what items of one document share, a template over ``{doc_id}`` and the document's
            columns (``"mgsm/{doc_id}"``: the same problem in every language); by default every item
            stands alone.
        data: how a local copy of the dataset is found.
    """

    task: str = Field(min_length=1)
    slice: str
    file: str = ""
    metric: str = ""
    filter: str = ""
    num_fewshot: int | None = Field(None, ge=0)
    limit: int | None = Field(None, ge=1)
    version: str = ""
    weight: float = Field(1.0, gt=0, allow_inf_nan=False)
    packages: tuple[str, ...] = ()
    cluster: str = ""
    data: DataPlan = DataPlan()

    @field_validator("version", mode="before")
    @classmethod
    def _version_is_text(cls, value: Any) -> Any:
        return str(value) if isinstance(value, int | float) else value


class _SuiteFile(_Entry):
    suite: str = Field(min_length=1, pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    version: int = Field(ge=1)
    description: str = ""
    weight: float = Field(1.0, gt=0, allow_inf_nan=False)
    tasks: tuple[SuiteTask, ...] = Field(min_length=1)


@dataclass(frozen=True)
class Suite:
    """A suite as loaded.

    Args:
        name: as the file declares it.
        version: goes up whenever results stop being comparable.
        description: one line.
        tasks: in the file's order, the suite's ``weight`` multiplied into theirs.
        path: the file it was read from.
    """

    name: str
    version: int
    description: str
    tasks: tuple[SuiteTask, ...]
    path: Path

    def select(self, pattern: str) -> Suite:
        """The suite with only the tasks whose names match one of the comma-separated globs.

        Raises:
            PlanError: a glob matches no task of the suite.
        """
        kept: set[str] = set()
        for glob in pattern.split(","):
            names = {t.task for t in self.tasks if fnmatch.fnmatchcase(t.task, glob.strip())}
            if not names:
                raise PlanError(
                    f"suite {self.name!r} has no task {glob.strip()!r}",
                    hint=nearest(glob.strip(), [t.task for t in self.tasks]),
                )
            kept |= names
        tasks = tuple(t for t in self.tasks if t.task in kept)
        return Suite(self.name, self.version, self.description, tasks, self.path)


def suites_folder() -> Path:
    """The folder of evalq's own suites: beside the package in a checkout, inside it in a wheel."""
    package = Path(__file__).resolve().parent.parent
    installed = package / "_suites"
    return installed if installed.is_dir() else package.parent / "suites"


def list_suites() -> list[Suite]:
    """All suites that evalq ships, by name.

    Raises:
        PlanError: a suite file that does not hold a suite.
    """
    found = [_read(path) for path in sorted(suites_folder().glob("*.yaml"))]
    return sorted(found, key=lambda suite: suite.name)


def load_suite(name_or_path: str | Path) -> Suite:
    """The suite of that name or in that file, whole or only some of its tasks.

    ``math`` is the shipped suite; ``my/suite.yaml`` a file; ``multilingual:xcopa_*`` and
    ``multilingual:xcopa_it,xcopa_sw`` pick tasks of a suite by globs.

    Raises:
        PlanError: no such suite or task (the nearest is suggested), an unknown key, a value of the
            wrong kind, one task listed twice.
    """
    text = str(name_or_path)
    if Path(text).suffix in (".yaml", ".yml") or Path(text).is_file():
        return _read(Path(text))
    head, found, pattern = text.rpartition(":")
    if found:
        return load_suite(head).select(pattern)
    path = suites_folder() / f"{text}.yaml"
    if "/" in text or not path.is_file():
        known = [p.stem for p in suites_folder().glob("*.yaml")]
        hint = nearest(text, known)
        raise PlanError(f"unknown suite {text!r}", hint=f"{hint} Or give a path to a YAML file.")
    return _read(path)


def _read(path: Path) -> Suite:
    data = read_yaml(path)
    if not isinstance(data, dict):
        raise PlanError(f"{path} holds no suite", hint="A suite is a mapping with 'tasks' in it.")
    try:
        parsed = _SuiteFile.model_validate(data)
    except ValidationError as error:
        raise _explain(error, path) from None
    seen: set[str] = set()
    for task in parsed.tasks:
        check_slice(task.slice, f"{path}: task {task.task!r}")
        if task.task in seen:
            raise PlanError(f"{path}: task {task.task!r} is listed twice")
        seen.add(task.task)
    tasks = tuple(_resolved(task, parsed.weight, path.parent) for task in parsed.tasks)
    return Suite(parsed.suite, parsed.version, parsed.description, tasks, path)


def _resolved(task: SuiteTask, weight: float, folder: Path) -> SuiteTask:
    """A task with its file absolute and the suite's weight in its own."""
    changes: dict[str, Any] = {"weight": task.weight * weight}
    if task.file:
        changes["file"] = str((folder / task.file).resolve())
    return task.model_copy(update=changes)


def _explain(error: ValidationError, path: Path) -> PlanError:
    """The first fault, with the entry it is in and the nearest known key."""
    faults = error.errors()
    # A misspelt key also leaves a key missing; the misspelling is the one to name.
    fault = next((f for f in faults if f["type"] == "extra_forbidden"), faults[0])
    location = fault["loc"]
    where = ".".join(str(part) for part in location)
    if fault["type"] == "extra_forbidden":
        inside = [part for part in location[:-1] if isinstance(part, str)]
        model: type[BaseModel] = _SuiteFile
        if inside:
            model = DataPlan if inside[-1] == "data" else SuiteTask
        hint = nearest(str(location[-1]), model.model_fields)
        return PlanError(f"{path}: unknown key {where!r}", hint=hint)
    given = "" if isinstance(fault["input"], dict) else f" (given: {fault['input']!r})"
    return PlanError(f"{path}: {where}: {fault['msg'].removeprefix('Value error, ')}{given}")
