"""Python's search for cycles of garbage, put off while much is made that is kept or freed at once."""

from __future__ import annotations

import gc
import threading
from collections.abc import Generator
from contextlib import contextmanager

_lock = threading.Lock()
_pausing = 0
_was_enabled = False


@contextmanager
def no_search() -> Generator[None]:
    """While the block runs, in whichever threads it does, no cycles are looked for.

    The interpreter looks at all objects of the process whenever their number has grown by a quarter. Whoever
    makes half a million samples for one answer has it do so several times, a third of a second each, with all
    other threads waiting. Objects without cycles are freed as ever.
    """
    global _pausing, _was_enabled
    with _lock:
        if not _pausing:
            _was_enabled = gc.isenabled()
            gc.disable()
        _pausing += 1
    try:
        yield
    finally:
        with _lock:
            _pausing -= 1
            if not _pausing and _was_enabled:
                gc.enable()
