"""The reference pages, made at build time from what they describe: the command line, the models of
plan and policy, the records of a run, and the sample's summary.json. Nothing of it is stored."""

from __future__ import annotations

import dataclasses
import html
import inspect
import json
import re
import types
import typing
from pathlib import Path
from typing import Any

import typer
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

__all__ = ["PAGES", "cli_page", "model_page", "on_files", "records_page", "summary_page"]

ROOT = Path(__file__).resolve().parents[2]


def _cell(text: object) -> str:
    """Plain text for a cell of a table: markup and bars are escaped."""
    shown = html.escape(" ".join(str(text).split()), quote=False)
    return re.sub(r"([\\`*_\[\]|{}])", r"\\\1", shown)


def _code(text: object) -> str:
    shown = " ".join(str(text).split()).replace("`", "'").replace("|", "\\|")
    return f"`{shown}`" if shown else ""


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    return [*lines, *("| " + " | ".join(row) + " |" for row in rows), ""]


def _arguments(doc: str) -> dict[str, str]:
    """What the ``Args`` of a docstring say, by name; ``a, b: text`` says it of both."""
    found: dict[str, str] = {}
    section = re.search(r"Args:\n(.*?)(?:\n\s*\n|\n\s*(?:Raises|Returns):|\Z)", doc, re.S)
    if section is None:
        return found
    names: list[str] = []
    for line in inspect.cleandoc("x\n" + section[1]).splitlines()[1:]:
        entry = re.match(r"([a-z_][\w, ]*): (.*)", line)
        if entry:
            names = [n.strip() for n in entry[1].split(",")]
            found |= dict.fromkeys(names, entry[2])
        else:
            found |= {n: f"{found[n]} {line.strip()}" for n in names}
    return found


def _summary(doc: str | None) -> str:
    text = inspect.cleandoc(doc or "").split("\n\nArgs:")[0].split("\n\nRaises:")[0]
    return text.split("\nArgs:")[0].replace("``", "`")


def _kind(annotation: Any) -> str:
    """A type as a reader of YAML knows it."""
    if annotation is type(None):
        return "null"
    origin = typing.get_origin(annotation)
    if origin is typing.Literal:
        return " or ".join(json.dumps(a) for a in typing.get_args(annotation))
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_kind(a) for a in typing.get_args(annotation))
    if origin in (tuple, list):
        inner = [a for a in typing.get_args(annotation) if a is not ...]
        return f"list of {_kind(inner[0])}" if inner else "list"
    if origin is dict:
        key, value = typing.get_args(annotation)
        return f"mapping of {_kind(key)} to {_kind(value)}"
    if origin is typing.Annotated:
        return _kind(typing.get_args(annotation)[0])
    names = {str: "text", int: "whole number", float: "number", bool: "true or false"}
    if annotation in names:
        return names[annotation]
    return getattr(annotation, "__name__", str(annotation))


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [m for a in typing.get_args(annotation) for m in _models(a)]


def _attribute_texts(model: type[BaseModel]) -> dict[str, str]:
    """Texts below a field in the source."""
    found = re.findall(r'\n    (\w+):[^\n]*\n    """(.*?)"""', inspect.getsource(model), re.S)
    return {name: " ".join(text.split()) for name, text in found}


def _default(field: Any) -> str:
    if field.default_factory is not None:
        made = field.default_factory()
        return json.dumps(made) if isinstance(made, (dict, list)) else str(made)
    if field.default is PydanticUndefined:
        return "(needed)"
    if isinstance(field.default, BaseModel):
        return "see below"
    return json.dumps(field.default)


def _bounds(field: Any) -> str:
    signs = {"gt": ">", "ge": "≥", "lt": "<", "le": "≤"}
    out = [
        f"{sign} {getattr(m, key)}"
        for m in field.metadata
        for key, sign in signs.items()
        if getattr(m, key, None) is not None
    ]
    return ", ".join(out)


def model_page(model: type[BaseModel], title: str, intro: str) -> str:
    """A page on a pydantic model and on every model inside it."""
    lines = [f"# {title}", "", intro, ""]
    waiting, seen = [model], set()
    while waiting:
        current = waiting.pop(0)
        if current in seen:
            continue
        seen.add(current)
        doc = inspect.cleandoc(current.__doc__ or "")
        texts = {**_arguments(doc), **_attribute_texts(current)}
        lines += [f"## {current.__name__}", "", _summary(doc), ""]
        rows = []
        for name, field in current.model_fields.items():
            text = texts.get(name, "").replace("``", "`")
            bounds = _bounds(field)
            kind = _cell(_kind(field.annotation)) + (f", {_cell(bounds)}" if bounds else "")
            rows.append([_code(name), kind, _code(_default(field)), text.replace("|", "\\|")])
            waiting += _models(field.annotation)
        lines += _table(["key", "value", "default", "meaning"], rows)
    return "\n".join(lines)


def _commands(command: Any, path: str) -> list[tuple[str, Any]]:
    out = [(path, command)]
    for name, child in getattr(command, "commands", {}).items():
        out += _commands(child, f"{path} {name}")
    return out


def _parameter(parameter: Any) -> list[str]:
    if parameter.param_type_name == "argument":
        name = parameter.metavar or parameter.name.upper()
    else:
        name = ", ".join([*parameter.opts, *parameter.secondary_opts])
    default = parameter.default
    shown = "" if default is None or callable(default) or default is False else default
    if isinstance(shown, (list, tuple)) and not shown:
        shown = ""
    if "UNSET" in repr(shown).upper():
        shown = ""
    return [_code(name), _cell(getattr(parameter, "help", "") or ""), _code(shown)]


def cli_page() -> str:
    """A page on every verb, from the application itself."""
    from evalq.cli.main import build_app

    lines = [
        "# Command line",
        "",
        "Exit codes: 0 done or pass; 1 the gate failed; 2 bad input or usage; 3 inconclusive or "
        "not certified. Every verb has `--help`.",
        "",
    ]
    for path, command in _commands(typer.main.get_command(build_app()), "evalq"):
        if getattr(command, "commands", None) and path == "evalq":
            continue
        help_text = inspect.cleandoc(command.help or "")
        body, *examples = re.split(r"\n*Example: ", help_text)
        lines += [f"## {path}", "", _cell(body) if "\n\n" not in body else body, ""]
        for example in examples:
            lines += ["```sh", " ".join(example.split()), "```", ""]
        rows = [_parameter(p) for p in command.params if p.name != "help"]
        if rows:
            lines += _table(["option", "meaning", "default"], rows)
    return "\n".join(lines)


def records_page() -> str:
    """A page on the tables of a run directory."""
    from evalq import schema

    lines = [
        "# Records of a run",
        "",
        "A run directory holds one Parquet table of each kind; its columns are these fields, in "
        f"this order. Format version {schema.FORMAT_VERSION}; run directories of older versions "
        "open by a migration, and newer ones are refused with an error that says so.",
        "",
    ]
    tables = {
        "items.parquet": schema.ItemRecord,
        "fidelity.parquet": schema.FidelityRecord,
        "costs.parquet": schema.CostRecord,
    }
    for name, record in tables.items():
        doc = inspect.cleandoc(record.__doc__ or "")
        texts = _arguments(doc)
        hints = typing.get_type_hints(record)
        rows = [
            [_code(f.name), _cell(_kind(hints[f.name])), texts.get(f.name, "").replace("``", "`")]
            for f in dataclasses.fields(record)
        ]
        lines += [f"## {name}", "", _summary(doc), "", *_table(["column", "kind", "meaning"], rows)]
    return "\n".join(lines)


def _shape(value: Any, path: str, found: dict[str, set[str]]) -> None:
    """Every path of a JSON value with the kinds seen there; names of slices count as one."""
    kinds = {dict: "object", list: "list", str: "text", bool: "true or false", int: "whole number"}
    kind = "null" if value is None else kinds.get(type(value), "number")
    found.setdefault(path, set()).add(kind)
    if isinstance(value, dict):
        for key, inner in value.items():
            named = path.endswith(("slices", "machine"))
            _shape(inner, f"{path}.{'NAME' if named else key}".lstrip("."), found)
    elif isinstance(value, list):
        for inner in value:
            _shape(inner, f"{path}[]", found)


def summary_page() -> str:
    """A page on summary.json, from the sample's."""
    data = json.loads((ROOT / "reports/demo/summary.json").read_text(encoding="utf-8"))
    found: dict[str, set[str]] = {}
    _shape(data, "", found)
    rows = [[_code(path), _cell(", ".join(sorted(kinds)))] for path, kinds in found.items() if path]
    lines = [
        "# summary.json",
        "",
        "Written by `evalq report` (and by `evalq run`), printed by `--json`. Accuracies and their "
        "differences are in [0, 1], sizes in bytes, KL in nats a token; what was not measured is "
        "`null`. The paths below are those of the sample report's file.",
        "",
        *_table(["path", "value"], rows),
    ]
    return "\n".join(lines)


def _plan_page() -> str:
    from evalq.plan import Plan

    return model_page(
        Plan,
        "Plan",
        "The keys of a plan file (`evalq run PLAN.yaml`); flags override them. An unknown key is "
        "refused, with the nearest known one.",
    )


def _policy_page() -> str:
    from evalq.gate.policy import Policy

    return model_page(
        Policy,
        "Policy",
        "The keys of a policy file (`evalq gate RUN --policy FILE`). "
        "[The release gate](../gate.md) explains them.",
    )


PAGES = {
    "reference/cli.md": cli_page,
    "reference/plan.md": _plan_page,
    "reference/policy.md": _policy_page,
    "reference/summary.md": summary_page,
    "reference/records.md": records_page,
}
"""Source path of a page to what makes it."""


OUTSIDE = ("reports/demo/index.html", "reports/audit-demo/report.html", "benchmarks/RESULTS.md")
"""Files of the repository that the site holds too, under the same path."""


def on_files(files: Any, config: Any) -> Any:
    """MkDocs' hook: add the pages before links are checked."""
    from mkdocs.structure.files import File

    for path, make in PAGES.items():
        files.append(File.generated(config, path, content=make()))
    for path in OUTSIDE:
        files.append(File.generated(config, path, content=(ROOT / path).read_bytes()))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """MkDocs' hook: links that leave ``docs`` for a file of ``OUTSIDE`` lead to the site's copy."""
    up = "../" * page.file.src_uri.count("/")
    for path in OUTSIDE:
        markdown = markdown.replace(f"]({up}../{path}", f"]({up}{path}")
    return markdown
