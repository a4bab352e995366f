"""A worker that doesn't count says so, again and again, so that the service knows it and why.

Without this the service would know of no such worker, and its operator would read in vLLM's log only that
nothing is counted. Everything here is of the standard library: whatever is broken in capture or in what it
depends on, this still works.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import Final

from moescope.capture.delivery.backoff import Backoff
from moescope.capture.delivery.transport import DeliveryError, HttpTransport, Transport
from moescope.capture.off.msgpack import Packable, pack
from moescope.capture.protocol import MAX_TEXT, WIRE_MAJOR, WIRE_MINOR
from moescope.capture.settings.environment import CaptureSettings
from moescope.capture.threads.throttled_log import ThrottledLog

logger = logging.getLogger("vllm.moescope")

REPEAT_SECONDS: Final = 5.0
"""As often as an idle worker that counts reports: long before the service takes it for silent."""
LAST_WORD_SECONDS: Final = 2.0


class OffReport:
    """Tells the service from a thread of its own that this worker doesn't count, until `close`.

    A frame without layers goes out every five seconds; while none is taken, ever more rarely (see `Backoff`).
    Nothing is kept, so there is nothing to bound, and nothing of vLLM waits for it.

    Args:
        identity: the fields of the frames' `Producer`.
        reason: why it doesn't count.
        transport: to the service.
        repeat: seconds from one frame to the next.
        backoff: when to try again.
    """

    def __init__(
        self,
        identity: dict[str, str | int],
        reason: str,
        transport: Transport,
        repeat: float = REPEAT_SECONDS,
        backoff: Backoff | None = None,
    ) -> None:
        self._frame: dict[str, Packable] = {
            "wire": [WIRE_MAJOR, WIRE_MINOR],
            "producer": identity,
            "epoch": time.time_ns(),
            "seq": 0,
            "captured_at_ns": 0,
            "state": "disabled",
            "state_reason": reason[:MAX_TEXT],
            "layers": [],
            "counts": b"",
            "rows": b"",
            "tokens": 0,
            "steps": 0,
        }
        self._began_ns = time.monotonic_ns()
        self._seq = 0
        self._transport = transport
        self._repeat = repeat
        self._backoff = backoff or Backoff()
        self._log = ThrottledLog(logger)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="moescope-off", daemon=True)

    def start(self) -> None:
        """Start the thread. Where none can be had, one frame is sent from here, before vLLM serves."""
        try:
            self._thread.start()
        except RuntimeError as error:
            logger.error("moescope: no thread to report with: %r", error)
            self.send()

    def close(self, timeout: float = LAST_WORD_SECONDS) -> None:
        """Report no more, and wait for a frame under way no longer than `timeout` seconds."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(timeout)
        if not self._thread.is_alive():
            self._transport.close()

    def send(self, ended: bool = False) -> float:
        """Send a frame from this thread; returns the seconds to wait before the next one.

        Args:
            ended: no frame follows this one, as the worker shuts down.
        """
        self._seq += 1
        told: dict[str, Packable] = {
            "seq": self._seq,
            "captured_at_ns": time.time_ns(),
            "uptime_ns": max(1, time.monotonic_ns() - self._began_ns),
            "ended": ended,
        }
        body = pack(self._frame | told)
        try:
            self._transport.post(body)
        except DeliveryError as error:
            return self._put_off(str(error), error.kind, error.permanent)
        except Exception as error:  # noqa: BLE001 - it must go on whatever happens to one frame
            return self._put_off(repr(error), "fault", permanent=True)
        self._backoff.succeeded()
        return self._repeat

    def _put_off(self, said: str, kind: str, permanent: bool) -> float:
        message = f"moescope: {said}; vLLM serves on, and the service isn't told that capture is off"
        self._log.log(kind, logging.WARNING, message)
        return self._backoff.failed(permanent)

    def _run(self) -> None:
        try:
            while not self._stopping.is_set():
                self._stopping.wait(self.send())
            self.send(ended=True)
            self._transport.close()
        except BaseException as error:
            logger.error("moescope: nothing is reported any more, vLLM serves on: %r", error)
            raise


def off_report(identity: dict[str, str | int], reason: str, settings: CaptureSettings) -> OffReport:
    """The report of a worker with these settings; to be started."""
    transport = HttpTransport(settings.endpoint, settings.token, access=settings.access)
    return OffReport(identity, reason, transport)


def last_word(identity: dict[str, str | int], reason: str, settings: CaptureSettings) -> None:
    """Say once why this worker ends, before it does; no part of the exchange takes over two seconds."""
    transport = HttpTransport(
        settings.endpoint, settings.token, timeout=LAST_WORD_SECONDS, access=settings.access
    )
    OffReport(identity, reason, transport).send()
    transport.close()
