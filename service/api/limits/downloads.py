"""Room for downloads: each counts the most memory that it may hold, and all together have a bound."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Final

from moescope.service.api.problems import ProblemError
from moescope.service.logs import Throttle

WAIT_S: Final = 60.0
"""How long a download waits for room before it is told to ask again."""
PATIENCE_S: Final = 3.0
"""While others wait, how long a client may take for one piece; and for all, as long as it is a beginner."""
LEAST_RATE: Final = 256 << 10
"""Bytes a second that the slowest client must take while others wait, once it is no beginner: on average over
the seconds in which it was given pieces."""

_log = logging.getLogger(__name__)


class Place:
    """A download's room.

    Args:
        nbytes: what it counts.
    """

    def __init__(self, nbytes: int) -> None:
        self.nbytes = nbytes
        self.sent = 0
        """Bytes that its client was sent, except the last ones, which may wait in the socket."""
        self.sending_since: float | None = None
        """Since when its client has been given a piece that it does not take; None: it waits for one."""
        self.sending_s = 0.0
        """Seconds that its client took for all pieces before. Those in which the service made a block, or had
        it wait for a turn, are not the client's."""
        self.ending = False
        self._timeout: asyncio.Timeout | None = None

    @contextmanager
    def endable(self, timeout: asyncio.Timeout) -> Generator[None]:
        """Within the block :meth:`end` makes the timeout expire."""
        self._timeout = timeout
        if self.ending:
            self.end()
        try:
            yield
        finally:
            self._timeout = None

    def taking(self, now: float) -> float:
        """Seconds that its client has taken for the piece that it is given; 0: it waits for one."""
        return 0.0 if self.sending_since is None else now - self.sending_since

    def end(self) -> None:
        """Have the download end soon."""
        self.ending = True
        if self._timeout is not None:
            self._timeout.reschedule(asyncio.get_running_loop().time())


class Downloads:
    """All downloads; for one event loop.

    Those that find no room wait in the order they came. Whoever has waited for a while ends those that don't
    read, and the slowest one, if that is slow: so clients that don't read, or read a byte now and then, can't
    keep all room for themselves.

    Args:
        most: bytes for all together.
        timer: seconds of a clock that never goes back.
    """

    def __init__(self, most: int, timer: Callable[[], float] = time.monotonic) -> None:
        self._most = most
        self._timer = timer
        self._taken = 0
        self._open: dict[Place, None] = {}
        self._waiting: deque[tuple[int, asyncio.Future[Place]]] = deque()
        self._throttle = Throttle(timer)

    def may_log(self, kind: str) -> bool:
        """Whether a message of this kind may be logged now: each may once a minute, over all downloads."""
        return self._throttle.allows(kind)

    @property
    def held_bytes(self) -> int:
        """What all downloads count now."""
        return self._taken

    async def enter(self, nbytes: int) -> Place:
        """A place for a download of so many bytes at most; :meth:`leave` gives it back.

        Raises:
            ProblemError: it can never have so many (400), or there was no room in time (503).
        """
        if nbytes > self._most:
            raise ProblemError(
                400,
                "too-large",
                "Too large an answer",
                f"Making it takes {nbytes >> 20} MiB, and all downloads together may take "
                f"{self._most >> 20} (max_download_mib): ask for less with first, end and layer.",
            )
        waits: asyncio.Future[Place] = asyncio.get_running_loop().create_future()
        self._waiting.append((nbytes, waits))
        self._admit()
        try:
            return await self._patiently(waits)
        except BaseException:
            if waits.done() and not waits.cancelled():
                self.leave(waits.result())
            waits.cancel()
            self._admit()
            raise

    def leave(self, place: Place) -> None:
        """A download is over."""
        if place in self._open:
            del self._open[place]
            self._taken -= place.nbytes
            self._admit()

    async def _patiently(self, waits: asyncio.Future[Place]) -> Place:
        until = self._timer() + WAIT_S
        while not waits.done() and self._timer() < until:
            await asyncio.wait([waits], timeout=PATIENCE_S)
            if not waits.done():
                self._end_slow()
        if waits.done():
            return waits.result()
        raise ProblemError(
            503,
            "busy",
            "Too many downloads",
            f"All {self._most >> 20} MiB for downloads (max_download_mib) were taken for {WAIT_S:g} s: ask "
            "again.",
            {"Retry-After": "5"},
        )

    def _admit(self) -> None:
        """Give room to those that wait, as far as it goes."""
        while self._waiting:
            nbytes, waits = self._waiting[0]
            if waits.done():
                self._waiting.popleft()
                continue
            if self._taken + nbytes > self._most:
                return
            self._waiting.popleft()
            place = Place(nbytes)
            self._open[place] = None
            self._taken += nbytes
            waits.set_result(place)

    @contextmanager
    def sending(self, place: Place, nbytes: int) -> Generator[None]:
        """In the block a piece of so many bytes is given to a client."""
        place.sending_since = self._timer()
        yield
        place.sending_s += place.taking(self._timer())
        place.sending_since = None
        place.sent += nbytes

    def _end_slow(self) -> None:
        now = self._timer()
        going = [place for place in self._open if not place.ending]
        slow = [place for place in going if place.taking(now) >= PATIENCE_S]
        seconds = {place: place.sending_s + place.taking(now) for place in going}
        rates = {place: place.sent / spent for place, spent in seconds.items() if spent >= PATIENCE_S}
        slowest = min(rates, key=rates.__getitem__, default=None)
        if not slow and slowest is not None and rates[slowest] < LEAST_RATE:
            slow.append(slowest)
        for place in slow:
            place.end()
        if slow and self.may_log("slow"):
            _log.warning(
                "ended %d downloads, since their clients take next to nothing and others wait (logged once a "
                "minute)",
                len(slow),
            )
