"""What the process of a verb asks of the C library's allocator."""

from __future__ import annotations

import ctypes
import sys

__all__ = ["return_large_blocks"]

_M_MMAP_THRESHOLD = -3
"""``mallopt``'s name of it in glibc's malloc.h."""
_LARGE = 1 << 20


def return_large_blocks() -> bool:
    """Have freed blocks of 1 MiB or more go back to the system at once; whether that was set.

    glibc raises its limit up to 32 MiB as blocks are freed, and keeps smaller ones. Where a great
    many tables of a vocabulary's width (some 10 MB each) alternate with small results that stay,
    each result splits a freed block, and the heap grows without end: 24 GiB within ten minutes,
    where 5 GiB were in use.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return bool(mallopt is not None and mallopt(_M_MMAP_THRESHOLD, _LARGE))
