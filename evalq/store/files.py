"""Files of a run directory: whole or not there, one writer at a time."""

from __future__ import annotations

import errno
import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from evalq.errors import StoreError
from evalq.schema import FORMAT_VERSION
from evalq.store.migrate import migrate

__all__ = ["RunDirectory", "atomic_write", "guard_disk"]


@contextmanager
def guard_disk(path: Path) -> Iterator[None]:
    """Turn what the operating system says about a full or read-only disk into a ``StoreError``."""
    try:
        yield
    except OSError as error:
        reasons = {
            errno.ENOSPC: "the disk is full",
            errno.EDQUOT: "the disk quota is used up",
            errno.EROFS: "the disk is read-only",
            errno.EACCES: "permission denied",
            errno.EPERM: "permission denied",
            errno.ENOTDIR: "a part of the path is a file",
            errno.EISDIR: "it is a directory",
            errno.EEXIST: "it exists already",
            errno.ENAMETOOLONG: "the name is too long",
        }
        if error.errno not in reasons:
            raise
        raise StoreError(
            f"cannot write {path}: {reasons[error.errno]}",
            hint="Make room or choose another --out; what was stored so far is kept, and the same "
            "command resumes.",
        ) from None


@contextmanager
def atomic_write(path: Path) -> Iterator[IO[bytes]]:
    """A binary stream whose content is at ``path`` when the block ends, whole and synced.

    Raises:
        StoreError: the disk is full or cannot be written; ``path`` is then as it was.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with guard_disk(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, "wb") as stream:
                yield stream
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(temporary, path)
        finally:
            with suppress(OSError):
                temporary.unlink()


class RunDirectory:
    """One run on disk; opened for writing, it is locked against a second writer.

    The lock is advisory (``flock``) and goes with the process, so a killed run leaves none behind.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: IO[str] | None = None

    @property
    def items(self) -> Path:
        """Where item records are."""
        return self.path / "items.parquet"

    @property
    def fidelity(self) -> Path:
        """Where fidelity records are."""
        return self.path / "fidelity.parquet"

    @property
    def costs(self) -> Path:
        """Where cost records are."""
        return self.path / "costs.parquet"

    @property
    def journal(self) -> Path:
        """Where the response journal is."""
        return self.path / "journal.sqlite"

    @property
    def artifacts(self) -> Path:
        """Where the artifacts that the run made are, one folder a variant."""
        return self.path / "artifacts"

    @property
    def report(self) -> Path:
        """Where the rendered report is."""
        return self.path / "report"

    @property
    def parts(self) -> Path:
        """Where finished measurements of single variants are, for resuming."""
        return self.path / "parts"

    def lock(self) -> None:
        """Create the directory and take it for this process.

        Raises:
            StoreError: it cannot be written, or another process holds it.
        """
        with guard_disk(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = open(self.path / "run.lock", "w")  # noqa: SIM115 - held until unlock
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.close()
            self._lock = None
            raise StoreError(
                f"another evalq process is writing to {self.path}",
                hint="Wait for it to end, or choose another --out.",
            ) from None

    def unlock(self) -> None:
        """Give the directory back."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def read_info(self) -> dict[str, Any] | None:
        """``run.json`` as this version has it, or ``None`` where there is none yet.

        One of an older format is brought up to date in memory; the file stays as it is.

        Raises:
            StoreError: it is no JSON, or of a newer format.
        """
        path = self.path / "run.json"
        try:
            info = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise StoreError(f"{path} cannot be read: {error}") from None
        if not isinstance(info, dict) or not isinstance(info.get("format_version"), int):
            raise StoreError(f"{path} is not the run.json of an evalq run")
        if info["format_version"] > FORMAT_VERSION:
            raise StoreError(
                f"{self.path} has format version {info['format_version']}; this evalq reads up to "
                f"{FORMAT_VERSION}",
                hint="Install a newer evalq.",
            )
        return migrate(info, self.path)

    def write_info(self, info: Mapping[str, Any]) -> None:
        """Replace ``run.json``."""
        text = json.dumps({"format_version": FORMAT_VERSION, **info}, indent=2, ensure_ascii=False)
        with atomic_write(self.path / "run.json") as stream:
            stream.write(text.encode("utf-8") + b"\n")
