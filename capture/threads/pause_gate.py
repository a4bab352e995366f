"""When the capturer's threads may ask the device something: not while CUDA graphs are captured."""

from __future__ import annotations

import threading


class PauseGate:
    """Lets one thread at a time through, and none between `pause` and `resume`.

    While a CUDA graph is captured, a query of an event in any other thread makes the capture fail.
    """

    def __init__(self) -> None:
        self._inside = threading.Lock()
        self._paused = False

    def enter(self) -> bool:
        """Whether the caller may go through; if so it must `leave` afterwards. Never waits."""
        return self._inside.acquire(blocking=False)

    def leave(self) -> None:
        """End what a successful `enter` began."""
        self._inside.release()

    def pause(self) -> None:
        """Let nobody through from now on, once a thread inside has left. A second call does nothing."""
        if not self._paused:
            self._inside.acquire()
            self._paused = True

    def resume(self) -> None:
        """End a pause; without one this does nothing."""
        if self._paused:
            self._paused = False
            self._inside.release()
