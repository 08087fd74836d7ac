"""The files of a gate. The same run under the same policy gives the same bytes."""

from __future__ import annotations

import json
from pathlib import Path

from evalq.gate.gitlab import code_quality
from evalq.gate.junit import junit_xml
from evalq.gate.markdown import SUMMARY_LIMIT, render_markdown
from evalq.gate.result import GateResult
from evalq.store.files import atomic_write, guard_disk

__all__ = ["FILES", "gate_json", "write_outputs", "write_step_summary"]

FILES = ("gate.json", "junit.xml", "comment.md", "gl-code-quality.json")


def gate_json(result: GateResult) -> str:
    """``gate.json``; ASCII, and without the one form of order that runners read inside a line."""
    text = json.dumps(result.to_json(), indent=1, allow_nan=False)
    return text.replace("##[", "##\\u005b") + "\n"


def write_outputs(result: GateResult, out: Path) -> tuple[Path, ...]:
    """Write ``gate.json``, ``junit.xml``, ``comment.md`` and ``gl-code-quality.json``.

    Raises:
        StoreError: the directory cannot be written.
    """
    texts = (
        gate_json(result).encode(),
        junit_xml(result),
        render_markdown(result).encode(),
        code_quality(result).encode(),
    )
    paths = tuple(out / name for name in FILES)
    for path, text in zip(paths, texts, strict=True):
        with atomic_write(path) as stream:
            stream.write(text)
    return paths


def write_step_summary(result: GateResult, path: Path) -> None:
    """Append the summary to ``$GITHUB_STEP_SUMMARY``, within what room is left of its 1 MiB.

    Raises:
        StoreError: the file cannot be written.
    """
    with guard_disk(path):
        used = path.stat().st_size if path.exists() else 0
        room = SUMMARY_LIMIT - used - 1024
        if room > 0:
            with path.open("ab") as stream:
                stream.write(render_markdown(result, room).encode())
