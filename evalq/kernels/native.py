"""Compiles the C kernels on the machine that runs them, and calls them.

The library is built once, by the machine's own C compiler and for its own CPU, into the user's
cache; its file name is a hash of source, flags and CPU, so a stale or foreign one is never loaded.
It shares the OpenMP runtime that torch has loaded.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Any

from evalq.errors import KernelError

__all__ = ["SOURCES", "library", "why_not"]

_FOLDER = Path(__file__).parent / "csrc"
SOURCES = tuple(_FOLDER / name for name in ("lowbit.c", "pairs.c", "decode.c", "tiles.c"))
_HEADERS = tuple(_FOLDER / name for name in ("lowbit.h", "panel.h", "vectors.h"))
_FLAGS = ("-O3", "-march=native", "-ffp-contract=fast", "-fopenmp", "-shared", "-fPIC")
_HINT = "Install a C compiler with OpenMP (gcc or clang), or set CC to one."


def _cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    path = Path(base) / "evalq" / "kernels"
    path.mkdir(parents=True, exist_ok=True, mode=0o700)
    if path.stat().st_uid != os.getuid():
        raise KernelError(f"{path} belongs to another user; no library is loaded from it")
    return path


def _cpu() -> str:
    """Text that changes when ``-march=native`` would mean something else."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() + platform.machine()
    wanted = ("flags", "Features", "model name")
    return "\n".join(sorted({line for line in lines if line.startswith(wanted)}))


def _build(compiler: str, target: Path) -> None:
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        made = Path(scratch) / target.name
        command = [compiler, *_FLAGS, *map(str, SOURCES), "-lm", "-o", str(made)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise KernelError(f"{compiler} could not be run: {error}", hint=_HINT) from error
        if done.returncode:
            raise KernelError(
                f"{compiler} could not build the CPU kernels: {done.stderr.strip()[-800:]}",
                hint=_HINT,
            )
        made.replace(target)


@lru_cache(maxsize=1)
def _load() -> ctypes.CDLL | KernelError:
    compiler = shutil.which(os.environ.get("CC") or "cc") or shutil.which("gcc")
    if os.name != "posix":
        return KernelError("the compiled CPU kernels are written for POSIX systems")
    if compiler is None:
        return KernelError("no C compiler was found", hint=_HINT)
    texts = [path.read_text(encoding="utf-8") for path in (*_HEADERS, *SOURCES)]
    identity = "\0".join((*texts, *_FLAGS, compiler, _cpu()))
    name = hashlib.sha256(identity.encode()).hexdigest()[:32]
    try:
        target = _cache() / f"lowbit-{name}.so"
        if not target.exists():
            _build(compiler, target)
        # torch first: its OpenMP runtime and ours have one name, and the first loaded serves both.
        import torch  # noqa: F401

        loaded = ctypes.CDLL(str(target))
    except KernelError as error:
        return error
    except OSError as error:
        return KernelError(f"the CPU kernels could not be built or loaded: {error}", hint=_HINT)
    pointer, number, integer = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
    weight: list[Any] = [pointer] * 3 + [ctypes.c_float, integer] + [number] * 4 + [integer]
    loaded.evalq_multiply.argtypes = [pointer, pointer, integer, number, number, *weight]
    loaded.evalq_multiply.restype = integer
    loaded.evalq_dequantize.argtypes = [pointer, integer, number, number, number, *weight]
    loaded.evalq_dequantize.restype = integer
    loaded.evalq_tiles.argtypes = [pointer, pointer, number, number, *weight]
    loaded.evalq_tiles.restype = integer
    loaded.evalq_has_tiles.restype = integer
    loaded.evalq_panels.argtypes = [pointer, pointer, number, number, *weight]
    loaded.evalq_panels.restype = integer
    loaded.evalq_has_pairs.restype = integer
    loaded.evalq_step.argtypes = [pointer] * 3 + [number, pointer, integer]
    loaded.evalq_step.restype = integer
    return loaded


def library() -> ctypes.CDLL:
    """The compiled kernels; built on the first call of the first process that asks.

    Raises:
        KernelError: no compiler, or one that fails.
    """
    loaded = _load()
    if isinstance(loaded, KernelError):
        raise loaded
    return loaded


def why_not() -> str | None:
    """Why ``library`` would raise, ``None`` if it would not."""
    loaded = _load()
    return loaded.message if isinstance(loaded, KernelError) else None
