"""Feeding a running service with a simulated fleet, over HTTP and in real time."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain
from typing import Final

from moescope.capture.wire import CONTENT_TYPE, encode_frame
from moescope.capture.wire.traces import TRACE_CONTENT_TYPE, encode_part
from moescope.service.client.http import Connection, ServiceUnavailableError
from moescope.service.client.settings import ClientSettings
from moescope.service.simulation.fleet import Fleet
from moescope.service.simulation.plan import Plan

_TIMEOUT_S: Final = 10.0


@dataclass(frozen=True, slots=True)
class Progress:
    """How the simulation goes, after each round of frames.

    Attributes:
        elapsed_s: seconds since the first round could begin.
        frames: frames that the service took since then.
        traces: traces that the service kept since then.
        failed: frames and traces that it did not.
        round_s: seconds that the last round took.
        late_s: seconds by which that is longer than the interval: the machine can't keep up.
        problem: why something of the last round was not delivered; None if all of it was.
    """

    elapsed_s: float
    frames: int
    traces: int
    failed: int
    round_s: float
    late_s: float
    problem: ServiceUnavailableError | None


@dataclass(frozen=True, slots=True)
class Pace:
    """How often frames are sent, and for how long.

    Attributes:
        interval_s: seconds between two frames of a rank.
        duration_s: seconds after which the feed ends; None: it goes on.
    """

    interval_s: float = 1.0
    duration_s: float | None = None


class Poster:
    """One kept-alive connection that posts frames and traces.

    Args:
        url: base address of the service.
        settings: token and certificates.

    Raises:
        ServiceUnavailableError: ``url`` is no address of a service.
        SettingsError: the files of the certificates can't be used.
    """

    def __init__(self, url: str, settings: ClientSettings) -> None:
        self._connection = Connection(url, settings, _TIMEOUT_S)

    def post(self, body: bytes) -> None:
        """Deliver one frame.

        Raises:
            ServiceUnavailableError: no service there, or it refuses; the message says why.
        """
        self._connection.exchange("POST", "/v1/ingest", body, CONTENT_TYPE)

    def post_trace(self, body: bytes) -> None:
        """Deliver one part of a trace; it returns when the service keeps it.

        Raises:
            ServiceUnavailableError: no service there, or it refuses; the message says why.
        """
        self._connection.exchange("POST", "/v1/traces", body, TRACE_CONTENT_TYPE)

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()


def feed(plan: Plan, poster: Poster, pace: Pace, on_round: Callable[[Progress], None]) -> Progress:
    """Post each rank's frame and the traces every interval, until the duration has passed; the last progress.

    A frame that can't be delivered is not sent again: totals are cumulative, so the next one has its counts.
    """
    started = time.time_ns()
    fleets = [Fleet(deployment, started) for deployment in plan.deployments]
    began = last = time.monotonic()
    frames = traces = failed = 0
    while True:
        time.sleep(max(0.0, last + pace.interval_s - time.monotonic()))
        now = time.monotonic()
        problem: ServiceUnavailableError | None = None
        for sender, frame in ((fleet, frame) for fleet in fleets for frame in fleet.advance(now - last)):
            try:
                poster.post(encode_frame(frame))
                sender.delivered(frame)
                frames += 1
            except ServiceUnavailableError as error:
                failed += 1
                problem = error
        for part in chain.from_iterable(fleet.traces(now - last) for fleet in fleets):
            try:
                poster.post_trace(encode_part(part))
                traces += 1
            except ServiceUnavailableError as error:
                failed += 1
                problem = error
        took = time.monotonic() - now
        late = max(0.0, took - pace.interval_s)
        last = now
        progress = Progress(
            elapsed_s=now - began,
            frames=frames,
            traces=traces,
            failed=failed,
            round_s=took,
            late_s=late,
            problem=problem,
        )
        on_round(progress)
        if pace.duration_s is not None and now - began >= pace.duration_s:
            return progress
