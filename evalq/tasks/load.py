"""From a suite's entry to lm-eval's own task object, with its documents, local or from the hub."""

from __future__ import annotations

import io
import logging
import os
import random
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, redirect_stderr
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from evalq.errors import EvalqError, TaskError
from evalq.tasks.data import Row, Spec, expected, find_local, read_table, to_dataset
from evalq.tasks.index import find_task, load_config
from evalq.tasks.packages import check_packages
from evalq.tasks.suites import SuiteTask

__all__ = [
    "LoadedTask",
    "compiled_templates",
    "data_spec",
    "load_task",
    "make_task",
    "quiet",
    "seeded",
]

_STRUCTURE = ("tag", "group", "task_list")
_SPLITS = ("training_split", "validation_split", "test_split", "fewshot_split")


@dataclass(frozen=True)
class LoadedTask:
    """An lm-eval task with its data.

    Args:
        task: the ``lm_eval.api.task.Task``.
        source: where the documents came from: a file, or ``hub:<dataset>``.
        notes: what a reader of the results has to know about the data.
    """

    task: Any
    source: str
    notes: tuple[str, ...] = ()


@contextmanager
def quiet() -> Iterator[None]:
    """Keep lm-eval's progress bars and advice off the terminal; its errors still raise."""
    loggers = [logging.getLogger(name) for name in ("lm_eval", "lm-eval", "datasets")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with redirect_stderr(io.StringIO()):
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def load_task(entry: SuiteTask, data_dir: Path | None, allow_code: bool = False) -> LoadedTask:
    """The lm-eval task of a suite's entry.

    Args:
        entry: of a suite.
        data_dir: folder of local copies, or ``None``.
        allow_code: see ``load_config``.

    Raises:
        TaskError: no such task, another version than the suite pins, no data and no network, a task
            that needs images, sound or to run generated code.
        PlanError: a file of the user's that runs code, without ``allow_code``.
    """
    path = Path(entry.file) if entry.file else find_task(entry.task)
    check_packages(entry)
    config = load_config(path, allow_code)
    if config.get("task") != entry.task:
        raise TaskError(
            f"{path} defines task {config.get('task')!r}, not {entry.task!r}",
            hint="Correct 'task' or 'file' in the suite.",
        )
    _check_kind(entry.task, config)
    dataset, source, notes = _documents(entry, config, path, data_dir)
    task = make_task(config, dataset, str(path))
    if entry.version and str(task.VERSION) != entry.version:
        raise TaskError(
            f"task {entry.task!r} is version {task.VERSION} in the installed lm-eval, and "
            f"the suite was written for version {entry.version}",
            hint="Install the lm-eval that the suite was written for, or update the suite.",
        )
    return LoadedTask(task, source, notes)


def make_task(config: Mapping[str, Any], dataset: Any | None, where: str) -> Any:
    """lm-eval's task object for a configuration, over ``dataset`` where one is given.

    Args:
        config: as in a task YAML, includes merged, functions resolved. Left unchanged.
        dataset: a ``DatasetDict``, or ``None`` to let lm-eval load what the configuration names.
        where: the file, for messages.

    Raises:
        TaskError: lm-eval refuses the configuration or the documents do not fit its templates.
    """
    from lm_eval.api.task import ConfigurableTask

    settings = {k: v for k, v in deepcopy(dict(config)).items() if k not in _STRUCTURE}
    meta = settings.get("metadata") or {}
    settings["metadata"] = dict(meta) if isinstance(meta, dict) else {"_metadata": meta}
    base = settings.get("class", ConfigurableTask)
    kind = base if dataset is None else _over(base, dataset)
    name = settings.get("task")
    try:
        network = nullcontext() if dataset is not None else _network()
        with quiet(), seeded(), compiled_templates(), network:
            task = kind(config=settings)
    except EvalqError:
        raise
    except Exception as error:  # lm-eval and datasets raise anything here, from KeyError up
        raise TaskError(f"task {name!r} ({where}) cannot be built: {error!r}") from error
    if getattr(task, "config", None) is not None and getattr(task.config, "task", None) is None:
        task.config.task = name
    return task


def _over(base: type, dataset: Any) -> type:
    """``base`` with the documents given instead of downloaded; all else is lm-eval's."""

    def download(self: Any, *args: Any, **kwargs: Any) -> None:
        self.dataset = dataset

    return type(base.__name__, (base,), {"download": download, "__module__": base.__module__})


def _check_kind(name: str, config: Mapping[str, Any]) -> None:
    if config.get("unsafe_code"):
        raise TaskError(
            f"task {name!r} runs generated code by lm-eval's own means, without a sandbox",
            hint="Ask the same items as a workload with the scorer 'code' and --allow-code.",
        )
    if config.get("doc_to_image") or config.get("doc_to_audio"):
        raise TaskError(f"task {name!r} needs images or sound; evalq evaluates text")
    if not isinstance(config.get("task"), str):
        raise TaskError(f"{name!r} is a group of tasks, not a task")


Documents = tuple[Any | None, str, tuple[str, ...]]


def _documents(
    entry: SuiteTask, config: Mapping[str, Any], path: Path, data_dir: Path | None
) -> Documents:
    """The dataset where evalq reads it itself, its source, and notes; else ``None`` and checks."""
    dataset_path = str(config.get("dataset_path") or "")
    if callable(config.get("custom_dataset")):
        arguments = {**(config.get("metadata") or {}), **(config.get("dataset_kwargs") or {})}
        if entry.file:  # of evalq or the user's: made here, where no network is asked for
            return config["custom_dataset"](**arguments), f"generated by {path.name}", ()
        return None, f"generated by {path.name}", ()
    if dataset_path in ("json", "csv", "parquet"):
        return _beside(config, path)
    kwargs = config.get("dataset_kwargs") or {}
    spec, judged = data_spec(entry, config)
    if data_dir is not None:
        if not data_dir.is_dir():
            raise TaskError(f"the data directory {data_dir} is not there")
        local = find_local(spec, data_dir)
        if local is not None and judged in local.splits:
            source = ", ".join(sorted({str(f) for f in local.files}))
            return to_dataset(local.splits, spec.splits), source, local.notes
    where = f"hub:{dataset_path}" + (f"/{spec.config}" if spec.config else "")
    if "class" in config:  # a Python task fetches by itself, and its own way
        return None, where, ()
    return _fetch(spec, kwargs, judged, data_dir), where, ()


def data_spec(entry: SuiteTask, config: Mapping[str, Any]) -> tuple[Spec, str]:
    """What a task's configuration asks of a dataset, and the split that is evaluated."""
    splits = tuple(dict.fromkeys(str(config[key]) for key in _SPLITS if config.get(key)))
    spec = Spec(
        str(config.get("dataset_path") or ""),
        str(config.get("dataset_name") or ""),
        splits,
        entry.data.layout,
        entry.data.folder,
    )
    return spec, str(config.get("test_split") or config.get("validation_split") or "")


def _fetch(spec: Spec, kwargs: Mapping[str, Any], judged: str, data_dir: Path | None) -> Any:
    """A hub dataset, from the local cache or the network, as lm-eval itself loads it.

    Raises:
        TaskError: it is neither cached nor reachable; names the local file that was looked for.
    """
    import datasets

    options = {k: v for k, v in kwargs.items() if k != "trust_remote_code"}
    try:
        with quiet(), _network():
            return datasets.load_dataset(path=spec.path, name=spec.config or None, **options)
    except Exception as error:  # datasets raises its own, huggingface_hub's, httpx's and OSErrors
        looked = expected(spec, data_dir or Path("DATA_DIR"), judged)
        label = f"{spec.path}{f' ({spec.config})' if spec.config else ''}"
        raise TaskError(
            f"dataset {label} is neither here nor on the hub: {_first_line(error)}",
            hint=f"Put a copy at {looked} and pass --data-dir, or fetch it with a network.",
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _beside(config: Mapping[str, Any], path: Path) -> Documents:
    """Data files that a task YAML names, relative to its folder."""
    kwargs = dict(config.get("dataset_kwargs") or {})
    files = kwargs.pop("data_files", None)
    if files is None or kwargs:
        raise TaskError(
            f"{path}: dataset_kwargs must hold data_files and nothing else",
            hint="Write dataset_kwargs: {data_files: {test: items.jsonl}}.",
        )
    named = files if isinstance(files, dict) else {"train": files}
    splits: dict[str, list[Row]] = {}
    read: list[str] = []
    for split, value in named.items():
        rows: list[Row] = []
        for name in value if isinstance(value, list) else [value]:
            source = path.parent / str(name)
            if not source.is_file():
                raise TaskError(f"{path} names {name}, and there is no {source}")
            rows += read_table(source)
            read.append(str(source))
        if not rows:
            raise TaskError(f"{path}: split {split!r} holds no items")
        splits[str(split)] = rows
    for key in _SPLITS:
        if config.get(key) and config[key] not in splits:
            raise TaskError(f"{path}: {key} is {config[key]!r}, and data_files has no such split")
    return to_dataset(splits, ()), ", ".join(read), ()


@contextmanager
def seeded() -> Iterator[None]:
    """Run task code that draws from the global generators (GPQA shuffles its options with them).

    They are seeded as ``lm_eval.simple_evaluate`` seeds them, for each task anew, so that a task's
    prompts depend neither on the tasks before it nor on a resume; afterwards they are as before.
    """
    before, numpy_before = random.getstate(), np.random.get_state()
    random.seed(0)
    np.random.seed(1234)
    try:
        yield
    finally:
        random.setstate(before)
        np.random.set_state(numpy_before)


@contextmanager
def compiled_templates() -> Iterator[None]:
    """Compile each Jinja template once, in a sandbox, while prompts are built.

    lm-eval compiles a template anew for every field of every document, which is nine tenths of the
    time that building prompts takes. The same template text gives the same compiled template. In
    the sandbox a template reads documents and cannot reach Python's internals through them.
    """
    from jinja2.sandbox import SandboxedEnvironment
    from lm_eval import utils

    environment = utils.env
    sandbox = SandboxedEnvironment(
        loader=environment.loader,
        undefined=environment.undefined,
        keep_trailing_newline=environment.keep_trailing_newline,
    )
    sandbox.filters.update(environment.filters)
    compile_one = sandbox.from_string
    known: dict[str, Any] = {}

    def from_string(source: str, *args: Any, **kwargs: Any) -> Any:
        if args or kwargs or not isinstance(source, str):
            return compile_one(source, *args, **kwargs)
        if source not in known:
            known[source] = compile_one(source)
        return known[source]

    if "from_string" in vars(environment):  # within another such block
        yield
        return
    environment.from_string = from_string
    try:
        yield
    finally:
        del environment.from_string


@contextmanager
def _network() -> Iterator[None]:
    """Work offline at once where the hub cannot be reached, instead of retrying for half a minute.

    What is in the hub's cache still loads.
    """
    import datasets
    import huggingface_hub.constants as hub

    if hub.HF_HUB_OFFLINE or _reachable(hub.ENDPOINT):
        yield
        return
    before = (hub.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE)
    hub.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        hub.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE = before


def _reachable(endpoint: str, connect: Callable[..., Any] = socket.create_connection) -> bool:
    if any(os.environ.get(k) for k in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")):
        return True  # a proxy resolves the name: only trying tells
    parts = urlsplit(endpoint)
    try:
        connect((parts.hostname, parts.port or 443), timeout=3).close()
    except OSError:
        return False
    return True
