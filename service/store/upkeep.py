"""Maintenance of a store, at intervals: what is due is rolled up and removed."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable
from typing import Final

from moescope.service.store.ageing import Ageing
from moescope.service.store.interface import Store
from moescope.service.store.records import Document

_log = logging.getLogger(__name__)

MAINTENANCE_S: Final = 10.0
AGED: Final = "aged"
"""Kind and name of the document that says how far history has aged."""


class Upkeep:
    """Maintains a store; for one thread at a time.

    Args:
        store: the store.
        clock: seconds of Unix time.
        every_s: seconds from the end of one round to the begin of the next.
        keep: keeps the document that says how far history has aged.
        complain: is told what failed.
    """

    def __init__(
        self,
        store: Store,
        clock: Callable[[], float],
        every_s: float,
        keep: Callable[[Document], object],
        complain: Callable[[Exception], None],
    ) -> None:
        self._store = store
        self._clock = clock
        self.every_s = every_s
        self._keep = keep
        self._complain = complain
        self._ageing: Ageing | None = None
        self._maintained = time.monotonic()

    def begin(self) -> None:
        """Read how far history had aged when the service ran before."""
        self._ageing = Ageing(self._aged_until(), time.monotonic)

    def if_due(self) -> None:
        """Maintain the store if it is time to."""
        if time.monotonic() - self._maintained >= self.every_s:
            self._maintain()
            self._maintained = time.monotonic()

    def run(self, ending: threading.Event) -> None:
        """Maintain the store at intervals, until it is to end; for a thread of its own."""
        self.begin()
        while not ending.wait(self.every_s):
            self._maintain()

    def _maintain(self) -> None:
        assert self._ageing is not None, "it has begun"
        try:
            now = self._clock()
            history_now = self._ageing.until(now)
            self._store.maintain(now, history_now)
            self._keep(Document(AGED, AGED, repr(history_now).encode()))
        except Exception as error:  # noqa: BLE001 - the thread must outlive it
            self._complain(error)

    def _aged_until(self) -> float | None:
        """What was kept of :class:`Ageing` when the service ran before; None: nothing that can be read."""
        try:
            kept = next((content for _, content in self._store.documents(AGED)), None)
        except Exception as error:  # noqa: BLE001 - the thread must outlive it
            self._complain(error)
            return None
        if kept is None:
            return None
        try:
            instant = float(kept)
            if not math.isfinite(instant):
                raise ValueError(f"{instant} is no instant")
        except ValueError as error:
            _log.error("how far the history in the store has aged can't be read: %s; it ages from now", error)
            return None
        return instant
