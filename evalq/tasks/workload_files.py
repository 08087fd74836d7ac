r"""Files that workloads are read from: JSONL, CSV and Parquet, and YAML with templates over them.

A workload YAML makes items out of a table's columns; values of columns are never templates::

    workload: tickets
    file: tickets.csv                     # relative to the YAML
    prompt: "Ticket: {{ text }}\nTeam:"
    choices: ["billing", "support"]       # or target: "{{ team }}"
    answer: "{{ team }}"
    slice: "{{ language }}"

Without a template, the file's columns are the items' fields; ``function: score.py:my_score`` scores
the free answers by a function of the user's (``evalq.tasks.code_scorers.Function``).
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from evalq.errors import PlanError, TaskError, nearest
from evalq.plan import read_yaml
from evalq.tasks.data import read_jsonl_lines

__all__ = ["WorkloadFile", "WorkloadSpec", "is_task_file", "read_workload", "split_scorer"]

Rows = Iterator[tuple[str, dict[str, Any]]]
_YAML = (".yaml", ".yml")
_JSON_CELLS = ("choices", "messages")


class WorkloadSpec(BaseModel):
    """A workload YAML: every text after ``function`` is a Jinja template.

    ``choices`` is a list of templates, or one template that gives a JSON list. ``answer`` gives the
    text of the right choice, or else its place, counted from 0.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    workload: str = Field(min_length=1)
    file: str = Field(min_length=1)
    scorer: str = "exact"
    function: str = ""
    prompt: str = ""
    messages: tuple[dict[str, str], ...] = ()
    target: str = ""
    choices: tuple[str, ...] | str = ()
    answer: str | int = ""
    id: str = ""
    slice: str = ""
    cluster: str = ""
    until: tuple[str, ...] | None = None
    max_tokens: int | None = None
    tolerance: float | None = None
    before: str = ""
    time_limit: float | None = None

    @property
    def templated(self) -> bool:
        """Whether anything in it makes fields out of columns."""
        given = self.model_fields_set - {"workload", "file", "scorer", "function"}
        return bool(given)


@dataclass(frozen=True)
class WorkloadFile:
    """The rows of a workload.

    Args:
        name: of the workload: the file's stem, or what the YAML says.
        path: the file with the rows.
        scorer: of items that name none.
        rows: items with their places (``line 3``, ``row 2``).
        function: the user's own scorer as the YAML names it, relative to ``folder``; or empty.
        folder: of the YAML, or of the file.
    """

    name: str
    path: Path
    scorer: str
    rows: Rows
    function: str = ""
    folder: Path = Path()


def split_scorer(file: str | Path) -> tuple[Path, str]:
    """``mine.jsonl:numeric`` as the path and the scorer; a file of that very name comes first.

    >>> split_scorer("mine.jsonl:numeric")[1], split_scorer("mine.jsonl")[1]
    ('numeric', '')
    """
    text, _, scorer = str(file).rpartition(":")
    if not text or Path(str(file)).is_file():
        return Path(str(file)), ""
    return Path(text), scorer


def is_task_file(path: Path) -> bool:
    """Whether a YAML file holds an lm-eval task (it has ``task``) and no workload.

    Raises:
        PlanError: a YAML file that cannot be read or holds neither.
    """
    if path.suffix not in _YAML:
        return False
    from evalq.tasks.index import raw_mapping

    if not path.is_file():
        raise PlanError(f"there is no workload file {path}")
    data = raw_mapping(path)
    if not data:
        read_yaml(path)  # says what is wrong, with the line
    if "workload" not in data and "task" not in data:
        raise PlanError(
            f"{path} is neither a workload nor an lm-eval task",
            hint="A workload YAML has 'workload' and 'file', an lm-eval task has 'task'.",
        )
    return "workload" not in data


def read_workload(path: Path) -> WorkloadFile:
    """The items in a workload file, not yet checked.

    Raises:
        TaskError: a file that is missing or is not of its kind; later, a row that cannot be read.
        PlanError: a faulty workload YAML.
    """
    if path.suffix in _YAML:
        spec = _parse(path)
        table = path.parent / spec.file
        rows = _rendered(spec, table, path) if spec.templated else _plain(table)
        return WorkloadFile(spec.workload, table, spec.scorer, rows, spec.function, path.parent)
    return WorkloadFile(path.stem, path, "exact", _plain(path), folder=path.parent)


def _parse(path: Path) -> WorkloadSpec:
    try:
        return WorkloadSpec.model_validate(read_yaml(path))
    except ValidationError as error:
        faults = error.errors()
        fault = next((f for f in faults if f["type"] == "extra_forbidden"), faults[0])
        where = ".".join(str(part) for part in fault["loc"])
        if fault["type"] == "extra_forbidden":
            hint = nearest(str(fault["loc"][-1]), WorkloadSpec.model_fields)
            raise PlanError(f"{path}: unknown key {where!r}", hint=hint) from None
        raise PlanError(f"{path}: {where}: {fault['msg']}") from None


def _table(path: Path) -> Rows:
    """Rows as they are in the file; every cell of a CSV file is text."""
    readers: dict[str, Callable[[Path], Rows]] = {".csv": _csv, ".parquet": _parquet}
    if path.suffix in readers:
        yield from readers[path.suffix](path)
        return
    for number, row in read_jsonl_lines(path):
        yield f"line {number}", row


def _csv(path: Path) -> Rows:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            for number, row in enumerate(csv.DictReader(file, strict=True), 1):
                if None in row or None in row.values():
                    raise TaskError(f"{path}, row {number}: not as many cells as the header has")
                yield f"row {number}", dict(row)
    except OSError as error:
        raise TaskError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise TaskError(f"{path} is not UTF-8 text") from None
    except csv.Error as error:
        raise TaskError(f"{path} is no CSV: {error}") from None


def _parquet(path: Path) -> Rows:
    import pyarrow.parquet as pq

    try:
        rows = pq.read_table(path).to_pylist()
    except (OSError, ValueError) as error:
        raise TaskError(f"{path} is no readable Parquet file: {error}") from None
    for number, row in enumerate(rows, 1):
        yield f"row {number}", row


def _plain(path: Path) -> Rows:
    """Items of a file whose columns are the fields; an empty cell of a table is no field."""
    if path.suffix not in (".csv", ".parquet"):
        yield from _table(path)
        return
    for place, row in _table(path):
        given = {k: v for k, v in row.items() if v is not None and v != ""}
        yield place, _typed(given, f"{path}, {place}") if path.suffix == ".csv" else given


def _typed(row: dict[str, Any], where: str) -> dict[str, Any]:
    """Cells of CSV in the types that items have."""
    for key in _JSON_CELLS:
        if key in row:
            try:
                row[key] = json.loads(row[key])
            except ValueError:
                raise TaskError(
                    f"{where}: {key!r} is no JSON list", hint='Write ["one", "two"] in the cell.'
                ) from None
    for key, kind in (("max_tokens", int), ("tolerance", float), ("time_limit", float)):
        if key in row:
            try:
                row[key] = kind(row[key])
            except ValueError:
                raise TaskError(f"{where}: {key!r} is {row[key]!r}, no number") from None
    if "answer" in row:
        row["answer"] = _answer(row["answer"], row.get("choices", []))
    return row


def _answer(text: str, choices: Any) -> str | int:
    """The text of a choice, else its place."""
    return int(text) if text not in choices and text.isascii() and text.isdigit() else text


def _rendered(spec: WorkloadSpec, table: Path, path: Path) -> Rows:
    render = _renderer(path)
    for place, row in _table(table):
        where = f"{table}, {place}"
        item: dict[str, Any] = {}
        for key in ("prompt", "target", "id", "slice", "cluster", "before"):
            template = getattr(spec, key)
            if template:
                item[key] = render(template, row, f"{where}: {key}")
        if spec.messages:
            item["messages"] = [
                {k: render(v, row, f"{where}: messages") for k, v in message.items()}
                for message in spec.messages
            ]
        if spec.choices:
            item["choices"] = _choices(spec.choices, render, row, where)
            answer = render(str(spec.answer), row, f"{where}: answer")
            item["answer"] = _answer(answer, item["choices"])
        for key in ("max_tokens", "tolerance", "time_limit"):
            if getattr(spec, key) is not None:
                item[key] = getattr(spec, key)
        if spec.until is not None:
            item["until"] = list(spec.until)
        yield place, item


def _choices(
    choices: tuple[str, ...] | str,
    render: Callable[[str, Mapping[str, Any], str], str],
    row: Mapping[str, Any],
    where: str,
) -> Any:
    if not isinstance(choices, str):
        return [render(choice, row, f"{where}: choices") for choice in choices]
    text = render(choices, row, f"{where}: choices")
    try:
        return json.loads(text)
    except ValueError:
        raise TaskError(
            f"{where}: choices give {text!r}, no JSON list",
            hint="Write '{{ column | tojson }}' for a column that holds a list.",
        ) from None


def _renderer(path: Path) -> Callable[[str, Mapping[str, Any], str], str]:
    """Templates in a sandbox: they see the row and nothing else; a missing value is an error."""
    import jinja2
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def present(value: Any) -> Any:
        if value is None:
            raise jinja2.UndefinedError("a value that is null")
        return value

    environment = ImmutableSandboxedEnvironment(
        undefined=jinja2.StrictUndefined, keep_trailing_newline=True, finalize=present
    )
    # A template may want JSON with its characters as they are; nothing here is HTML.
    environment.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
    compiled: dict[str, jinja2.Template] = {}

    def render(template: str, row: Mapping[str, Any], where: str) -> str:
        try:
            if template not in compiled:
                compiled[template] = environment.from_string(template)
            return compiled[template].render(row)
        except (jinja2.TemplateError, TypeError, ValueError, ArithmeticError) as error:
            columns = ", ".join(map(str, row))
            raise TaskError(
                f"{where}: the template in {path} fails: {error}", hint=f"Columns: {columns}."
            ) from None

    return render
