"""The other end of ``evalq.tasks.worker``: a script that judges answers in a process of its own.

It is run by its path under ``python -I`` and imports nothing of evalq. A request is a line of JSON
on its input, a reply a line on what was its output; what a judged function prints goes nowhere.
"""

from __future__ import annotations

import json
import os
import re
import sys
from typing import Any

__all__ = ["main"]

_FUNCTIONS: dict[tuple[str, str], Any] = {}
_SCHEMAS: dict[str, Any] = {}


def _function(file: str, name: str) -> Any:
    if (file, name) not in _FUNCTIONS:
        from importlib.util import module_from_spec, spec_from_file_location

        sys.path.insert(0, os.path.dirname(file))
        spec = spec_from_file_location("evalq_scoring_function", file)
        if spec is None or spec.loader is None:
            raise ImportError(f"{file} is no Python file")
        module = module_from_spec(spec)
        spec.loader.exec_module(module)
        found = getattr(module, name, None)
        if not callable(found):
            raise ImportError(f"{file} has no function {name!r}")
        _FUNCTIONS[file, name] = found
    return _FUNCTIONS[file, name]


def _schema(text: str) -> Any:
    """A validator that fetches nothing: only the drafts' own schemas can be referred to."""
    if text not in _SCHEMAS:
        from jsonschema import validators
        from jsonschema_specifications import REGISTRY

        schema = json.loads(text)
        kind = validators.validator_for(schema, default=validators.Draft202012Validator)
        kind.check_schema(schema)
        _SCHEMAS[text] = kind(schema, registry=REGISTRY)
    return _SCHEMAS[text]


def _judge(request: dict[str, Any]) -> Any:
    kind = request["kind"]
    if kind == "regex":
        return re.search(request["pattern"], request["answer"]) is not None
    if kind == "schema":
        return bool(_schema(request["schema"]).is_valid(request["value"]))
    function = _function(request["file"], request["name"])
    if kind == "load":
        return True
    value = function(request["answer"], request["item"])
    if not isinstance(value, bool | int | float) or not 0 <= value <= 1:
        raise ValueError(f"it returned {value!r:.80}, and a score is True, False or from 0 to 1")
    return value


def main() -> None:
    """Judge until the input ends."""
    out = os.fdopen(os.dup(1), "w", encoding="ascii")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    for line in sys.stdin:
        try:
            reply = {"value": _judge(json.loads(line))}
        except Exception as error:  # a judge may raise anything; the other end decides
            kind = type(error).__name__
            text = str(error).strip().splitlines()
            reply = {"fault": f"{kind}: {text[0] if text else ''}"[:300]}
        out.write(json.dumps(reply) + "\n")
        out.flush()


if __name__ == "__main__":
    main()
