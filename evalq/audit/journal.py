"""Answers of an audit as they come: a line of JSON each, synced; a torn last line is dropped."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import IO, Any

from evalq.audit.answers import Answer, journal_line
from evalq.audit.client import Ask, Capabilities
from evalq.errors import StoreError
from evalq.schema import content_hash
from evalq.store.files import guard_disk

__all__ = ["AuditJournal"]


class AuditJournal:
    """Asked and answered, found again by content.

    Args:
        path: of the file; its directory is made.
        identity: hash of what is audited and how; another one's journal is refused.

    Raises:
        StoreError: the file is another audit's, is broken, or cannot be written.
    """

    def __init__(self, path: Path, identity: str) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._answers: dict[str, Answer] = {}
        self._capabilities: tuple[Capabilities, int, int, int] | None = None
        self._file: IO[bytes]
        with guard_disk(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            content = path.read_bytes() if path.exists() else b""
            whole = content.rfind(b"\n") + 1
            self._load(content[:whole], identity)
            self._file = open(path, "r+b" if content else "wb")  # noqa: SIM115 - closed in close()
            self._file.truncate(whole)
            self._file.seek(whole)
            if not whole:
                self._write({"audit": identity, "version": 1})

    def _load(self, content: bytes, identity: str) -> None:
        for number, line in enumerate(content.splitlines(), 1):
            try:
                entry = json.loads(line)
                if number == 1:
                    if entry["audit"] != identity:
                        raise StoreError(
                            f"{self.path} is of another audit (other endpoint, tiers or settings)",
                            hint="Choose another --out, or remove it to begin anew.",
                        )
                elif "capabilities" in entry:
                    found = Capabilities.from_dict(entry["capabilities"])
                    read, written, answered = (int(v) for v in entry["spent"])
                    self._capabilities = (found, read, written, answered)
                else:
                    self._answers[str(entry["key"])] = Answer.from_dict(entry["answer"])
            except (ValueError, KeyError, TypeError) as error:
                raise StoreError(
                    f"{self.path}, line {number}: {error}",
                    hint="The journal is broken: remove it to begin anew.",
                ) from None

    def _write(self, value: dict[str, Any]) -> None:
        with guard_disk(self.path), self._lock:
            self._file.write(journal_line(value).encode() + b"\n")
            self._file.flush()
            os.fsync(self._file.fileno())

    def _key(self, kind: str, ask: Ask) -> str:
        return content_hash([kind, ask.prompt, ask.max_tokens, ask.temperature, ask.seed])

    def get(self, kind: str, ask: Ask) -> Answer | None:
        """The answer to that request, if there is one."""
        return self._answers.get(self._key(kind, ask))

    def put(self, kind: str, ask: Ask, answer: Answer) -> None:
        """Store an answer for good."""
        key = self._key(kind, ask)
        self._answers[key] = answer
        self._write(
            {
                "key": key,
                "kind": kind,
                "prompt": ask.prompt,
                "max_tokens": ask.max_tokens,
                "seed": ask.seed,
                "answer": answer.as_dict(),
            }
        )

    def capabilities(self) -> tuple[Capabilities, int, int, int] | None:
        """As found before, with the tokens read and written and the requests that it took."""
        return self._capabilities

    def put_capabilities(self, found: Capabilities, read: int, written: int, answered: int) -> None:
        """Store them."""
        self._capabilities = (found, read, written, answered)
        self._write({"capabilities": found.as_dict(), "spent": [read, written, answered]})

    def close(self) -> None:
        """Close the file."""
        self._file.close()
