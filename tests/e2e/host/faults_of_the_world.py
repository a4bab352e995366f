"""What can go wrong around the process: counts are exact all the same."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from typing import Final
from unittest import mock

from moescope.capture import session
from tests.e2e.host.injecting import (
    Case,
    Environment,
)


@contextlib.contextmanager
def wall_clock(offset_ns: int) -> Iterator[Environment]:
    """The wall clock jumps after the session was opened."""
    original, calls = time.time_ns, 0

    def jumping() -> int:
        nonlocal calls
        calls += 1
        return original() + (offset_ns if calls > 2 else 0)

    with mock.patch.object(time, "time_ns", jumping):
        yield {}


@contextlib.contextmanager
def forked() -> Iterator[Environment]:
    """The worker's process forks in mid-run, as libraries do; the child ends at once."""
    original, done = session.CaptureSession.step_ends, False

    def step_ends(mine: session.CaptureSession) -> None:
        nonlocal done
        original(mine)
        if not done:
            done = True
            child = os.fork()
            if child == 0:
                os._exit(0)
            os.waitpid(child, 0)

    with mock.patch.object(session.CaptureSession, "step_ends", step_ends):
        yield {}


OF_THE_WORLD: Final[dict[str, Case]] = {
    "clock jumps back": Case(inject=lambda: wall_clock(-3600 * 10**9), state="counting", exact=True),
    "clock jumps ahead": Case(inject=lambda: wall_clock(3600 * 10**9), state="counting", exact=True),
    "fork": Case(inject=forked, state="counting", exact=True),
}
