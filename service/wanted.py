"""Whether somebody still wants what is being computed.

A thread can't be ended from outside. So a computation of many steps asks between two of them, and ends
itself when its client has left.
"""

from __future__ import annotations

import threading
from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Final

_left: Final[ContextVar[threading.Event | None]] = ContextVar("moescope_left", default=None)


class UnwantedError(Exception):
    """Nobody waits for the result any more."""


@contextmanager
def wanted_until(left: threading.Event) -> Generator[None]:
    """What the block computes, in threads that it starts by anyio too, is wanted until ``left`` is set."""
    token = _left.set(left)
    try:
        yield
    finally:
        _left.reset(token)


def check_wanted() -> None:
    """Go on only if the result is wanted; it always is where nobody said who wants it.

    Raises:
        UnwantedError: it is not.
    """
    left = _left.get()
    if left is not None and left.is_set():
        raise UnwantedError("the client has left")
