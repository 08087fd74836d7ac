"""The journal: every response, stored as it arrives, found again by content.

SQLite in WAL mode with full synchronization: a batch of responses is one transaction, so after a
kill or a power loss a batch is there whole or not at all (https://www.sqlite.org/wal.html).
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from evalq.errors import StoreError
from evalq.schema import Request, Response, content_hash

__all__ = ["Journal", "journal_key"]

_VERSION = 1
_COLUMNS = "key, text, logprob, greedy, tokens_in, tokens_out, truncated, seconds"
_SCHEMA = """
CREATE TABLE IF NOT EXISTS responses (
    key        TEXT PRIMARY KEY,
    text       TEXT NOT NULL,
    logprob    REAL,
    greedy     INTEGER,
    tokens_in  INTEGER NOT NULL,
    tokens_out INTEGER NOT NULL,
    truncated  INTEGER NOT NULL,
    seconds    REAL NOT NULL
) WITHOUT ROWID
"""


def journal_key(model_hash: str, request: Request, settings: Mapping[str, Any], repeat: int) -> str:
    """Identity of an answer: what answered, what was asked, and how it was run.

    Args:
        model_hash: content hash of the artifact or parent.
        request: what was asked.
        settings: the engine's settings, all that can change an answer.
        repeat: index among equal requests of one run (sampled generations repeat a request).
    """
    return content_hash([model_hash, request.hash, dict(settings), repeat])


class Journal:
    """Responses by key, in one SQLite file.

    Raises:
        StoreError: the file is no journal, of another version, or cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._db = sqlite3.connect(path, isolation_level=None, timeout=30)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            found = int(self._db.execute("PRAGMA user_version").fetchone()[0])
            if found not in (0, _VERSION):
                self._db.close()
                raise StoreError(
                    f"{path} is a journal of version {found}; this evalq writes version {_VERSION}",
                    hint="Use the evalq that made it, or choose another --out.",
                )
            self._db.execute(_SCHEMA)
            self._db.execute(f"PRAGMA user_version={_VERSION}")
        except sqlite3.Error as error:
            raise StoreError(
                f"cannot open the journal {path}: {error}",
                hint="Check that the directory can be written and that the disk is not full; a "
                "file that is no journal has to be moved away.",
            ) from None

    def get(self, keys: Sequence[str]) -> dict[str, Response]:
        """The stored responses among ``keys``."""
        found: dict[str, Response] = {}
        for start in range(0, len(keys), 500):
            part = keys[start : start + 500]
            marks = ",".join("?" * len(part))
            try:
                rows = self._db.execute(
                    f"SELECT {_COLUMNS} FROM responses WHERE key IN ({marks})", part
                ).fetchall()
            except sqlite3.Error as error:
                raise StoreError(f"cannot read the journal {self.path}: {error}") from None
            for key, text, logprob, greedy, t_in, t_out, truncated, seconds in rows:
                found[key] = Response(
                    text=text,
                    logprob=logprob,
                    greedy=None if greedy is None else bool(greedy),
                    tokens_in=t_in,
                    tokens_out=t_out,
                    truncated=bool(truncated),
                    seconds=seconds,
                )
        return found

    def put(self, answers: Iterable[tuple[str, Response]]) -> None:
        """Store a batch in one transaction; what is there already is kept.

        Raises:
            StoreError: the disk is full or cannot be written; what was stored before is whole.
        """
        rows = [
            (
                key,
                r.text,
                r.logprob,
                r.greedy,
                r.tokens_in,
                r.tokens_out,
                r.truncated,
                r.seconds,
            )
            for key, r in answers
        ]
        try:
            self._db.execute("BEGIN IMMEDIATE")
            self._db.executemany(
                f"INSERT OR IGNORE INTO responses ({_COLUMNS}) VALUES (?,?,?,?,?,?,?,?)", rows
            )
            self._db.execute("COMMIT")
        except sqlite3.Error as error:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise StoreError(
                f"cannot write to the journal {self.path}: {error}",
                hint="Free disk space and run the same command again: nothing stored is lost.",
            ) from None

    def __len__(self) -> int:
        return int(self._db.execute("SELECT COUNT(*) FROM responses").fetchone()[0])

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
