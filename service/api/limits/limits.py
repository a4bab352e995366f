"""What one producer, one address, and all of them together may ask of the service."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Final, Literal

from moescope.service.api.problems import RefusedFrameError
from moescope.service.settings import Settings

_BURST_S: Final = 4.0
_TRACE_PARTS: Final = 10.0  # for each frame that a producer may send


class Limits:
    """Bounds on what producers and their addresses send; for one event loop, since nothing here is locked.

    Args:
        settings: see ``max_waiting_mib``, ``max_bodies_per_client``, ``max_frames_per_s``, ``max_producers``.
        timer: seconds of a clock that never goes back.
    """

    def __init__(self, settings: Settings, timer: Callable[[], float] = time.monotonic) -> None:
        self._max_waiting = settings.max_waiting_mib << 20
        self._max_bodies = settings.max_bodies_per_client
        self._rate = settings.max_frames_per_s
        self._max_known = 2 * settings.max_producers
        self._timer = timer
        self._bodies: Counter[str] = Counter()
        self._buckets: dict[tuple[object, ...], tuple[float, float]] = {}
        self.waiting_bytes = 0
        """Bytes of all bodies that are arriving or being decoded."""

    @contextmanager
    def body_of(self, client: str) -> Generator[Callable[[int], None]]:
        """Count a body of this address until the block ends.

        Yields:
            What to call with the number of bytes of each piece that arrives. It raises RefusedFrameError when
            the bodies of all addresses together are too large.

        Raises:
            RefusedFrameError: too many bodies of this address arrive at once.
        """
        if self._bodies[client] >= self._max_bodies:
            raise RefusedFrameError(
                "too_many_at_once",
                429,
                "Too many bodies at the same time",
                f"{self._max_bodies} of this address are arriving (max_bodies_per_client): send it again.",
                **{"Retry-After": "1"},
            )
        taken = 0

        def took(nbytes: int) -> None:
            nonlocal taken
            if self.waiting_bytes + nbytes > self._max_waiting:
                raise RefusedFrameError(
                    "busy",
                    503,
                    "Too much is arriving",
                    f"Over {self._max_waiting} bytes are arriving (max_waiting_mib): send it again.",
                    **{"Retry-After": "1", "Connection": "close"},
                )
            taken += nbytes
            self.waiting_bytes += nbytes

        self._bodies[client] += 1
        try:
            yield took
        finally:
            self.waiting_bytes -= taken
            self._bodies[client] -= 1
            if not self._bodies[client]:
                del self._bodies[client]

    def admit(self, kind: Literal["frame", "trace"], key: tuple[str, str, int, int, int]) -> None:
        """Count one frame, or part of a trace, of the producer with this key.

        Raises:
            RefusedFrameError: it sends more than ``max_frames_per_s``.
        """
        rate = self._rate * (_TRACE_PARTS if kind == "trace" else 1)
        burst = max(2.0, rate * _BURST_S)
        now = self._timer()
        left, at = self._buckets.pop((kind, *key), (burst, now))
        left = min(burst, left + (now - at) * rate)
        # Put back last, so that those that have been silent for long are first to be forgotten.
        self._buckets[(kind, *key)] = (left - 1 if left >= 1 else left, now)
        while len(self._buckets) > self._max_known:
            del self._buckets[next(iter(self._buckets))]
        if left < 1:
            raise RefusedFrameError(
                "too_often",
                429,
                "The producer sends too often",
                f"producer: DP rank {key[2]} of {key[0]!r} sends over {rate:g} a second "
                "(max_frames_per_s): raise MOESCOPE_INTERVAL in vLLM's environment, or the limit here.",
                **{"Retry-After": str(math.ceil((1 - left) / rate))},
            )
