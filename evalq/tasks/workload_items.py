"""What a workload's item may say, checked field by field.

Fields: ``prompt`` or ``messages``; ``target`` (with ``scorer``, ``until``, ``max_tokens``,
``tolerance``, and for the scorer ``code`` ``before`` and ``time_limit``) or ``choices`` and
``answer``; and ``id``, ``slice``, ``cluster``.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from evalq.errors import EvalqError, PlanError, TaskError, nearest
from evalq.tasks.scorers import CODE_SECONDS, FUNCTION, SCORERS, Scorer
from evalq.tasks.slices import check_slice

__all__ = ["DEFAULT_MAX_TOKENS", "DEFAULT_UNTIL", "FIELDS", "check_items"]

DEFAULT_UNTIL = ("\n\n",)
"""Where an answer stops unless an item says otherwise; lm-eval's own default."""

DEFAULT_MAX_TOKENS = 256
"""Longest answer unless an item says otherwise; lm-eval's own default."""

_COMMON = {"prompt", "messages", "id", "slice", "cluster"}
_FREE = {"target", "scorer", "until", "max_tokens", "tolerance", "before", "time_limit"}
_CHOICE = {"choices", "answer"}
FIELDS = frozenset(_COMMON | _FREE | _CHOICE)
"""Every field that an item may have."""

_SHAPE = 'An item is {"prompt", "target"} or {"prompt", "choices", "answer"}.'
_ROLES = ("system", "user", "assistant")


LONGEST_SECONDS = 600.0
"""Most that an item may give its program."""


def check_items(
    rows: Iterable[tuple[str, Mapping[str, Any]]],
    path: str,
    scorer: str,
    function: Scorer | None = None,
) -> list[dict[str, Any]]:
    """The items with every field filled in.

    Args:
        rows: each with its place in the file (``line 3``).
        path: the file, for messages.
        scorer: for items that name none.
        function: the user's own scorer, for all free answers; the items then name none, and need no
            ``target``.

    Raises:
        TaskError: no items, a faulty one, or an id that occurs twice; with its place.
    """
    docs: list[dict[str, Any]] = []
    places: dict[str, str] = {}
    for place, row in rows:
        where = f"{path}, {place}"
        doc = _item(row, where, scorer, function)
        doc["id"] = doc["id"] or place.replace(" ", "-")
        if doc["id"] in places:
            raise TaskError(
                f"{where}: id {doc['id']!r} is already that of {places[doc['id']]}",
                hint="Ids must be unique within a file; leave them out to number the items.",
            )
        places[doc["id"]] = place
        docs.append(doc)
    if not docs:
        raise TaskError(f"workload {path} holds no items", hint="One JSON object a line.")
    return docs


def _item(
    row: Mapping[str, Any], where: str, scorer: str, function: Scorer | None
) -> dict[str, Any]:
    unknown = [key for key in row if key not in FIELDS]
    if unknown:
        raise TaskError(
            f"{where}: unknown field {unknown[0]!r}", hint=nearest(str(unknown[0]), FIELDS)
        )
    doc: dict[str, Any] = _question(row, where)
    for key in ("id", "slice", "cluster"):
        value = row.get(key)
        if (value is not None and not isinstance(value, str | int)) or isinstance(value, bool):
            raise TaskError(f"{where}: {key!r} is not a text or a whole number")
        doc[key] = "" if value is None else str(value)
    if doc["slice"]:
        _check_slice(doc["slice"], where)
    if _CHOICE & row.keys():
        doc |= _choice_fields(row, where)
    else:
        doc |= _free_fields(row, where, scorer, function)
    _check_text(doc, where)
    return doc


def _question(row: Mapping[str, Any], where: str) -> dict[str, Any]:
    """``prompt`` as text, and ``messages`` as JSON text; one of the two is empty."""
    if "messages" in row and "prompt" in row:
        raise TaskError(f"{where}: both 'prompt' and 'messages'", hint="Leave one out.")
    if "messages" not in row:
        prompt = row.get("prompt")
        if not isinstance(prompt, str) or not prompt:
            fault = "missing" if "prompt" not in row else "not a text, or empty"
            raise TaskError(f"{where}: 'prompt' is {fault}", hint=_SHAPE)
        return {"prompt": prompt, "messages": ""}
    messages = row["messages"]
    good = isinstance(messages, list) and all(
        isinstance(m, dict)
        and m.keys() == {"role", "content"}
        and m["role"] in _ROLES
        and isinstance(m["content"], str)
        for m in messages
    )
    if not good or not messages or messages[-1]["role"] != "user":
        raise TaskError(
            f"{where}: 'messages' is not a list of messages that ends with the user's",
            hint='A message is {"role": "system", "user" or "assistant", "content": "…"}.',
        )
    _check_text({"all": [m["content"] for m in messages]}, where)
    return {"prompt": "", "messages": json.dumps(messages, ensure_ascii=False)}


def _check_slice(name: str, where: str) -> None:
    try:
        check_slice(name, where)
    except PlanError as error:
        raise TaskError(error.message, hint=error.hint) from None


def _check_text(doc: Mapping[str, Any], where: str) -> None:
    """Text that UTF-8 cannot hold could not be hashed, stored or sent."""
    for value in doc.values():
        for text in value if isinstance(value, list) else [value]:
            if isinstance(text, str) and not text.isascii():
                try:
                    text.encode("utf-8")
                except UnicodeEncodeError:
                    raise TaskError(
                        f"{where}: a lone surrogate (\\ud800 to \\udfff) is not text"
                    ) from None


def _choice_fields(row: Mapping[str, Any], where: str) -> dict[str, Any]:
    extra = _FREE & row.keys()
    if extra:
        raise TaskError(f"{where}: {min(extra)!r} does not go with 'choices'")
    choices, answer = row.get("choices"), row.get("answer")
    if (
        not isinstance(choices, list)
        or len(choices) < 2
        or not all(isinstance(c, str) and c for c in choices)
    ):
        raise TaskError(f"{where}: 'choices' is not a list of two or more texts")
    if len(set(choices)) < len(choices):
        raise TaskError(f"{where}: two of the 'choices' are the same")
    if isinstance(answer, str) and answer in choices:
        answer = choices.index(answer)
    if not isinstance(answer, int) or isinstance(answer, bool) or not 0 <= answer < len(choices):
        raise TaskError(
            f"{where}: 'answer' is {answer!r}, and there are {len(choices)} choices",
            hint="Give the place of the right choice, counted from 0, or its text.",
        )
    return {"choices": choices, "answer": answer}


def _targets(row: Mapping[str, Any], where: str, name: str) -> list[str]:
    """The targets as texts; a JSON scorer's may be objects, which become JSON."""
    if "target" not in row and name == FUNCTION:
        return [""]
    if "target" not in row:
        raise TaskError(
            f"{where}: no 'target' (and no 'choices')",
            hint=_SHAPE,
        )
    target = row["target"]
    targets = target if isinstance(target, list) else [target]
    if name in ("json", "json_schema"):
        targets = [json.dumps(t, ensure_ascii=False) if isinstance(t, dict) else t for t in targets]
    numbers = all(isinstance(t, int | float) and not isinstance(t, bool) for t in targets)
    if not targets or not (numbers or all(isinstance(t, str) for t in targets)):
        raise TaskError(f"{where}: 'target' is not a text, a number or a list of them")
    return [str(t) for t in targets]


def _code_fields(row: Mapping[str, Any], where: str, name: str) -> dict[str, Any]:
    """What the scorer ``code`` alone takes."""
    for key in ("before", "time_limit"):
        if key in row and name != "code":
            raise TaskError(f"{where}: {key!r} goes with the scorer 'code', not with {name!r}")
    before, seconds = row.get("before", ""), row.get("time_limit", CODE_SECONDS)
    if not isinstance(before, str):
        raise TaskError(f"{where}: 'before' is not a text")
    number = isinstance(seconds, int | float) and not isinstance(seconds, bool)
    if not number or not 0 < seconds <= LONGEST_SECONDS:
        raise TaskError(
            f"{where}: 'time_limit' is {seconds!r}, not seconds from 0 to {LONGEST_SECONDS:g}"
        )
    return {"before": before, "time_limit": float(seconds)}


def _free_fields(
    row: Mapping[str, Any], where: str, default: str, function: Scorer | None
) -> dict[str, Any]:
    if function is not None and "scorer" in row:
        raise TaskError(
            f"{where}: a 'scorer' beside the workload's own function", hint="Leave one out."
        )
    name = FUNCTION if function is not None else row.get("scorer", default)
    scorer = function if function is not None else SCORERS.get(str(name))
    if scorer is None:
        raise TaskError(f"{where}: unknown scorer {name!r}", hint=nearest(str(name), SCORERS))
    until = row.get("until", list(DEFAULT_UNTIL))
    until = [until] if isinstance(until, str) else until
    if not isinstance(until, list) or not all(isinstance(s, str) and s for s in until):
        raise TaskError(f"{where}: 'until' is not a text or a list of texts")
    limit = row.get("max_tokens", DEFAULT_MAX_TOKENS)
    if not isinstance(limit, int) or isinstance(limit, bool) or limit < 1:
        raise TaskError(f"{where}: 'max_tokens' is {limit!r}, not a positive whole number")
    tolerance = row.get("tolerance", 0.0)
    if not isinstance(tolerance, int | float) or isinstance(tolerance, bool) or tolerance < 0:
        raise TaskError(f"{where}: 'tolerance' is {tolerance!r}, not a number of 0 or more")
    doc = {
        "targets": _targets(row, where, str(name)),
        "scorer": name,
        "until": until,
        "max_tokens": limit,
        "tolerance": float(tolerance),
        "choices": [],
        **_code_fields(row, where, str(name)),
    }
    try:
        scorer.check(doc)
    except EvalqError as error:
        raise TaskError(f"{where}: {error.message}", hint=error.hint) from None
    return doc
