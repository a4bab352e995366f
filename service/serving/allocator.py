"""Telling glibc's allocator to give back to the system what is free."""

from __future__ import annotations

import ctypes
from collections.abc import Generator
from contextlib import contextmanager
from typing import Final

from moescope.service.serving.repeating import repeating

_M_MMAP_THRESHOLD: Final = -3
LARGE: Final = 1 << 20
"""Bytes from which on an allocation is the system's own; a producer's arrays are smaller and used again."""
TRIM_S: Final = 5.0
"""Seconds between two looks for free memory. One takes some 10 ms of CPU time where there is nothing new."""


def return_large_arrays() -> bool:
    """Have each allocation of :data:`LARGE` bytes or more go back to the system when it is freed.

    By itself glibc raises that limit to the size of the largest array freed so far, up to 32 MiB. What a
    scrape of hundreds of ranks needs for a moment then stays in this process, for each thread that scraped.

    Returns:
        Whether it could be set; with another C library than glibc nothing changes.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and bool(mallopt(_M_MMAP_THRESHOLD, LARGE))


@contextmanager
def trimming(every_s: float = TRIM_S) -> Generator[None]:
    """While the block runs, give free pages back to the system now and then, from a thread of its own.

    By itself glibc gives back only what is free at the end of a thread's heap, and each thread has one. What
    an answer needs for a moment, in many small objects, then stays in this process for each thread that made
    answers: a few objects that live on keep all of it. With another C library than glibc nothing is done.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is None:
        yield
        return
    # Without the interpreter's lock; it takes the lock of one heap after the other.
    with repeating(lambda _: trim(0), every_s, "moescope-trim"):
        yield
