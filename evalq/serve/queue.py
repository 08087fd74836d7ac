"""One thread that owns the models: requests wait, those of one model run together."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Mapping
from concurrent.futures import Future

from evalq.serve.engine import Done, Job, ServeEngine

__all__ = ["EngineQueue"]

_GATHER = 0.004
"""Seconds that the first request of a batch waits for others."""


class EngineQueue:
    """Engine calls, one at a time.

    Args:
        engines: by name.
        batch: most requests that run together; 1 gives each request the same bits, whatever
            else is asked at the time.
    """

    def __init__(self, engines: Mapping[str, ServeEngine], batch: int = 32) -> None:
        self._engines = engines
        self._batch = batch
        self._waiting: deque[tuple[str, Job, Future[Done]]] = deque()
        self._wake = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="evalq-engine", daemon=True)
        self._thread.start()

    def submit(self, name: str, job: Job) -> Future[Done]:
        """The future answer of the engine of that name."""
        future: Future[Done] = Future()
        with self._wake:
            self._waiting.append((name, job, future))
            self._wake.notify()
        return future

    def close(self) -> None:
        """Finish the batch under way and end the thread; what waits is cancelled."""
        with self._wake:
            self._closed = True
            for _, _, future in self._waiting:
                future.cancel()
            self._waiting.clear()
            self._wake.notify()
        self._thread.join()

    def _take(self) -> tuple[str, list[tuple[Job, Future[Done]]]] | None:
        with self._wake:
            while not self._waiting and not self._closed:
                self._wake.wait()
            if self._closed:
                return None
        if self._batch > 1:
            time.sleep(_GATHER)
        with self._wake:
            if not self._waiting:
                return "", []
            name = self._waiting[0][0]
            taken: list[tuple[Job, Future[Done]]] = []
            left: deque[tuple[str, Job, Future[Done]]] = deque()
            for entry in self._waiting:
                if entry[0] == name and len(taken) < self._batch:
                    taken.append((entry[1], entry[2]))
                else:
                    left.append(entry)
            self._waiting = left
            return name, taken

    def _work(self) -> None:
        while True:
            found = self._take()
            if found is None:
                return
            name, batch = found
            batch = [
                (j, f) for j, f in batch if not j.cancelled and f.set_running_or_notify_cancel()
            ]
            if not batch:
                continue
            try:
                answers = self._engines[name].run([job for job, _ in batch])
            except Exception as error:  # it is the caller's to report
                for _, future in batch:
                    future.set_exception(error)
                continue
            for (_, future), answer in zip(batch, answers, strict=True):
                future.set_result(answer)
