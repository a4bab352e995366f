"""Measures the work of an event loop by the CPU time of its thread, which no busy machine makes longer."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any


@dataclass
class LoopMeter:
    """The longest callbacks of the loops of other threads, in seconds of CPU time, and what they were."""

    longest: float = 0.0
    callback: str = ""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def note(self, seconds: float, what: object) -> None:
        with self.lock:
            if seconds > self.longest:
                self.longest, self.callback = seconds, repr(what)[:500]

    def reset(self) -> None:
        with self.lock:
            self.longest, self.callback = 0.0, ""


@contextmanager
def metered_loops() -> Iterator[LoopMeter]:
    """Meter all asyncio loops that run meanwhile. (uvloop's callbacks can't be metered: use asyncio's.)"""
    meter, run = LoopMeter(), asyncio.Handle._run

    def metered(handle: asyncio.Handle) -> Any:
        began = time.thread_time()
        try:
            return run(handle)
        finally:
            meter.note(time.thread_time() - began, handle)

    asyncio.Handle._run = metered  # type: ignore[method-assign]
    try:
        yield meter
    finally:
        asyncio.Handle._run = run  # type: ignore[method-assign]
