"""What is kept and can't be read: every engine leaves it out, logs it, and goes on with the rest.

Either it is damaged, or a newer moescope that shares the store wrote it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Final

from moescope.service.logs import Throttle
from moescope.service.store.records import DamagedError, Key

TRIES: Final = 8
"""Snapshots that are looked at when the nearest one can't be read."""

_ACCOUNT: Final = (
    "the store %s: the account of %s can't be read and is left out: %s; what its worker counted since its "
    "start comes back with its next frame"
)
_TOTALS: Final = (
    "the store %s: totals of %s can't be read and earlier ones take their place: %s; a window that begins or "
    "ends there is less exact in time, its counts are exact (logged once a minute)"
)
_SHAPE: Final = (
    "the store %s: the layers of a trace of request %s can't be read: %s; its new parts are kept unchecked "
    "(logged once a minute)"
)
_SEARCH: Final = "the store %s: %s is left out of searches by expert: %s (logged once a minute)"
_COMPARED: Final = (
    "the store %s: requests are not compared, since %s can't be read: %s (logged once a minute)"
)

_REQUEST: Final = "the store %s: request %s is left out of answers: %s (logged once a minute)"

_log = logging.getLogger(__name__)


KINDS: Final = ("account", "totals", "shape", "request", "search", "compared")
"""What a store may have that can't be read."""


class DamageLog:
    """Tells what of one store can't be read; for all threads.

    Args:
        store: the store's name for people.
        clock: seconds that pass evenly.

    Attributes:
        lost_accounts: some producer's account was left out.
    """

    def __init__(self, store: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.lost_accounts = False
        self._store = store
        self._throttle = Throttle(clock)
        self._lock = threading.Lock()
        self._found: Counter[str] = Counter(dict.fromkeys(KINDS, 0))

    def found(self) -> dict[str, int]:
        """How often something was met that can't be read, by what it is; each time that it is asked for."""
        with self._lock:
            return dict(self._found)

    def _note(self, kind: str) -> bool:
        """Count something of a kind; whether to tell it now."""
        with self._lock:
            self._found[kind] += 1
            return self._throttle.allows(kind)

    def account(self, key: Key, error: ValueError) -> None:
        """The account of a producer is left out; each one is told, at a start."""
        self.lost_accounts = True
        with self._lock:
            self._found["account"] += 1
        _log.error(_ACCOUNT, self._store, key, error)

    def account_of_another(self, key: Key, error: ValueError) -> None:
        """The account that another service keeps is left out; it may keep one a second."""
        if self._note("account"):
            _log.error(_ACCOUNT, self._store, key, error)

    def totals(self, key: Key, error: ValueError) -> None:
        """A snapshot of a producer is passed over."""
        if self._note("totals"):
            _log.error(_TOTALS, self._store, key, error)

    def shape(self, request_id: str, error: ValueError) -> None:
        """The shape of a trace is taken as not known."""
        if self._note("shape"):
            _log.error(_SHAPE, self._store, request_id, error)

    def request(self, request_id: str, error: ValueError) -> None:
        """What is told of a request can't be read."""
        if self._note("request"):
            _log.error(_REQUEST, self._store, request_id, error)

    def search(self, what: str, error: ValueError) -> None:
        """Something is left out of searches by expert."""
        if self._note("search"):
            _log.error(_SEARCH, self._store, what, error)

    def compared(self, what: str, error: ValueError) -> None:
        """The requests that something is of are left out of comparisons."""
        if self._note("compared"):
            _log.error(_COMPARED, self._store, what, error)


@contextmanager
def unreadable_as_error(store: str) -> Generator[None]:
    """Make damage an error of the store, for a read that can leave nothing out.

    Raises:
        DamagedError: the block raised a :class:`ValueError`.
    """
    try:
        yield
    except ValueError as error:
        raise DamagedError(f"the store {store} can't be read: {error}") from error
