"""When snapshots are taken: at the ends of steps, and between steps while the worker idles.

On the step's path a snapshot is a few asynchronous copies, for which nothing waits.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Final, Protocol

import torch

from moescope.capture.counting.load_ring import LoadRing
from moescope.capture.counting.word_writer import current_stream_of
from moescope.capture.frames.schedule import SnapshotSchedule
from moescope.capture.frames.snapshot import Snapshot, Transfer
from moescope.capture.frames.step_history import StepHistory
from moescope.capture.seam.eplb import EplbWatch
from moescope.capture.seam.weights import Weights
from moescope.capture.step.totals import Totals
from moescope.capture.threads.pause_gate import PauseGate
from moescope.capture.threads.thread_device import use_device

NUM_TRANSFERS: Final = 3
"""Snapshots that can be on their way to the host at a time."""


class Source(Protocol):
    """What a snapshot is taken of, besides the counts (see `RoutingCapturer`)."""

    totals: Totals
    disabled_reason: str | None


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
        interval: seconds between snapshots while the worker is busy, at most (see `SnapshotSchedule`).
        ring, history: the loads of single steps, or None. A snapshot has those steps of the ring that were
            not read yet; the reader's thread adds each step to the history once.
        eplb: tells where the experts are, if EPLB moves them; or None.
        weights: tells which weights the worker has.

    Attributes:
        steps_begun: how many; who has no time for a call of `step_begins` adds 1.
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
        weights: Callable[[], Weights] = Weights,
    ) -> None:
        self.put_off = 0
        self._flat = flat
        self._source = source
        self._weights = weights
        self._history = history
        self._ring_read = 0
        self._schedule = SnapshotSchedule(interval)
        self._clock = clock
        self._free = deque(Transfer(flat, ring, eplb) for _ in range(NUM_TRANSFERS))
        self._under_way: deque[Transfer] = deque()
        self._gate = PauseGate()
        self.steps_begun = 0
        self._steps_ended = 0
        self._begun_at_look = 0
        self._taken_after_step = -1  # so that the first snapshot, of nothing, announces the producer
        self._read_after_step = 0
        self._told_reason: str | None = None
        self._told_weights = Weights()
        self._stream: torch.cuda.Stream | None = None
        self._stream_of, self._handle = current_stream_of(), -1
        self._side: torch.cuda.Stream | None = None
        if flat.device.type == "cuda":
            # Known before the first step, and never the default stream of another device.
            self._stream = torch.cuda.current_stream(flat.device)
            self._side = torch.cuda.Stream(flat.device)  # type: ignore[no-untyped-call]

    def step_begins(self) -> None:
        """A step is about to be enqueued."""
        self.steps_begun += 1

    def step_ends(self) -> None:
        """The step is enqueued in the current stream; takes a snapshot if one is due."""
        if self._side is not None:
            self._follow_stream()
        now, schedule = self._clock(), self._schedule
        if now >= schedule.earliest:
            _, steps, idle_steps, *_ = self._source.totals
            if schedule.due_after(steps + idle_steps, now):
                self._take()
        self._steps_ended = self.steps_begun

    def _take(self) -> None:
        """Take a snapshot at the end of the step under way."""
        transfer = self._enqueue(after_step=self.steps_begun)
        if transfer is None:
            self.put_off += 1
        else:
            self._publish(transfer)

    def _follow_stream(self) -> None:
        """Have the current stream for snapshots between steps; torch makes an object only for another one."""
        handle = self._stream_of(self._flat.get_device())
        if handle != self._handle:
            self._handle, self._stream = handle, torch.cuda.current_stream(self._flat.device)

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
        begun = self.steps_begun
        idle, self._begun_at_look = begun == self._begun_at_look, begun
        if self._schedule.due_between(idle, self._clock()):
            self._take_between_steps()
        newest: Snapshot | None = None
        while self._under_way and self._under_way[0].arrived:
            transfer = self._under_way.popleft()
            # A snapshot taken between steps may be published after that of the step which followed. It is
            # the older one then, and not read.
            marked = transfer.marked
            if not transfer.torn and transfer.after_step >= self._read_after_step:
                newest = self._read(transfer)
            self._free.append(transfer)
            if marked:
                break  # later ones are for the next call
        return newest

    @property
    def is_behind(self) -> bool:
        """Whether something was counted that no collected snapshot has."""
        return bool(self._under_way) or self._taken_after_step != self._steps_ended

    def mark(self) -> None:
        """Take a snapshot at once, between two steps, which no later one stands in for; the steps' thread."""
        transfer = self._enqueue(after_step=self._steps_ended)
        if transfer is None:
            self.put_off += 1
            self.flush()
        else:
            transfer.marked = True
            self._publish(transfer)

    def flush(self) -> None:
        """Make the next `collect` take a snapshot at once if steps ran since the last."""
        self._schedule.force()

    def _take_between_steps(self) -> None:
        """Take a snapshot from another thread than the steps', unless a step begins meanwhile.

        A step's kernels are enqueued only after `steps_begun` has risen: if it hasn't when the copy is
        enqueued, the copy stands between two steps in the stream. Otherwise it may be torn and is not read.
        """
        ended = self._steps_ended
        told = (self._taken_after_step, self._told_reason, self._told_weights)
        is_told = told == (ended, self._source.disabled_reason, self._weights())
        if is_told or self.steps_begun != ended:
            return
        transfer = self._enqueue(after_step=ended)
        if transfer is None:
            return
        transfer.torn = self.steps_begun != ended
        if transfer.torn:
            self._under_way.append(transfer)
        else:
            self._publish(transfer)

    def _enqueue(self, after_step: int) -> Transfer | None:
        """Enqueue the copy of the counts in the steps' stream, and note the totals that belong to it."""
        try:
            transfer = self._free.popleft()
        except IndexError:
            return None
        transfer.totals, transfer.disabled_reason = self._source.totals, self._source.disabled_reason
        transfer.captured_at_ns, transfer.weights = time.time_ns(), self._weights()
        transfer.after_step, transfer.torn, transfer.marked = after_step, False, False
        if transfer.event is None or self._side is None:
            transfer.copy(self._ring_read)
            return transfer
        with torch.cuda.stream(self._stream):
            transfer.copy(self._ring_read)
            transfer.event.record()
        self._side.wait_event(transfer.event)
        with torch.cuda.stream(self._side):
            transfer.to_host()
            transfer.event.record()
        return transfer

    def _publish(self, transfer: Transfer) -> None:
        self._taken_after_step = max(self._taken_after_step, transfer.after_step)
        self._told_reason, self._told_weights = transfer.disabled_reason, transfer.weights
        self._schedule.taken(self._clock(), transfer.totals.forward_passes)
        self._under_way.append(transfer)

    def _read(self, transfer: Transfer) -> Snapshot:
        self._read_after_step = transfer.after_step
        part = transfer.ring_part()
        if self._history is not None and part is not None:
            self._history.add(part)
            self._ring_read = max(self._ring_read, part.first + len(part.numbers))
        return transfer.snapshot()
