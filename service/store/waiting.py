"""What waits for a store's thread: frames need not wait for all parts of traces, which are far larger."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Final

from moescope.service.store.records import ArrivedPart, Record

MAX_WAITING: Final = 4096
MAX_BATCH: Final = 256
PART_BYTES: Final = 8 << 20
"""Bytes of parts of traces in one transaction, or a single part that has more. So a frame waits for these at
most, however many parts came before it."""

Item = tuple[Sequence[Record], Future[None]]
"""Records that are kept together, and what tells their sender."""


class Waiting:
    """Items in their order, those with parts of traces apart, in turn; for any threads, of which one takes.

    Accounts, documents and traces say nothing of each other, so only the order within either kind matters.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._first: deque[Item] = deque()
        self._parts: deque[tuple[int, Item]] = deque()
        self._closed = self._parts_next = False

    def put(self, item: Item) -> bool:
        """Take an item; False: there are too many."""
        nbytes = sum(_part_bytes(record) for record in item[0])
        with self._changed:
            if len(self._first) + len(self._parts) >= MAX_WAITING:
                return False
            if nbytes:
                self._parts.append((nbytes, item))
            else:
                self._first.append(item)
            self._changed.notify()
        return True

    def close(self) -> None:
        """Nothing will be put any more."""
        with self._changed:
            self._closed = True
            self._changed.notify()

    def drop(self) -> list[Item]:
        """All that waits; nothing does after that."""
        with self._changed:
            found = [*self._first, *(item for _, item in self._parts)]
            self._first.clear()
            self._parts.clear()
            return found

    def empty(self) -> bool:
        """Whether nothing waits."""
        with self._changed:
            return not self._first and not self._parts

    def take(self, timeout_s: float) -> tuple[list[Item], bool]:
        """What one transaction should hold of what waits, and whether it is the last: after :meth:`close`.

        Args:
            timeout_s: how long to wait for something.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._first or self._parts or self._closed, timeout_s)
            if self._parts and (self._parts_next or not self._first):
                batch = self._take_parts()
            else:
                batch = [self._first.popleft() for _ in range(min(len(self._first), MAX_BATCH))]
            self._parts_next = not self._parts_next
            return batch, self._closed and not self._first and not self._parts

    def _take_parts(self) -> list[Item]:
        batch: list[Item] = []
        taken = 0
        while self._parts and len(batch) < MAX_BATCH and taken < PART_BYTES:
            nbytes, item = self._parts.popleft()
            taken += nbytes
            batch.append(item)
        return batch


def _part_bytes(record: Record) -> int:
    """Bytes of a part of a trace, one at least; 0 of any other record."""
    return 1 + sum(map(len, record.part.experts)) if isinstance(record, ArrivedPart) else 0
