"""Feeding a running service with a simulated fleet, over HTTP and in real time."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from moescope.capture.wire import CONTENT_TYPE, encode_frame
from moescope.capture.wire.traces import TRACE_CONTENT_TYPE, encode_part
from moescope.service.client.http import ServiceUnavailableError, connection_to
from moescope.service.client.settings import ClientSettings
from moescope.service.simulation.fleet import Fleet, Plan

_TIMEOUT_S: Final = 10.0


@dataclass(frozen=True, slots=True)
class Progress:
    """How the simulation goes, after each round of frames.

    ``traces`` is how many traces were kept, ``late_s`` how much longer the round took than the interval: the
    machine can't keep up.
    """

    elapsed_s: float
    frames: int
    traces: int
    failed: int
    round_s: float
    late_s: float
    problem: str | None


class Poster:
    """One kept-alive connection that posts frames and traces.

    Args:
        url: base address of the service.
        settings: token and certificates.
    """

    def __init__(self, url: str, settings: ClientSettings) -> None:
        self._url = url
        self._connection = connection_to(url, settings, _TIMEOUT_S)
        self._prefix = urlsplit(url).path.rstrip("/")
        self._settings = settings

    def post(self, body: bytes) -> None:
        """Deliver one frame.

        Raises:
            ServiceUnavailableError: no service there, or it refuses; the message says why.
        """
        self._post("/v1/ingest", body, CONTENT_TYPE)

    def post_trace(self, body: bytes) -> None:
        """Deliver one part of a trace; it returns when the service keeps it.

        Raises:
            ServiceUnavailableError: no service there, or it refuses; the message says why.
        """
        self._post("/v1/traces", body, TRACE_CONTENT_TYPE)

    def _post(self, path: str, body: bytes, content_type: str) -> None:
        headers = {"Content-Type": content_type, **self._settings.headers()}
        try:
            self._connection.request("POST", self._prefix + path, body, headers)
            response = self._connection.getresponse()
            reply = response.read()
        except (OSError, http.client.HTTPException) as error:
            self._connection.close()
            raise ServiceUnavailableError(f"no service answers at {self._url} ({error!r})") from error
        if response.status != 200:
            raise ServiceUnavailableError(f"{self._url} answers {response.status}: {_detail(reply)}")

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()


def feed(
    plan: Plan,
    poster: Poster,
    interval_s: float,
    duration_s: float | None,
    on_round: Callable[[Progress], None],
) -> Progress:
    """Post each rank's frame and the traces every interval, until the duration has passed; the last progress.

    Frames that can't be delivered are not sent again: totals are cumulative, so the next ones make up.
    """
    fleet = Fleet(plan, time.time_ns())
    began = last = time.monotonic()
    frames = traces = failed = 0
    while True:
        time.sleep(max(0.0, last + interval_s - time.monotonic()))
        now = time.monotonic()
        problem = None
        for frame in fleet.advance(now - last):
            try:
                poster.post(encode_frame(frame))
                frames += 1
            except ServiceUnavailableError as error:
                failed += 1
                problem = str(error)
        for part in fleet.traces(now - last):
            try:
                poster.post_trace(encode_part(part))
                traces += 1
            except ServiceUnavailableError as error:
                failed += 1
                problem = str(error)
        took = time.monotonic() - now
        late = max(0.0, took - interval_s)
        last = now
        progress = Progress(now - began, frames, traces, failed, took, late, problem)
        on_round(progress)
        if duration_s is not None and now - began >= duration_s:
            return progress


def _detail(reply: bytes) -> str:
    try:
        return str(json.loads(reply)["detail"])
    except (ValueError, KeyError, TypeError):
        return reply[:200].decode("utf-8", "replace")
