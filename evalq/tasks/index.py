"""Finding lm-eval's own tasks by name, without reading 14,000 YAML files on every start.

lm-eval's ``TaskManager()`` parses every task file it ships (seconds). Here the files are scanned
once for their ``task:`` lines, and the map of names is kept in a cache file for that lm-eval
version. The rule for a name that occurs twice is lm-eval's: the first file in sorted order has it.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from evalq.errors import PlanError, TaskError, nearest
from evalq.tasks.suites import suites_folder
from evalq.tasks.yaml_tags import code_tags

__all__ = [
    "find_task",
    "known_tasks",
    "lm_eval_tasks_folder",
    "load_config",
    "raw_mapping",
    "refuse_code",
    "task_code",
]

_IGNORED = {"__pycache__", ".ipynb_checkpoints"}
_TOP_KEY = re.compile(
    rb"""^["']?(task|group|include|class)["']?[ \t]*:[ \t]*(.*?)[ \t]*\r?$""", re.M
)
_PLAIN = re.compile(rb"[A-Za-z0-9_.+-]+")
_CACHE_FORMAT = 1


def lm_eval_tasks_folder() -> Path:
    """The folder of the task files that the installed lm-eval ships."""
    spec = find_spec("lm_eval")
    if spec is None or not spec.submodule_search_locations:
        raise TaskError("lm-eval is not installed", hint="pip install lm-eval")
    return Path(next(iter(spec.submodule_search_locations))) / "tasks"


def find_task(name: str) -> Path:
    """The YAML file in which the installed lm-eval defines task ``name``.

    Raises:
        TaskError: no such task (the nearest name is suggested), or a group of tasks.
    """
    folder = lm_eval_tasks_folder()
    index = _cached_index(folder)
    relative = index["tasks"].get(name)
    if relative is None or not (folder / relative).is_file():
        # The cache may be older than an edit of an editable lm-eval: look once more.
        index = _scan(folder)
        _store(folder, index)
        relative = index["tasks"].get(name)
    if relative is None:
        if name in index["groups"]:
            raise TaskError(
                f"{name!r} is a group of lm-eval tasks, not a task",
                hint="A suite lists single tasks, each with its slice.",
            )
        raise TaskError(f"lm-eval has no task {name!r}", hint=nearest(name, index["tasks"]))
    return folder / str(relative)


def known_tasks() -> list[str]:
    """Names of all single tasks that the installed lm-eval ships, sorted."""
    return sorted(_cached_index(lm_eval_tasks_folder())["tasks"])


def load_config(path: Path, allow_code: bool = False, resolve: bool = True) -> dict[str, Any]:
    """The configuration in a task YAML, includes merged and functions resolved, as lm-eval does.

    Args:
        path: the file.
        allow_code: a ``!function`` imports the Python file beside it: a task file is code. In files
            that neither evalq nor lm-eval ships it is refused without this.
        resolve: with ``False`` functions stay names: nothing is imported, and nothing refused.

    Raises:
        TaskError: no such file, no YAML, an include or a function that is not there.
        PlanError: code that is not allowed.
    """
    from lm_eval.tasks._yaml_loader import load_yaml

    if not path.is_file():
        raise TaskError(f"there is no task file {path}")
    found = "" if allow_code or not resolve else task_code(path)
    if found:
        raise refuse_code(f"the task file {path}", f"runs {found}")
    try:
        config: dict[str, Any] = load_yaml(path, resolve_func=resolve)
    except yaml.YAMLError as error:
        raise TaskError(f"{path} is no YAML: {error}") from None
    except ImportError as error:
        hint = f"pip install {error.name}" if error.name else ""
        raise TaskError(f"{path} cannot be read as a task: {error}", hint=hint) from None
    except Exception as error:  # reading it imports Python, which may raise anything
        raise TaskError(f"{path} cannot be read as a task: {error}") from None
    return config


def refuse_code(what: str, why: str) -> PlanError:
    """The error for code that was not allowed."""
    return PlanError(
        f"{what} {why}",
        hint="Say --allow-code (allow_code: true in a plan) if you trust it.",
    )


def task_code(path: Path) -> str:
    """The first Python that reading a task file would run, as ``FILE: !function x.y``; "" for none.

    Files that evalq and lm-eval ship are theirs to vouch for, also where a user's file includes
    one.

    Raises:
        TaskError: no such file, or no YAML.
    """
    trusted = (suites_folder().resolve(), lm_eval_tasks_folder().resolve())
    return next(code_tags(path.resolve(), trusted), "")


def _cache_file(folder: Path) -> Path:
    root = os.environ.get("EVALQ_CACHE_DIR") or os.path.join(
        os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "evalq"
    )
    place = hashlib.sha256(str(folder).encode()).hexdigest()[:12]
    return Path(root) / f"lm-eval-{metadata.version('lm-eval')}-{place}-v{_CACHE_FORMAT}.json"


def _cached_index(folder: Path) -> dict[str, Any]:
    try:
        cached = json.loads(_cache_file(folder).read_text(encoding="utf-8"))
        if isinstance(cached["tasks"], dict) and isinstance(cached["groups"], dict):
            return dict(cached)
    except (OSError, ValueError, KeyError, TypeError):
        pass  # absent or torn: it is only a cache
    index = _scan(folder)
    _store(folder, index)
    return index


def _store(folder: Path, index: dict[str, Any]) -> None:
    """Write the cache whole or not at all; a cache that cannot be written is done without."""
    path = _cache_file(folder)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(index, file)
        os.replace(name, path)
    except OSError:
        return


def _scan(folder: Path) -> dict[str, Any]:
    """Names to files relative to ``folder``: ``{"tasks": {...}, "groups": {...}}``."""
    tasks: dict[str, str] = {}
    groups: dict[str, str] = {}
    files = (p for p in folder.glob("**/*.yaml") if not _IGNORED.intersection(p.parts))
    for path in sorted(files, key=lambda p: p.as_posix()):
        name, is_group = _declared(path)
        # lm-eval keeps tasks and groups in one map: whoever comes first has the name.
        if name and name not in tasks and name not in groups:
            (groups if is_group else tasks)[name] = str(path.relative_to(folder))
    return {"tasks": tasks, "groups": groups}


def _declared(path: Path) -> tuple[str, bool]:
    """The name that a file declares (empty: none) and whether it is a group's."""
    try:
        keys = {m[1]: m[2] for m in _TOP_KEY.finditer(path.read_bytes())}
    except OSError:
        return "", False
    if b"group" in keys and b"class" not in keys:
        return _scalar(keys[b"group"]) or _parsed(path, "group"), True
    if b"include" in keys and b"task" not in keys:
        return _included(path)
    name = _scalar(keys.get(b"task", b""))
    return (name or _parsed(path, "task") if b"task" in keys else ""), False


def _scalar(raw: bytes) -> str:
    """A plain or simply quoted one-line YAML scalar, and ``""`` where YAML must decide."""
    text = raw
    if len(text) > 1 and text[:1] in b"\"'" and text[-1:] == text[:1]:
        text = text[1:-1]
    elif text[:1] in b"\"'":
        return ""
    else:
        text = text.split(b" #")[0].rstrip()
        if text[:1].isdigit() or text.lower() in (b"null", b"true", b"false", b"yes", b"no"):
            return ""
    return text.decode() if _PLAIN.fullmatch(text) else ""


def _parsed(path: Path, key: str) -> str:
    """The value of a key as YAML reads it; ``""`` unless it is text."""
    value = raw_mapping(path).get(key)
    return value if isinstance(value, str) else ""


def _included(path: Path, depth: int = 0) -> tuple[str, bool]:
    """The name of a file without one of its own: the last include that has one gives it."""
    raw = raw_mapping(path)
    for key in ("group", "task"):
        if isinstance(raw.get(key), str):
            return str(raw[key]), key == "group"
    includes = raw.get("include", [])
    names = [includes] if isinstance(includes, str) else list(includes)
    for name in reversed(names):
        if depth < 8 and (path.parent / str(name)).is_file():
            found = _included(path.parent / str(name), depth + 1)
            if found[0]:
                return found
    return "", False


def raw_mapping(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file, with tags such as ``!function`` left as text."""

    class Loader(yaml.SafeLoader):
        pass

    Loader.add_multi_constructor("!", lambda loader, suffix, node: str(node.value))
    try:
        data = yaml.load(path.read_bytes(), Loader=Loader)
    except (OSError, yaml.YAMLError):
        return {}
    return data if isinstance(data, dict) else {}
