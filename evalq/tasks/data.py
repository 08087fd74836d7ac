"""Local copies of datasets: files under ``--data-dir`` in the layouts their authors publish.

A layout maps files to the columns that lm-eval's templates read. Where no copy is there, the
dataset comes from the hub's cache or the network, and where neither answers, the error names the
file that was looked for. A copy is never mixed with hub data.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from evalq.errors import PlanError, TaskError, nearest

__all__ = [
    "LAYOUTS",
    "LocalData",
    "Rows",
    "Spec",
    "expected",
    "find_local",
    "layout_of",
    "read_jsonl",
    "read_jsonl_lines",
    "read_table",
    "to_dataset",
]

Row = dict[str, Any]


@dataclass(frozen=True)
class Spec:
    """What a task asks for.

    Args:
        path: dataset name on the hub (``openai/gsm8k``).
        config: its configuration (``main``, a language), or empty.
        splits: the splits that the task reads.
        layout: name of a layout, or empty for the one known for ``path``.
        folder: folder under the data directory, or empty for the layout's own.
    """

    path: str
    config: str
    splits: tuple[str, ...]
    layout: str = ""
    folder: str = ""


@dataclass(frozen=True)
class LocalData:
    """A local copy.

    Args:
        splits: split name to rows; a split that the copy lacks is not in it.
        files: the files read.
        notes: in what the copy is not the whole dataset.
    """

    splits: dict[str, list[Row]]
    files: tuple[Path, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Layout:
    """How one dataset's files are found and read.

    Args:
        folder: default folder under the data directory.
        datasets: hub names that it is the default for.
        files: split and configuration to the file names that may hold it, the best first.
        read: a file and its split to rows with the hub's columns.
        partial: file names that hold a part only, with the note to record.
    """

    folder: str
    datasets: tuple[str, ...]
    files: Callable[[str, str], tuple[str, ...]]
    read: Callable[[Path], list[Row]]
    partial: Mapping[str, str] = field(default_factory=dict)


def read_jsonl_lines(path: Path) -> Iterator[tuple[int, Row]]:
    """The objects of a JSONL file with their line numbers, blank lines skipped.

    Raises:
        TaskError: unreadable, not UTF-8, or a line that is no JSON object (with its number).
    """
    number = 0
    try:
        # Only \n ends a line: text may hold U+2028 and the like.
        with path.open(encoding="utf-8-sig", newline="\n") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    row = json.loads(line)
                    if not isinstance(row, dict):
                        raise TaskError(f"{path}, line {number}: not a JSON object")
                    yield number, row
    except OSError as error:
        raise TaskError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise TaskError(f"{path} is not UTF-8 text, from line {number + 1} on") from None
    except (ValueError, RecursionError) as error:
        raise TaskError(f"{path}, line {number}: no JSON ({error})") from None


def read_jsonl(path: Path) -> list[Row]:
    """The objects of a JSONL file; errors as in ``read_jsonl_lines``."""
    return [row for _, row in read_jsonl_lines(path)]


def _read_mgsm(path: Path) -> list[Row]:
    """``question<TAB>answer`` without quoting; the hub's builder drops commas of the answer."""
    rows: list[Row] = []
    lines = path.read_text(encoding="utf-8").split("\n")
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        parts = line.rstrip("\r").split("\t")
        try:
            question, answer = parts
            value = int(answer.replace(",", ""))
        except ValueError:
            raise TaskError(
                f"{path}, line {number}: not question, tab and a whole number"
            ) from None
        rows.append(
            {
                "question": question,
                "answer": None,
                "answer_number": value,
                "equation_solution": None,
            }
        )
    return rows


def _read_bbh(path: Path) -> list[Row]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        return [{"input": str(e["input"]), "target": str(e["target"])} for e in data["examples"]]
    except (ValueError, KeyError, TypeError) as error:
        raise TaskError(f"{path} is not a BIG-Bench Hard file: {error!r}") from None


def _read_arc(path: Path) -> list[Row]:
    rows = []
    for number, row in enumerate(read_jsonl(path), 1):
        try:
            question = row["question"]
            if isinstance(question, str):  # already in the hub's columns
                rows.append(row)
                continue
            choices = question["choices"]
            rows.append(
                {
                    "id": row["id"],
                    "question": question["stem"],
                    "choices": {
                        "text": [c["text"] for c in choices],
                        "label": [c["label"] for c in choices],
                    },
                    "answerKey": row["answerKey"],
                }
            )
        except (KeyError, TypeError):
            raise TaskError(f"{path}, item {number}: not an ARC question") from None
    return rows


def read_table(path: Path) -> list[Row]:
    """JSONL, JSON, CSV or Parquet by its suffix."""
    if path.suffix == ".jsonl":
        return read_jsonl(path)
    if path.suffix == ".parquet":
        import pyarrow.parquet as pq

        try:
            return list(pq.read_table(path).to_pylist())
        except (OSError, ValueError) as error:
            raise TaskError(f"{path} is no readable Parquet file: {error}") from None
    try:
        if path.suffix == ".csv":
            with path.open(encoding="utf-8", newline="") as file:
                return [dict(row) for row in csv.DictReader(file)]
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise TaskError(f"cannot read {path}: {error}") from None
    if not isinstance(data, list) or not all(isinstance(row, dict) for row in data):
        raise TaskError(f"{path} is not a JSON list of objects")
    return data


def _gsm8k_files(split: str, config: str) -> tuple[str, ...]:
    return (f"{split}.jsonl", f"{split}-first-1000.jsonl")


def _mgsm_files(split: str, config: str) -> tuple[str, ...]:
    return (f"mgsm_{config}.tsv",) if split == "test" else ()


def _bbh_files(split: str, config: str) -> tuple[str, ...]:
    return (f"{config}.json", f"bbh/{config}.json") if split == "test" else ()


def _xcopa_files(split: str, config: str) -> tuple[str, ...]:
    short = {"validation": "val"}.get(split, split)
    return (f"{short}.{config}.jsonl", f"data/{config}/{short}.{config}.jsonl")


def _arc_files(split: str, config: str) -> tuple[str, ...]:
    name = {"train": "Train", "validation": "Dev", "test": "Test"}.get(split, split)
    return (f"{config}-{name}.jsonl", f"{config}/{config}-{name}.jsonl")


def _one_object(path: Path) -> list[Row]:
    """A JSON file that is one row, as in the MATH dataset's own archive."""
    try:
        row = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise TaskError(f"cannot read {path}: {error}") from None
    if not isinstance(row, dict):
        raise TaskError(f"{path} is not a JSON object")
    return [row]


def _read_math(path: Path) -> list[Row]:
    """One problem a file, or the hub's tables."""
    return _one_object(path) if path.suffix == ".json" else read_table(path)


def _math_files(split: str, config: str) -> tuple[str, ...]:
    return (f"{split}/{config}/*.json", *_hub_files(split, config))


def _config_files(only: str) -> Callable[[str, str], tuple[str, ...]]:
    """One JSONL file a configuration, which is the split ``only``; or the hub's arrangements."""

    def files(split: str, config: str) -> tuple[str, ...]:
        names = (f"{config}.jsonl", f"data/{config}.jsonl") if split == only else ()
        return (*names, *_hub_files(split, config))

    return files


def _ifeval_files(split: str, config: str) -> tuple[str, ...]:
    names = ("input_data.jsonl", "ifeval_input_data.jsonl", "data/input_data.jsonl")
    return (*names, *_hub_files(split, config)) if split == "train" else ()


def _hub_files(split: str, config: str) -> tuple[str, ...]:
    """The hub's own arrangements; ``*`` stands for the numbers of shards."""
    stems = [f"{config}/{split}", f"data/{config}/{split}"] if config else []
    if config in ("", "default", "main"):
        stems += [f"data/{split}", split]
    suffixes = (".parquet", ".jsonl", ".json", ".csv")
    return tuple(f"{stem}{tail}{s}" for stem in stems for tail in ("", "-*-of-*") for s in suffixes)


LAYOUTS: dict[str, Layout] = {
    "gsm8k": Layout(
        "gsm8k",
        ("openai/gsm8k", "gsm8k"),
        _gsm8k_files,
        read_jsonl,
        {"train-first-1000.jsonl": "few-shot examples come from the first 1,000 of train only"},
    ),
    "mgsm": Layout("mgsm", ("juletxara/mgsm",), _mgsm_files, _read_mgsm),
    "bbh": Layout("bbh", ("SaylorTwift/bbh", "lukaemon/bbh"), _bbh_files, _read_bbh),
    "xcopa": Layout("xcopa", ("cambridgeltl/xcopa", "xcopa"), _xcopa_files, read_jsonl),
    "arc": Layout("arc", ("allenai/ai2_arc", "ai2_arc"), _arc_files, _read_arc),
    "math": Layout(
        "MATH",
        ("EleutherAI/hendrycks_math", "hendrycks/competition_math"),
        _math_files,
        _read_math,
    ),
    "belebele": Layout("belebele", ("facebook/belebele",), _config_files("test"), read_table),
    "ifeval": Layout("ifeval", ("google/IFEval",), _ifeval_files, read_table),
    "longbench": Layout(
        "longbench",
        ("Xnhyacinth/LongBench", "THUDM/LongBench"),
        _config_files("test"),
        read_table,
    ),
    "hub": Layout("", (), _hub_files, read_table),
}
"""Layouts by name. ``hub`` takes ``<data-dir>/<owner>/<name>`` or ``<data-dir>/<name>``."""


def layout_of(spec: Spec) -> Layout:
    """The layout that a task's data has under the data directory.

    Raises:
        PlanError: the suite names a layout that is not known.
    """
    if spec.layout:
        if spec.layout not in LAYOUTS:
            raise PlanError(
                f"unknown data layout {spec.layout!r}", hint=nearest(spec.layout, LAYOUTS)
            )
        return LAYOUTS[spec.layout]
    for layout in LAYOUTS.values():
        if spec.path in layout.datasets:
            return layout
    return LAYOUTS["hub"]


def _folders(spec: Spec, layout: Layout, data_dir: Path) -> list[Path]:
    if spec.folder or layout.folder:
        return [data_dir / (spec.folder or layout.folder)]
    owner, _, name = spec.path.rpartition("/")
    return [data_dir / owner / name, data_dir / f"{owner}__{name}", data_dir / name]


def _match(folders: Iterable[Path], patterns: Iterable[str]) -> list[Path]:
    for folder in folders:
        for pattern in patterns:
            found = sorted(folder.glob(pattern)) if folder.is_dir() else []
            if found:
                return found
    return []


def find_local(spec: Spec, data_dir: Path) -> LocalData | None:
    """The local copy of a task's dataset, or ``None`` where there is none.

    Raises:
        PlanError: an unknown layout.
        TaskError: a file that is there and cannot be read.
    """
    layout = layout_of(spec)
    folders = _folders(spec, layout, data_dir)
    splits: dict[str, list[Row]] = {}
    files: list[Path] = []
    notes: list[str] = []
    for split in spec.splits:
        found = _match(folders, layout.files(split, spec.config))
        if not found:
            continue
        splits[split] = [row for path in found for row in layout.read(path)]
        files += found
        notes += [layout.partial[path.name] for path in found if path.name in layout.partial]
    return LocalData(splits, tuple(files), tuple(notes)) if splits else None


def expected(spec: Spec, data_dir: Path, split: str) -> str:
    """The file that a local copy of the split would be in, for messages."""
    layout = layout_of(spec)
    names = layout.files(split, spec.config) or (f"{split}.jsonl",)
    return str(_folders(spec, layout, data_dir)[0] / names[0])


class Rows(list[Row]):
    """Rows that need no type of their own, in the place of a ``datasets.Dataset``.

    lm-eval iterates over documents, takes single ones and asks for their features; Arrow's typed
    columns cost a third of the time that a workload of 10,000 items takes to build. All rows have
    the same keys.
    """

    @property
    def features(self) -> Row:
        """The columns; lm-eval looks at their names alone."""
        return self[0] if self else {}


def to_dataset(splits: Mapping[str, list[Row]], wanted: Iterable[str]) -> Any:
    """A ``datasets.DatasetDict``; wanted splits that are not there are empty with the same columns.

    Raises:
        TaskError: rows whose columns cannot be of one type.
    """
    import datasets
    import pyarrow as pa

    columns = list(dict.fromkeys(key for rows in splits.values() for row in rows for key in row))
    out = {}
    try:
        for name, rows in splits.items():
            out[name] = datasets.Dataset.from_dict(
                {c: [row.get(c) for row in rows] for c in columns}
            )
    except (pa.ArrowInvalid, pa.ArrowTypeError, UnicodeEncodeError) as error:
        raise TaskError(f"the rows of split {name!r} do not make one table: {error}") from None
    empty: dict[str, list[Any]] = {c: [] for c in columns}
    for name in wanted:
        out.setdefault(name, datasets.Dataset.from_dict(empty))
    return datasets.DatasetDict(out)
