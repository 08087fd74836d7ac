"""The most memory that this process takes while something runs."""

from __future__ import annotations

import threading
from pathlib import Path
from types import TracebackType

import psutil
import torch

__all__ = ["PeakMemory"]

_INTERVAL = 0.02
_STATUS = Path("/proc/self/status")


class PeakMemory:
    """Looks at the process fifty times a second while its block runs.

    What is mapped from files counts as resident, but the system takes it back when it needs the
    room; ``anonymous`` is what has to fit. Shorter peaks than the interval can be missed.

    Args:
        device: a CUDA device whose peak is taken too, as torch's allocator counts it.
    """

    def __init__(self, device: torch.device | None = None) -> None:
        self.device = device if device is not None and device.type == "cuda" else None
        self.resident = self.anonymous = 0
        self.known = _STATUS.is_file()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def _look(self) -> None:
        if not self.known:
            self.resident = max(self.resident, psutil.Process().memory_info().rss)
            return
        for line in _STATUS.read_text(encoding="ascii", errors="replace").splitlines():
            name, _, rest = line.partition(":")
            if name == "VmRSS":
                self.resident = max(self.resident, int(rest.split()[0]) * 1024)
            elif name == "RssAnon":
                self.anonymous = max(self.anonymous, int(rest.split()[0]) * 1024)

    def _watch(self) -> None:
        while not self._over.wait(_INTERVAL):
            self._look()

    def __enter__(self) -> PeakMemory:
        if self.device is not None:
            torch.cuda.reset_peak_memory_stats(self.device)
        self._look()
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over.set()
        self._thread.join()
        self._look()

    def record(self) -> dict[str, int | None]:
        """Peaks in bytes; ``None`` for what cannot be known here."""
        gpu = self.device
        return {
            "peak_resident_bytes": self.resident,
            "peak_anonymous_bytes": self.anonymous if self.known else None,
            "peak_device_bytes": None if gpu is None else torch.cuda.max_memory_allocated(gpu),
        }
