"""Finished decoder layers on disk: what a killed job goes on from, and what keeps memory low.

A job's results and the hidden states on their way are stored after each layer, beside the output.
The next layer needs no more than that, so a job that was killed goes on there and ends with the
bytes of an unbroken one. Finished layers are mapped from these files instead of kept in memory.

Hidden states can be many gigabytes. They are stored after a layer only if all such writing has
taken less than a tenth of the time of the job so far; a job resumes at the last layer whose hidden
states are there.
"""

from __future__ import annotations

import fcntl
import json
import shutil
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from safetensors import SafetensorError
from torch import Tensor

from evalq.errors import ArtifactError, QuantizationError
from evalq.kernels.packing import QuantizedWeight
from evalq.quantize.job import Job, LayerReport
from evalq.quantize.tensorfile import mapped, write_tensors
from evalq.schema import PerChannel, PerGroup, WeightScheme

__all__ = ["LayerStore", "in_use"]

_STATE = "state.json"
_LARGEST_SHARE = 0.1


class LayerStore:
    """The finished layers of one job, as a context: an error removes them, a kill leaves them.

    Args:
        directory: where they lie; it is made, and removed at the end.
        key: of all that decides the results. Layers of another key are thrown away.

    Raises:
        ArtifactError: the directory cannot be made, or another process works in it.
    """

    def __init__(self, directory: Path, key: str) -> None:
        self.directory = directory
        self.key = key
        self.finished = 0
        self.seconds = 0.0
        self._marks: tuple[int, int, int] = (0, 0, 0)
        self._repeated: dict[str, int] = {}
        self._known: tuple[set[str], set[str]] = (set(), set())
        self._began = time.monotonic()
        self._writing = 0.0
        self._hidden: Path | None = None
        self._fresh: list[Path] = []
        self._lock: IO[str] | None = None

    def __enter__(self) -> LayerStore:
        home = self.directory.parent
        self._fresh = [path for path in (home, *home.parents) if not path.exists()]
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            self._lock = (self.directory / "lock").open("w")
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ArtifactError(
                f"another process is making this artifact: it holds {self.directory}",
                hint="Wait for it, or write to another place.",
            ) from None
        except OSError as error:
            raise self._unwritable(error) from None
        self._began = time.monotonic()
        self._read_state()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # Ctrl-C and a request to end are no fault of the input: the work done so far is kept.
        if error is None or isinstance(error, Exception):
            shutil.rmtree(self.directory, ignore_errors=True)
            if error is not None:
                for path in self._fresh:
                    with suppress(OSError):
                        path.rmdir()
        if self._lock is not None:
            self._lock.close()

    def _unwritable(self, error: OSError) -> ArtifactError:
        return ArtifactError(
            f"cannot write {self.directory}: {error.strerror or error}",
            hint="Free some space, or write to another place.",
        )

    def _read_state(self) -> None:
        """How far an earlier process came; nothing where its files are not those of this job."""
        try:
            state = json.loads((self.directory / _STATE).read_text(encoding="utf-8"))
            if state["key"] != self.key:
                raise ValueError("of another job")
            for index in range(int(state["finished"])):
                mapped(self._layer(index, ".safetensors"))
                json.loads(self._layer(index, ".json").read_text(encoding="utf-8"))
            if state["hidden"]:
                self._hidden = self.directory / str(state["hidden"])
                mapped(self._hidden)
            self.finished, self.seconds = int(state["finished"]), float(state["seconds"])
        except (OSError, ValueError, KeyError, TypeError, SafetensorError):
            self.finished, self._hidden = 0, None
            for path in self.directory.iterdir():
                if path.name != "lock":
                    path.unlink()

    def _layer(self, index: int, suffix: str) -> Path:
        return self.directory / f"layer-{index:05d}{suffix}"

    def restore(self, job: Job) -> None:
        """Put the results of all finished layers into ``job``."""
        for index in range(self.finished):
            notes = json.loads(self._layer(index, ".json").read_text(encoding="utf-8"))
            self._load(index, notes, job)
            job.reports += [LayerReport(**report) for report in notes["reports"]]
            job.warnings += notes["warnings"]
            job.experts += notes["experts"]
            for name, errors in notes["layer_errors"].items():
                job.layer_errors[name] = (errors[0], errors[1])
            for what, names in notes["repeated"].items():
                job.repeated.setdefault(what, []).extend(names)
        self._mark(job)

    def hidden(self) -> list[Tensor]:
        """The hidden states after the last finished layer, per batch.

        Raises:
            QuantizationError: none are stored, which is a defect of the caller.
        """
        if self._hidden is None:
            raise QuantizationError(f"{self.directory} holds no hidden states")
        found = mapped(self._hidden)
        return [found[str(number)] for number in range(len(found))]

    def keep(self, index: int, job: Job, hidden: list[Tensor] | None) -> None:
        """Store what layer ``index`` added to ``job``, and the hidden states behind it.

        Raises:
            ArtifactError: the disk is full or read-only.
        """
        try:
            notes = self._write_layer(index, job)
            self._load(index, notes, job)
            start = time.monotonic()
            if hidden is None or self._writing <= _LARGEST_SHARE * (start - self._began):
                self._write_state(index, hidden)
                self._writing += time.monotonic() - start
        except OSError as error:
            raise self._unwritable(error) from None
        self._mark(job)

    def _write_layer(self, index: int, job: Job) -> dict[str, Any]:
        layers, dense = self._known
        reports, warnings, experts = self._marks
        tensors: dict[str, Tensor] = {}
        schemes = {}
        for name, weight in job.layers.items():
            if name in layers:
                continue
            schemes[name] = _scheme_words(weight)
            tensors[f"{name}:codes"], tensors[f"{name}:scales"] = weight.codes, weight.scales
            if weight.zeros is not None:
                tensors[f"{name}:zeros"] = weight.zeros
        changed = [name for name in job.dense if name not in dense]
        tensors |= {f"{name}:dense": job.dense[name] for name in changed}
        notes = {
            "schemes": schemes,
            "dense": changed,
            "reports": [asdict(report) for report in job.reports[reports:]],
            "warnings": job.warnings[warnings:],
            "experts": job.experts[experts:],
            "layer_errors": dict(list(job.layer_errors.items())[index:]),
            "repeated": {w: n[self._repeated.get(w, 0) :] for w, n in job.repeated.items()},
        }
        write_tensors(self._layer(index, ".safetensors"), tensors)
        _write_text(self._layer(index, ".json"), json.dumps(notes))
        return notes

    def _load(self, index: int, notes: Mapping[str, Any], job: Job) -> None:
        """Put the tensors of a finished layer into ``job``, as views of their file."""
        tensors = mapped(self._layer(index, ".safetensors"))
        for name, words in notes["schemes"].items():
            job.layers[name] = QuantizedWeight(
                tensors[f"{name}:codes"],
                tensors[f"{name}:scales"],
                tensors.get(f"{name}:zeros"),
                _scheme(words),
                (int(words["shape"][0]), int(words["shape"][1])),
            )
        for name in notes["dense"]:
            job.dense[name] = tensors[f"{name}:dense"]

    def _write_state(self, index: int, hidden: list[Tensor] | None) -> None:
        old, fresh = self._hidden, None
        if hidden is not None:
            fresh = self.directory / f"hidden-{index:05d}.safetensors"
            write_tensors(fresh, {str(n): tensor for n, tensor in enumerate(hidden)})
        self.finished = index + 1
        state = {
            "key": self.key,
            "finished": self.finished,
            "hidden": None if fresh is None else fresh.name,
            "seconds": self.seconds + time.monotonic() - self._began,
        }
        _write_text(self.directory / _STATE, json.dumps(state))
        self._hidden = fresh
        if old is not None:
            old.unlink(missing_ok=True)

    def _mark(self, job: Job) -> None:
        self._known = (set(job.layers), set(job.dense))
        self._repeated = {what: len(names) for what, names in job.repeated.items()}
        self._marks = (len(job.reports), len(job.warnings), len(job.experts))


def _scheme_words(weight: QuantizedWeight) -> dict[str, Any]:
    granularity = weight.scheme.granularity
    return {
        "bits": weight.scheme.bits,
        "group": granularity.size if isinstance(granularity, PerGroup) else None,
        "symmetric": weight.scheme.symmetric,
        "shape": list(weight.shape),
    }


def _scheme(words: Mapping[str, Any]) -> WeightScheme:
    size = words["group"]
    granularity = PerChannel() if size is None else PerGroup(int(size))
    return WeightScheme(int(words["bits"]), granularity, bool(words["symmetric"]))


def _write_text(path: Path, text: str) -> None:
    fresh = path.with_name(f"{path.name}.new")
    fresh.write_text(text, encoding="utf-8")
    fresh.replace(path)


def in_use(directory: Path) -> bool:
    """Whether a process works in the directory of a :class:`LayerStore`."""
    try:
        with (directory / "lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False
