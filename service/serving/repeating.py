"""A job that is done again and again, in a thread of its own."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager


@contextmanager
def repeating(job: Callable[[threading.Event], object], every_s: float, name: str) -> Generator[None]:
    """While the block runs, do the job every so many seconds; the end of the block waits for it.

    Args:
        job: is given an event that is set when the block ends, for jobs that wait themselves.
        every_s: seconds from the end of one job to the next.
        name: of the thread.
    """
    over = threading.Event()

    def run() -> None:
        while not over.wait(every_s):
            job(over)

    thread = threading.Thread(target=run, name=name, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
