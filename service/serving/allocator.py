"""Telling glibc's allocator to give large arrays back to the system."""

from __future__ import annotations

import ctypes
from typing import Final

_M_MMAP_THRESHOLD: Final = -3
LARGE: Final = 1 << 20
"""Bytes from which on an allocation is the system's own; a producer's arrays are smaller and used again."""


def return_large_arrays() -> bool:
    """Have each allocation of :data:`LARGE` bytes or more go back to the system when it is freed.

    By itself glibc raises that limit to the size of the largest array freed so far, up to 32 MiB. What a
    scrape of hundreds of ranks needs for a moment then stays in this process, for each thread that scraped.

    Returns:
        Whether it could be set; with another C library than glibc nothing changes.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and bool(mallopt(_M_MMAP_THRESHOLD, LARGE))
