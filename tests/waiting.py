"""How long tests wait for what must come."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

PATIENCE_S: Final = 60.0
"""Seconds after which something that should have come is missing, even on a machine with much else to do."""


def wait_until(done: Callable[[], object], otherwise: Callable[[], str] | str, every: float = 0.02) -> None:
    """Wait until ``done()`` is true.

    Args:
        done: asked again and again.
        otherwise: what to say if it stays false.
        every: seconds between two looks.

    Raises:
        AssertionError: it is not true after ``PATIENCE_S`` seconds.
    """
    deadline = time.monotonic() + PATIENCE_S
    while not done():
        assert time.monotonic() < deadline, otherwise if isinstance(otherwise, str) else otherwise()
        time.sleep(every)
