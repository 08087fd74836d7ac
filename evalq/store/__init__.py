"""What a run leaves on disk: the response journal (SQLite), the record tables and run.json."""

from evalq.store.files import RunDirectory, atomic_write, guard_disk
from evalq.store.journal import Journal, journal_key
from evalq.store.tables import read_table, write_table

__all__ = [
    "Journal",
    "RunDirectory",
    "atomic_write",
    "guard_disk",
    "journal_key",
    "read_table",
    "write_table",
]
