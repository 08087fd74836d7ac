"""What `evalq list engines` shows: what answers requests here, and what times models."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import torch

from evalq.kernels import native
from evalq.models.lean.runner import LOOPS, NATIVE_ROWS

__all__ = ["list_engines"]

_ENGINES = {
    "transformers": "models in this process; answers every kind of request, on a CPU or CUDA",
    "endpoint": "an OpenAI-compatible server; log-likelihoods where it serves log-probabilities",
    "vllm": "models through vLLM's offline Python API; answers every kind of request, on CUDA",
}


def _loop(name: str) -> tuple[bool, str]:
    """Whether a loop runs here, and why or why not."""
    cuda = torch.cuda.is_available()
    if name == "graph":
        return cuda, "chosen for plain decoders on CUDA" if cuda else "there is no CUDA device"
    if name == "native":
        missing = native.why_not()
        if missing is not None:
            return False, missing
        return not cuda, f"chosen for plain decoders on a CPU, up to {NATIVE_ROWS} rows at once"
    if name == "eager":
        return True, "chosen for plain decoders where neither of the above runs"
    return True, "chosen for every other model, and in the evaluation itself"


def list_engines() -> list[dict[str, Any]]:
    """Engines that answer requests, then the loops that costs are timed with.

    Returns:
        Rows ``{name, kind, runs, summary, why}``; ``kind`` is ``"engine"`` or ``"loop"``, ``runs``
        says whether it can run on this machine.
    """
    missing = {"vllm": "" if find_spec("vllm") else "vLLM is not installed"}
    rows: list[dict[str, Any]] = [
        {
            "name": name,
            "kind": "engine",
            "runs": not missing.get(name),
            "summary": summary,
            "why": missing.get(name, ""),
        }
        for name, summary in _ENGINES.items()
    ]
    for name, summary in LOOPS.items():
        runs, why = _loop(name)
        rows.append({"name": name, "kind": "loop", "runs": runs, "summary": summary, "why": why})
    return rows
