"""evalq: which precision of this model can I ship?"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from evalq.audit.api import OpenAudit
    from evalq.report.api import OpenRun

__all__ = ["__version__", "open_audit", "open_run"]

__version__ = "0.1.0"


def open_run(path: str | Path) -> OpenRun:
    """Open a stored run: pandas frames, comparisons, flips and figures, without a model.

    Raises:
        StoreError: no run directory, of a newer format version, or a broken table.
    """
    from evalq.report.api import open_run as opened

    return opened(path)


def open_audit(path: str | Path) -> OpenAudit:
    """Open a stored audit: its verdict, and pandas frames of the evidence, without a model.

    Raises:
        StoreError: no audit there, or one of another version.
    """
    from evalq.audit.api import open_audit as opened

    return opened(path)
