"""Questions that hold much of the past: one at a time, within a bound, in the order they came.

What a question reads of the store it holds until its answer is made, and only it: memory has those totals not
yet, or no longer. How much that is is known before anything is read (see :mod:`moescope.service.live.walk`).
A question that holds little needs nothing of this. One that holds more waits until no other does. It keeps
its turn until it is answered, so it may read several times and none waits for another that waits.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Generator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Final

from moescope.service.wanted import check_wanted

LITTLE_BYTES: Final = 16 << 20
"""What any question may hold of the store without waiting for others."""
WAIT_S: Final = 60.0
"""How long a question waits before it is told to ask again."""
_LOOK_S: Final = 0.25
"""Seconds after which one that waits looks whether its client is still there."""


class NoRoomError(Exception):
    """A question holds too much of the past. The message says what to do.

    Attributes:
        ever: whether it may be answered when it is asked again.
    """

    def __init__(self, told: str, *, ever: bool) -> None:
        super().__init__(told)
        self.ever = ever


class LargeQuestions:
    """Lets one large question at a time read the store; for any threads.

    Args:
        most: bytes of the store's totals that a question may hold.
        timer: seconds of a clock that never goes back.
    """

    def __init__(self, most: int, timer: Callable[[], float] = time.monotonic) -> None:
        self._most = most
        self._timer = timer
        self._changed = threading.Condition()
        self._order: deque[_Question] = deque()

    @contextmanager
    def question(self, wait_s: float | None = None) -> Generator[None]:
        """What the block computes, in threads that it starts by anyio too, is one question.

        Args:
            wait_s: how long it may wait for those that hold much; None: :data:`WAIT_S`.
        """
        mine = _Question(self, WAIT_S if wait_s is None else wait_s)
        token = _asked.set(mine)
        try:
            yield
        finally:
            _asked.reset(token)
            self._remove(mine)

    @property
    def waiting(self) -> int:
        """Large questions that wait."""
        with self._changed:
            return max(0, len(self._order) - 1)

    def enter(self, mine: _Question, nbytes: int) -> None:
        """Return when this question may hold so many bytes; see :func:`claim`."""
        if nbytes > self._most:
            raise NoRoomError(
                f"It would hold {-(-nbytes >> 20)} MiB of what the store has, {self._most >> 20} are allowed "
                "(max_question_mib): name a window that ends now or fewer intervals, or raise the setting.",
                ever=False,
            )
        until = self._timer() + mine.wait_s
        with self._changed:
            if mine not in self._order:
                self._order.append(mine)
            while self._order[0] is not mine:
                try:
                    check_wanted()
                    if self._timer() >= until:
                        raise NoRoomError(
                            "Other questions that read much of the store were before it, one at a time: ask "
                            "again.",
                            ever=True,
                        )
                except BaseException:
                    self._order.remove(mine)
                    raise
                self._changed.wait(_LOOK_S)

    def _remove(self, mine: _Question) -> None:
        with self._changed:
            if mine in self._order:
                self._order.remove(mine)
                self._changed.notify_all()


class _Question:
    """One question; it is in the order of the large ones from its first large reading on."""

    def __init__(self, all_of_them: LargeQuestions, wait_s: float) -> None:
        self._all = all_of_them
        self.wait_s = wait_s

    def claim(self, nbytes: int) -> None:
        self._all.enter(self, nbytes)


_asked: Final[ContextVar[_Question | None]] = ContextVar("moescope_question", default=None)


def is_counted(nbytes: int) -> bool:
    """Whether a reading of so many bytes is to be claimed."""
    return nbytes > LITTLE_BYTES and _asked.get() is not None


def claim(nbytes: int) -> None:
    """Wait until the question in whose block this runs may hold so many bytes; nothing outside of one.

    Raises:
        NoRoomError: it can never hold so many, or it was not its turn in time.
        UnwantedError: nobody waits for it any more.
    """
    asked = _asked.get()
    if asked is not None and nbytes > LITTLE_BYTES:
        asked.claim(nbytes)
