"""Generated Python, run where it can do little: a process of its own, with limits and an end.

Each program gets ``python -I`` (no environment, no user packages), an empty folder that is removed
afterwards, limits on memory, processor time, file size, open files and processes, and a time limit
after which it and all that it started are killed. Where the system lets it (``unshare``), it has no
network and a process space of its own, and where evalq runs as root it runs as nobody. What of this
holds here is in ``isolation()``, and runs record it.

It is no virtual machine: a program can read what its user can read, and one that is set on it can
forge a pass, as its tests run in the same interpreter. Run evalq in a container where that matters.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from evalq.errors import MissingDependencyError

__all__ = ["Isolation", "Outcome", "isolation", "kill_group", "run_tests"]

MEMORY = 2**30
"""Bytes of address space that a program may take."""
FILE_SIZE = 16 * 2**20
"""Bytes of the largest file that it may write; what it prints on stderr counts, too."""
OPEN_FILES = 64
PROCESSES = 32
"""Beside those that its user has already; the system does not count root's."""
NOBODY = 65534
FAULT = 300
"""Characters kept of the last line of an error."""

_OUTLIVE = "what a program starts in a session of its own can outlive it"

_LAUNCHER = """
import json, os, resource, sys
given = json.loads(sys.stdin.buffer.read())
os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
for name, value in given["limits"].items():
    resource.setrlimit(getattr(resource, name), (value, value))
if given["nobody"]:
    os.setgroups([]); os.setgid(given["nobody"]); os.setuid(given["nobody"])
sys.argv = ["answer.py"]
space = {"__name__": "answer", "__builtins__": __builtins__}
for part in ("answer", "tests"):
    exec(compile(given[part], part + ".py", "exec"), space)
os.write(given["pipe"], b"passed")
os._exit(0)
"""
"""Reads the program from its input, so that nothing of it is in arguments or files; says 'passed'
on a pipe of its own, as an exit code of 0 could be the answer's own ``sys.exit()``."""


@dataclass(frozen=True, slots=True)
class Isolation:
    """What keeps a program in here, beside its limits.

    Args:
        prefix: command line that Python is started under.
        nobody: programs run as the user nobody.
        words: what holds and what does not, for run.json and reports.
    """

    prefix: tuple[str, ...]
    nobody: bool
    words: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a program ended: ``passed``, and if not, ``fault`` says why in a line."""

    passed: bool
    fault: str


@functools.cache
def isolation() -> Isolation:
    """The strongest that works here, tried once a process.

    Raises:
        MissingDependencyError: not on a POSIX system, where nothing of it works.
    """
    if os.name != "posix":
        raise MissingDependencyError(
            "generated code is run on POSIX systems only",
            hint="Use Linux or macOS, or leave the scorer 'code' out.",
        )
    spaces = ("--net", "--pid", "--fork", "--kill-child", "--")
    held = "no network, a process space of its own"
    choices = [
        Isolation(("unshare", "--user", "--map-root-user", *spaces), False, held),
        Isolation(
            ("unshare", "--user", "--map-root-user", "--net", "--"),
            False,
            f"no network; {_OUTLIVE}",
        ),
    ]
    if os.geteuid() == 0:
        choices.insert(0, Isolation(("unshare", *spaces), True, f"{held}, the user nobody"))
    for choice in choices if shutil.which("unshare") else []:
        if _run("", "import json, random", 20.0, choice).passed:
            return choice
    words = f"limits alone: the network is NOT cut off (unshare is refused here); {_OUTLIVE}"
    return Isolation((), False, words)


def run_tests(answer: str, tests: str, seconds: float) -> Outcome:
    """Run ``answer`` and then ``tests`` as one program; it passes if nothing raises.

    Args:
        answer: Python source.
        tests: Python source that raises where the answer is wrong (``assert add(1, 2) == 3``).
        seconds: wall time after which it is killed; also the limit on processor time.

    Raises:
        MissingDependencyError: see ``isolation``.
    """
    return _run(answer, tests, seconds, isolation())


def _limits(seconds: float) -> dict[str, int]:
    return {
        "RLIMIT_AS": MEMORY,
        "RLIMIT_CPU": int(seconds) + 1,
        "RLIMIT_FSIZE": FILE_SIZE,
        "RLIMIT_NOFILE": OPEN_FILES,
        "RLIMIT_NPROC": PROCESSES + _own_processes(),
        "RLIMIT_CORE": 0,
    }


@functools.cache
def _own_processes() -> int:
    """Threads of this user: the system counts them all against the limit on processes."""
    if os.geteuid() == 0:
        return 0  # programs run as nobody, or root's are not counted at all
    count, uid = 0, os.getuid()
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if folder.stat().st_uid == uid:
                count += len(list((folder / "task").iterdir()))
    return count


def _run(answer: str, tests: str, seconds: float, within: Isolation) -> Outcome:
    reader, writer = os.pipe()
    folder = tempfile.mkdtemp(prefix="evalq-code-")
    try:
        given = {
            "answer": answer,
            "tests": tests,
            "limits": _limits(seconds),
            "nobody": NOBODY if within.nobody else 0,
            "pipe": writer,
        }
        if within.nobody:
            os.chown(folder, NOBODY, NOBODY)
        errors = Path(folder) / "stderr.txt"
        with errors.open("wb") as sink:
            process = subprocess.Popen(
                [*within.prefix, sys.executable, "-I", "-c", _LAUNCHER],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=sink,
                cwd=folder,
                env=_environment(folder),
                pass_fds=(writer,),
                start_new_session=True,
            )
        timed_out = _wait(process, json.dumps(given).encode(), seconds)
        os.set_blocking(reader, False)
        with contextlib.suppress(BlockingIOError):
            if os.read(reader, 16) == b"passed" and not timed_out:
                return Outcome(True, "")
        if timed_out:
            return Outcome(False, f"killed after {seconds:g} s")
        return Outcome(False, _last_line(errors) or f"ended with exit code {process.returncode}")
    finally:
        os.close(reader)
        os.close(writer)
        shutil.rmtree(folder, ignore_errors=True)


def _wait(process: subprocess.Popen[bytes], given: bytes, seconds: float) -> bool:
    """Feed the program and wait for its end; whether it had to be killed. None of it is left."""
    try:
        process.communicate(given, timeout=seconds)
        return False
    except subprocess.TimeoutExpired:
        return True
    finally:
        kill_group(process)


def kill_group(process: subprocess.Popen[bytes]) -> None:
    """Kill a process that leads a group of its own, and all that is left of the group."""
    for _ in range(20):
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            break
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.05)
        time.sleep(0.001)
    process.wait()


def _environment(folder: str) -> dict[str, str]:
    return {
        "PATH": os.defpath,
        "HOME": folder,
        "TMPDIR": folder,
        "LANG": "C.UTF-8",
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
    }


def _last_line(path: Path) -> str:
    """The last line of an error, of a file that may be anything; never more than a little of it."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 4096))
            lines: Sequence[str] = file.read().decode("utf-8", "replace").strip().splitlines()
    except OSError:
        return ""
    return lines[-1][:FAULT] if lines else ""
