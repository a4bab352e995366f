"""The daemon thread that encodes snapshots as frames and sends them; it never holds up the step's path."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import Final, Protocol

from moescope.capture.delivery.backoff import Backoff
from moescope.capture.delivery.transport import DeliveryError, Transport
from moescope.capture.frames.builder import FrameBuilder
from moescope.capture.frames.snapshot import Snapshot
from moescope.capture.threads.throttled_log import ThrottledLog
from moescope.capture.wire import encode_frame

logger = logging.getLogger("vllm.moescope")

HEARTBEAT = 5.0
MAX_TICK = 0.25
LAST_LOOKS = 50
LAST_LOOK_SECONDS = 0.01
MAX_MARKED: Final = 8
"""Marked snapshots that wait together, at most: changes of weights during an outage."""


class SnapshotSource(Protocol):
    """Where snapshots come from (see `SnapshotTaker`)."""

    put_off: int

    @property
    def is_behind(self) -> bool:
        """Whether something was counted that no collected snapshot has."""

    def collect(self) -> Snapshot | None:
        """The newest snapshot that has arrived, or None."""

    def flush(self) -> None:
        """Have the next `collect` take a snapshot if something was counted since the last one."""


class FrameSender:
    """Sends the newest snapshot until one arrives: totals are cumulative, so only the newest counts.

    A marked snapshot, of a change of weights, is sent before those that follow it, also after an outage. If
    the weights change more often than `MAX_MARKED` times meanwhile, the oldest marked ones are superseded.

    While there is no new snapshot it repeats the last one now and then, so that the service knows that the
    producer lives. After a failure it waits, ever longer and with jitter (see `Backoff`), so that many
    workers don't come back at once.

    Args:
        source, builder, transport: where snapshots come from, what makes frames of them, where these go.
        interval: seconds between snapshots while the worker is busy.
        clock, backoff: of the times at which it sends.
        look: called at each tick, four times a second or more often, before the newest snapshot is taken.
    """

    def __init__(
        self,
        source: SnapshotSource,
        builder: FrameBuilder,
        transport: Transport,
        interval: float,
        clock: Callable[[], float] = time.monotonic,
        backoff: Backoff | None = None,
        look: Callable[[], None] = lambda: None,
    ) -> None:
        self._source = source
        self._builder = builder
        self._transport = transport
        self._look = look
        self._tick = min(interval, MAX_TICK)
        self._clock = clock
        self._log = ThrottledLog(logger)
        self._pending: deque[Snapshot] = deque()  # all but the last are marked
        self._last: Snapshot | None = None
        self._heartbeat_at = clock()
        self._retry_at = clock()
        self._backoff = backoff or Backoff()
        self._reachable = True
        self._drops = {"snapshots_put_off": 0, "snapshots_superseded": 0, "sends_failed": 0}
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="moescope-sender", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self, timeout: float = 2.0) -> None:
        """Send what is left, and wait for that no longer than `timeout` seconds."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(timeout)

    def _run(self) -> None:
        try:
            while not self._stopping.wait(self._tick):
                self._guarded(self.tick)
            self._guarded(self._last_tick)
            self._transport.close()
        except BaseException as error:
            # Nothing is sent any more: the service sees this producer go stale, this line says why.
            logger.error("moescope: the sender's thread has ended, vLLM serves on: %r", error)
            raise

    def _guarded(self, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception as error:  # noqa: BLE001 - the thread must outlive whatever happens to one frame
            self._drops["sends_failed"] += 1
            self._log.log("sender", logging.ERROR, f"moescope: a snapshot was not sent: {error!r}")

    def tick(self) -> None:
        """Take a snapshot that has arrived, and send the newest one if it is time to."""
        self._look()
        self._take_in(self._source.collect())
        now = self._clock()
        if not self._pending and self._last is not None and now >= self._heartbeat_at:
            self._pending.append(self._last)
        if self._pending and now >= self._retry_at:
            self._send()

    def _last_tick(self) -> None:
        """Send all that was counted, and that no more follows.

        The copy from a GPU takes a moment, and older ones may come first.
        """
        self._source.flush()
        for _ in range(LAST_LOOKS):
            self._take_in(self._source.collect())
            if not self._source.is_behind:
                break
            time.sleep(LAST_LOOK_SECONDS)
        self._look()
        if not self._pending and self._last is not None:
            self._pending.append(self._last)
        while self._pending and self._send(ended=len(self._pending) == 1):
            pass

    def _take_in(self, snapshot: Snapshot | None) -> None:
        if snapshot is None:
            return
        if self._pending and not self._pending[-1].marked:
            self._drops["snapshots_superseded"] += 1
            self._pending.pop()
        if snapshot.marked and len(self._pending) >= MAX_MARKED:
            self._drops["snapshots_superseded"] += 1
            self._pending.popleft()
        self._pending.append(snapshot)

    def _send(self, ended: bool = False) -> bool:
        """Send the snapshot that has waited longest; returns whether it arrived."""
        snapshot = self._pending[0]
        self._drops["snapshots_put_off"] = self._source.put_off
        frame = self._builder.build(snapshot, self._drops, ended)
        try:
            self._transport.post(encode_frame(frame))
        except DeliveryError as error:
            self._put_off(error)
            return False
        self._builder.delivered()
        if not self._reachable:
            self._log.log(
                "recovered",
                logging.WARNING,
                "moescope: the service takes snapshots again; no counts were lost",
            )
        self._reachable = True
        self._backoff.succeeded()
        self._pending.popleft()
        self._last = replace(snapshot, marked=False)
        self._heartbeat_at = self._clock() + HEARTBEAT
        return True

    def _put_off(self, error: DeliveryError) -> None:
        self._drops["sends_failed"] += 1
        self._reachable = False
        self._retry_at = self._clock() + self._backoff.failed(error.permanent)
        self._log.log(
            error.kind, logging.WARNING, f"moescope: {error}; vLLM serves on, counts are kept and sent later"
        )
