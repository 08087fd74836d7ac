"""Judging an answer with an end: regular expressions, schemas and a user's function in a process of
their own, which is killed when it takes too long.

A regular expression can take years on an answer that was not foreseen, and a function can do
anything; neither may hold up a run of hours.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from evalq.tasks.sandbox import kill_group

__all__ = ["ScoringError", "Worker", "shared_worker"]


class ScoringError(Exception):
    """An answer that could not be judged. It counts as wrong, and its record says why."""


class Worker:
    """A process that judges answers, started at the first and again after one that it died of."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def ask(self, request: dict[str, Any], seconds: float) -> Any:
        """What the judge says.

        Args:
            request: see ``evalq.tasks.judge``.
            seconds: after which the process is killed.

        Raises:
            ScoringError: the judge raised, died or took too long.
        """
        with self._lock:
            return self._ask(json.dumps(request).encode() + b"\n", seconds)

    def _ask(self, line: bytes, seconds: float) -> Any:
        process = self._process
        if process is None or process.poll() is not None:
            process = self._process = self._start()
        end = time.monotonic() + seconds
        try:
            reply = _exchange(process, line, end)
        except (BrokenPipeError, EOFError):
            self.close()
            raise ScoringError(f"the judge's process ended ({process.returncode})") from None
        except TimeoutError:
            self.close()
            raise ScoringError(f"judging took more than {seconds:g} s") from None
        except BaseException:  # an interrupt leaves a reply under way that is of this answer
            self.close()
            raise
        if "fault" in reply:
            raise ScoringError(str(reply["fault"]))
        return reply["value"]

    def _start(self) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [sys.executable, "-I", str(Path(__file__).with_name("judge.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            start_new_session=True,
        )
        if process.stdin is None or process.stdout is None:
            raise ScoringError("the judge's process has no pipes")
        os.set_blocking(process.stdin.fileno(), False)
        return process

    def close(self) -> None:
        """End the process; the next question starts another."""
        if self._process is not None:
            kill_group(self._process)
            for pipe in (self._process.stdin, self._process.stdout):
                with contextlib.suppress(OSError):
                    if pipe is not None:
                        pipe.close()
            self._process = None


def _exchange(process: subprocess.Popen[bytes], line: bytes, end: float) -> dict[str, Any]:
    """Write a line and read one, by ``end`` on the monotonic clock."""
    if process.stdin is None or process.stdout is None:
        raise EOFError
    sink, source = process.stdin.fileno(), process.stdout.fileno()
    while line:
        if not select.select([], [sink], [], max(0.0, end - time.monotonic()))[1]:
            raise TimeoutError
        line = line[os.write(sink, line) :]
    reply = b""
    while not reply.endswith(b"\n"):
        if not select.select([source], [], [], max(0.0, end - time.monotonic()))[0]:
            raise TimeoutError
        part = os.read(source, 65536)
        if not part:
            raise EOFError
        reply += part
    found: dict[str, Any] = json.loads(reply)
    return found


_SHARED = Worker()


def shared_worker() -> Worker:
    """The worker of this process for all that is not a user's own function."""
    return _SHARED
