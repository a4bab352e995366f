"""Snapshots of the counts and of the ring of loads.

On the step's path a snapshot is a few asynchronous copies, for which nothing waits.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
import torch

from moescope.capture.counting.load_ring import LoadRing, RingSteps
from moescope.capture.frames.step_history import RingPart, StepHistory
from moescope.capture.seam.eplb import EplbWatch, PlacementMap
from moescope.capture.step.totals import Totals
from moescope.capture.threads.pause_gate import PauseGate
from moescope.capture.threads.thread_device import use_device
from moescope.capture.wire import Int64Array

NUM_TRANSFERS: Final = 3
"""Snapshots that can be on their way to the host at a time."""


class Source(Protocol):
    """What a snapshot is taken of, besides the counts (see `RoutingCapturer`)."""

    totals: Totals
    disabled_reason: str | None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The counts and totals of one moment.

    ``flat`` is int64 on the host, laid out as `CountBuffers.flat`; it is the reader's own copy.
    """

    flat: Int64Array
    totals: Totals
    disabled_reason: str | None
    captured_at_ns: int
    placement: PlacementMap | None = None
    """Where EPLB had the experts at that moment, if it was settled; the map is on the host."""


class _Copy:
    """Room for one tensor: device staging, and host memory, which is pinned if there is a device."""

    def __init__(self, like: torch.Tensor) -> None:
        on_device = like.device.type != "cpu"
        self.staging = torch.empty_like(like) if on_device else None
        self.host = torch.empty(like.shape, dtype=like.dtype, device="cpu", pin_memory=on_device)

    @property
    def first(self) -> torch.Tensor:
        """Where to copy in the steps' stream."""
        return self.host if self.staging is None else self.staging

    def to_host(self, size: int) -> None:
        """Enqueue the copy of the first `size` entries from staging to the host, in the current stream."""
        if self.staging is not None and size:
            self.host[:size].copy_(self.staging[:size], non_blocking=True)


class _Transfer:
    """Room for one snapshot on its way to the host: device staging, pinned host memory, an event."""

    def __init__(self, flat: torch.Tensor, ring: LoadRing | None, eplb: EplbWatch | None) -> None:
        on_device = flat.device.type != "cpu"
        self.counts = _Copy(flat)
        self.placement = None if eplb is None else _Copy(eplb.map)
        self.version: int | None = None
        self.loads = None if ring is None else _Copy(ring.loads)
        self.event = torch.cuda.Event() if on_device else None  # type: ignore[no-untyped-call]
        self.totals = Totals()
        self.steps = RingSteps(0, np.zeros(0, np.int64))
        self.disabled_reason: str | None = None
        self.captured_at_ns = 0
        self.after_step = 0
        self.torn = False

    def arrived(self) -> bool:
        return self.event is None or bool(self.event.query())  # type: ignore[no-untyped-call]


class SnapshotTaker:
    """Takes snapshots at the ends of steps, and between steps when the worker idles.

    The step's path calls `step_begins` and `step_ends`; the sender's thread calls `collect`. They share no
    lock, only two deques, to which entries are added and from which they are taken atomically. `pause` is for
    times without steps. On a GPU a snapshot is first copied within the device, in the steps' stream, so that
    it is of one moment; then to pinned memory, in a side stream, whose event is polled. With all transfers
    under way a snapshot is put off, which costs resolution only.

    Args:
        flat: the counts, as `CountBuffers.flat`.
        source: tells the totals that belong to the counts.
        interval: seconds between snapshots while the worker is busy.
        ring, history: the loads of single steps, or None. A snapshot has those steps of the ring that were
            not read yet; the reader's thread adds each step to the history once.
        eplb: tells where the experts are, if EPLB moves them; or None.

    Attributes:
        put_off: snapshots that found no free transfer.
    """

    def __init__(
        self,
        flat: torch.Tensor,
        source: Source,
        interval: float,
        clock: Callable[[], float] = time.monotonic,
        ring: LoadRing | None = None,
        history: StepHistory | None = None,
        eplb: EplbWatch | None = None,
    ) -> None:
        self.put_off = 0
        self._flat = flat
        self._source = source
        self._ring = ring
        self._history = history
        self._eplb = eplb
        self._ring_read = 0
        self._interval = interval
        self._clock = clock
        self._free = deque(_Transfer(flat, ring, eplb) for _ in range(NUM_TRANSFERS))
        self._under_way: deque[_Transfer] = deque()
        self._due = clock()
        self._gate = PauseGate()
        self._steps_begun = 0
        self._steps_ended = 0
        self._taken_after_step = -1  # so that the first snapshot, of nothing, announces the producer
        self._read_after_step = 0
        self._told_reason: str | None = None
        self._stream: torch.cuda.Stream | None = None
        self._side: torch.cuda.Stream | None = None
        if flat.device.type == "cuda":
            # Known before the first step, and never the default stream of another device.
            self._stream = torch.cuda.current_stream(flat.device)
            self._side = torch.cuda.Stream(flat.device)  # type: ignore[no-untyped-call]

    def step_begins(self) -> None:
        """A step is about to be enqueued."""
        self._steps_begun += 1

    def step_ends(self) -> None:
        """The step is enqueued in the current stream; takes a snapshot if one is due."""
        if self._side is not None:
            self._stream = torch.cuda.current_stream(self._flat.device)
        if self._clock() >= self._due:
            transfer = self._enqueue(after_step=self._steps_begun)
            if transfer is None:
                self.put_off += 1
            else:
                self._publish(transfer)
        self._steps_ended = self._steps_begun

    def collect(self) -> Snapshot | None:
        """The newest snapshot that has arrived, or None; for one thread, off the step's path."""
        if not self._gate.enter():
            return None
        try:
            use_device(self._flat.device)
            return self._collect()
        finally:
            self._gate.leave()

    def pause(self) -> None:
        """Keep `collect` from the device until `resume`; waits for one under way."""
        self._gate.pause()

    def resume(self) -> None:
        """Let `collect` go on after `pause`; nothing to do without one."""
        self._gate.resume()

    def _collect(self) -> Snapshot | None:
        if self._clock() >= self._due:
            self._take_between_steps()
        newest: Snapshot | None = None
        while self._under_way and self._under_way[0].arrived():
            transfer = self._under_way.popleft()
            # A snapshot taken between steps may be published after that of the step which followed. It is
            # the older one then, and not read.
            if not transfer.torn and transfer.after_step >= self._read_after_step:
                newest = self._read(transfer)
            self._free.append(transfer)
        return newest

    @property
    def is_behind(self) -> bool:
        """Whether something was counted that no collected snapshot has."""
        return bool(self._under_way) or self._taken_after_step != self._steps_ended

    def flush(self) -> None:
        """Make the next `collect` take a snapshot at once if steps ran since the last."""
        self._due = self._clock()

    def _take_between_steps(self) -> None:
        """Take a snapshot from another thread than the steps', unless a step begins meanwhile.

        A step's kernels are enqueued only after `_steps_begun` has risen: if it hasn't when the copy is
        enqueued, the copy stands between two steps in the stream. Otherwise it may be torn and is not read.
        """
        ended = self._steps_ended
        is_told = ended == self._taken_after_step and self._source.disabled_reason == self._told_reason
        if is_told or self._steps_begun != ended:
            return
        transfer = self._enqueue(after_step=ended)
        if transfer is None:
            return
        transfer.torn = self._steps_begun != ended
        if transfer.torn:
            self._under_way.append(transfer)
        else:
            self._publish(transfer)

    def _enqueue(self, after_step: int) -> _Transfer | None:
        """Enqueue the copy of the counts in the steps' stream, and note the totals that belong to it."""
        try:
            transfer = self._free.popleft()
        except IndexError:
            return None
        transfer.totals, transfer.disabled_reason = self._source.totals, self._source.disabled_reason
        transfer.captured_at_ns = time.time_ns()
        transfer.after_step, transfer.torn = after_step, False
        if transfer.event is None or self._side is None:
            self._copy(transfer)
            return transfer
        with torch.cuda.stream(self._stream):
            self._copy(transfer)
            transfer.event.record()
        self._side.wait_event(transfer.event)
        with torch.cuda.stream(self._side):
            transfer.counts.to_host(self._flat.numel())
            if transfer.loads is not None:
                transfer.loads.to_host(len(transfer.steps.numbers))
            if transfer.placement is not None:
                transfer.placement.to_host(len(transfer.placement.host))
            transfer.event.record()
        return transfer

    def _copy(self, transfer: _Transfer) -> None:
        """Copy the counts, and the ring's steps that nobody has read, in the steps' stream."""
        transfer.counts.first.copy_(self._flat)
        if self._ring is not None and transfer.loads is not None:
            transfer.steps = self._ring.copy_since(self._ring_read, transfer.loads.first)
        if self._eplb is not None and transfer.placement is not None:
            transfer.version = self._eplb.version
            if transfer.version is not None:
                transfer.placement.first.copy_(self._eplb.map)
            if (
                transfer.version != self._eplb.version
            ):  # moved meanwhile: this is another thread than the steps'
                transfer.version = None

    def _publish(self, transfer: _Transfer) -> None:
        self._taken_after_step = max(self._taken_after_step, transfer.after_step)
        self._told_reason = transfer.disabled_reason
        self._due = self._clock() + self._interval
        self._under_way.append(transfer)

    def _read(self, transfer: _Transfer) -> Snapshot:
        self._read_after_step = transfer.after_step
        if self._history is not None and transfer.loads is not None:
            first, numbers = transfer.steps
            loads = transfer.loads.host[: len(numbers)].numpy().copy()
            self._history.add(RingPart(first, numbers, loads, transfer.totals.forward_passes))
            self._ring_read = max(self._ring_read, first + len(numbers))
        return Snapshot(
            flat=transfer.counts.host.numpy().copy(),
            totals=transfer.totals,
            disabled_reason=transfer.disabled_reason,
            captured_at_ns=transfer.captured_at_ns,
            placement=self._placement(transfer),
        )

    @staticmethod
    def _placement(transfer: _Transfer) -> PlacementMap | None:
        if transfer.placement is None or transfer.version is None:
            return None
        return PlacementMap(transfer.version, transfer.placement.host.numpy().copy())
