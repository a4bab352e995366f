"""Whether a store keeps what it is given now, for who asks whether the service is ready."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager
from typing import Final

from moescope.service.store.records import (
    ArrivedPart,
    Document,
    Posting,
    Record,
    StoreError,
    UnkeepableError,
)

_PROBE: Final = (Document("probe", "probe", b"1"),)
SLOW_S: Final = 5.0
"""A write that lasts for longer is as good as none: workers wait for an answer as long as this."""


class Failing:
    """What the last writes came to; one thread writes, any thread asks.

    Args:
        clock: seconds that pass evenly.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._began: float | None = None
        self._reason: str | None = None
        self._records: Sequence[Record] = ()

    @contextmanager
    def trying(self) -> Generator[None]:
        """The block writes, or nothing can be written before it ends."""
        with self._lock:
            self._began = self._clock()
        try:
            yield
        finally:
            with self._lock:
                self._began = None

    def worked(self) -> None:
        """Something was kept."""
        with self._lock:
            self._reason, self._records = None, ()

    def failed(self, error: Exception, records: Sequence[Record]) -> None:
        """Records were not kept. Of errors that say nothing of the store no note is taken."""
        if isinstance(error, StoreError) and not isinstance(error, UnkeepableError):
            with self._lock:
                self._reason = str(error)
                self._records = _sample(records) if records or not self._records else self._records

    def reason(self) -> str | None:
        """Why what is written now will not be kept in time; None: it will, as far as is known."""
        with self._lock:
            if self._reason is not None:
                return self._reason
            lasts = 0.0 if self._began is None else self._clock() - self._began
        return f"the store has not answered for {lasts:.0f} s" if lasts > SLOW_S else None

    def to_try_again(self) -> Sequence[Record] | None:
        """What to write to see whether the store works again; None: it does."""
        with self._lock:
            return None if self._reason is None else self._records


def counted(writes: Iterable[Sequence[Record]]) -> tuple[int, int, int]:
    """Frames, parts of traces, and other things among records."""
    frames = parts = others = 0
    for records in writes:
        for record in records:
            frames += isinstance(record, Posting)
            parts += isinstance(record, ArrivedPart)
            others += not isinstance(record, Posting | ArrivedPart)
    return frames, parts, others


def _sample(records: Sequence[Record]) -> Sequence[Record]:
    """One record that may be written again at any time: a frame's account, as large as the next ones."""
    frames = [item for item in records if isinstance(item, Posting) and not item.began_again]
    return frames[-1:] or _PROBE
