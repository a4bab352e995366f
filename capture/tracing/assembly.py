"""Traces off the step's path: rows that arrive on the host become closed traces, in a thread of their own.

The step's path tells what happens, in order, through a deque. Each counter here has one writer.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from moescope.capture.counting.staging import StagedRows, TraceStaging
from moescope.capture.seam.block_tables import BlocksHandedOn
from moescope.capture.seam.outcomes import StepOutcome
from moescope.capture.seam.requests import NewRequest
from moescope.capture.threads.pause_gate import PauseGate
from moescope.capture.threads.thread_device import use_device
from moescope.capture.threads.throttled_log import ThrottledLog
from moescope.capture.tracing.acceptance import kept_rows
from moescope.capture.tracing.buffer import Trace, compact
from moescope.capture.tracing.origins import BlockOrigins, BlocksOfStep, BlocksReceived

logger = logging.getLogger("vllm.moescope")

TICK = 0.02
LAST_SECONDS = 0.3


class Owner(NamedTuple):
    """A trace with rows in a step.

    Attributes:
        trace: whose rows they are.
        first: the position of its first row in the request, as the scheduler has it.
        rows: its number of rows.
        drafts: how many of them, the last ones, are of draft tokens.
    """

    trace: Trace
    first: int
    rows: int
    drafts: int = 0


@dataclass(slots=True, frozen=True)
class Arrival:
    """The traced rows of a step.

    Attributes:
        staged: the rows, on their way to the host.
        step: the step's number.
        owners: the traces with rows in the step, in the rows' order.
        outcome: tells what the step sampled; None: that can't be told.
    """

    staged: StagedRows
    step: int
    owners: list[Owner]
    outcome: StepOutcome | None = None

    @property
    def arrived(self) -> bool:
        """Whether all that the traces need of the step is on the host; does not wait."""
        return self.staged.arrived and (self.outcome is None or self.outcome.settled)


@dataclass(slots=True, frozen=True)
class Ending:
    """No step adds to a trace any more. Without a reason it is closed, with one it is dropped."""

    trace: Trace
    reason: str | None


@dataclass(slots=True, frozen=True)
class Again:
    """A request goes on after a preemption or, with `new`, with more input (see `Trace.go_on`)."""

    trace: Trace
    new: NewRequest | None = None


Event = Arrival | Again | Ending | BlocksOfStep | BlocksHandedOn | BlocksReceived


class TraceAssembly:
    """Gives arriving rows to their traces, and keeps the account of traces.

    Args:
        staging: where rows come from.
        sharded: whether rows of this DP rank's tokens may be at another worker and not at this one.
        drafting: whether tokens are drafted: traces of which it isn't known what was accepted are given up.
        cut: whether rows behind a request's end are left out where no tokens are drafted. All workers that
            have rows of a request must do alike.

    Attributes:
        events: what happened on the step's path, which appends.
        closed: traces that are whole.
        captured: traces of which this worker had rows.
        dropped: how many of the captured traces were given up, by reason.
        released: bytes set aside for traces that never get to the sender, and are free again.
        sent: bytes set aside for traces that the sender is done with; only the sender writes it.
        followed: numbers of blocks of all changes of the tables that are done with.
    """

    def __init__(
        self, staging: TraceStaging, sharded: bool, drafting: bool = False, cut: bool = True
    ) -> None:
        self.events: deque[Event] = deque()
        self.closed: deque[Trace] = deque()
        self.captured = 0
        self.dropped: Counter[str] = Counter()
        self.released = 0
        self.sent = 0
        self.followed = 0
        self._staging = staging
        self._sharded = sharded
        self._drafting = drafting
        self._cut = cut
        self._origins = BlockOrigins()
        self._max_experts = max(layer.num_experts for layer in staging.layers)
        self._log = ThrottledLog(logger)
        self._gate = PauseGate()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="moescope-rows", daemon=True)

    def start(self) -> None:
        """Start a thread of its own: the sender's may hang in a connection."""
        self._thread.start()

    def stop(self, timeout: float) -> None:
        """Take in what the device still copies, and wait for that no longer than `timeout` seconds."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(timeout)

    def pause(self) -> None:
        """Leave the device alone until `resume`."""
        self._gate.pause()

    def resume(self) -> None:
        """Go on after `pause`; nothing to do without one."""
        self._gate.resume()

    def proceed(self) -> None:
        """Take in what has arrived; nothing while paused."""
        if not self._gate.enter():
            return
        try:
            self._proceed()
        finally:
            self._gate.leave()

    def _proceed(self) -> None:
        while self.events:
            event = self.events[0]
            try:
                if isinstance(event, Ending):
                    self._end(event)
                elif isinstance(event, Again):
                    event.trace.go_on(event.new)
                elif isinstance(event, BlocksHandedOn | BlocksOfStep | BlocksReceived):
                    self._origins.take(event)
                elif event.arrived:
                    self._take(event)
                else:
                    return
            except Exception as error:  # noqa: BLE001 - the thread must outlive whatever happens to a step
                self._lose(event, error)
            self.events.popleft()
            if isinstance(event, BlocksOfStep):
                self.followed += event.size
            elif isinstance(event, BlocksHandedOn):
                self.followed += len(event.names)

    def _run(self) -> None:
        use_device(self._staging.rows.device)
        while not self._stopping.wait(TICK):
            self.proceed()
        deadline = time.monotonic() + LAST_SECONDS
        while self.events and time.monotonic() < deadline:
            self.proceed()
            time.sleep(TICK / 4)

    def _take(self, arrival: Arrival) -> None:
        rows, positions = arrival.staged.view(), arrival.staged.positions()
        sampled = None if arrival.outcome is None else arrival.outcome.read()
        wanted = {owner.trace.request_id for owner in arrival.owners}
        by_request = {} if sampled is None else sampled.of(wanted)
        missing = rows == self._staging.unwritten
        at = 0
        for owner in arrival.owners:
            trace, first, kept = owner.trace, owner.first, owner.rows
            if not trace.dropped:
                if positions is not None:
                    first = int(positions[at])
                kept = self._keep(owner, first, by_request.get(trace.request_id))
                trace.count(arrival.step, kept)
                part = slice(at, at + kept)
                trace.reached = max(trace.reached, first + kept)
                if kept and not trace.dropped:
                    self._add(trace, first, rows[part], missing[part], arrival.step)
            at += owner.rows
        arrival.staged.done = True

    def _keep(self, owner: Owner, first: int, sampled: Sequence[int] | None) -> int:
        """How many of its rows in a step a trace keeps; `sampled` is None where that isn't known."""
        trace = owner.trace
        if trace.complete and first < trace.last:
            # vLLM forgot what it sampled: keys and values that a connector was to load were not there.
            trace.go_on(None)
        trace.unknown_end = trace.unknown_end or (sampled is None and not trace.complete)
        if trace.unsure_from is not None and first > trace.unsure_from:
            self._break(trace, "outcome_unknown")
            return 0
        try:
            kept = kept_rows(trace, first, owner.rows, owner.drafts, sampled)
        except LookupError:
            if not self._drafting:
                trace.unknown_end = True
                return owner.rows
            self._break(trace, "outcome_unknown")
            return 0
        if kept.complete:
            # It may have ended in a step before, of which nothing is known, and this row be one too many.
            trace.complete, trace.finish_reason = True, "" if trace.unknown_end else kept.reason
            trace.last = first + kept.rows
        if not self._drafting and not self._cut:
            return owner.rows
        trace.rejected += kept.rejected
        trace.accepted += kept.accepted
        trace.unsure_from = first + kept.rows if sampled is None and owner.drafts else None
        return kept.rows

    def _lose(self, event: Event, error: Exception) -> None:
        """The rows of a step can't be read: give up the traces that they belong to."""
        if isinstance(event, BlocksHandedOn | BlocksOfStep | BlocksReceived):
            self._origins.give_up()
            self._log.log("origins", logging.ERROR, f"moescope: origins of prefixes are lost: {error!r}")
        elif isinstance(event, Arrival):
            event.staged.done = True
            for owner in event.owners:
                if not owner.trace.dropped:
                    self._break(owner.trace, f"fault:{type(error).__name__}")

    def _add(self, trace: Trace, first: int, rows: np.ndarray, missing: np.ndarray, step: int) -> None:
        """Give a trace its rows of a step; `missing` are the slots that no layer wrote."""
        if missing.any():
            ours = np.flatnonzero(~missing.all(axis=1))
            if self._sharded and not len(ours):
                return
            low, high = (int(ours[0]), int(ours[-1]) + 1) if len(ours) else (0, len(rows))
            if not self._sharded or missing[low:high].any():
                self._break(trace, "layer_missing")
                return
            first, rows = first + low, rows[low:high]
        self._count(trace)
        trace.add(first, compact(rows, self._staging.masked, self._max_experts), step)

    def _count(self, trace: Trace) -> None:
        if trace.number == 0:
            self.captured += 1
            trace.number = self.captured

    def _break(self, trace: Trace, reason: str) -> None:
        """Give up a trace; the step's path adds rows to it until it sees that the trace is broken."""
        self._count(trace)
        trace.dropped = trace.broken = True
        trace.chunks.clear()
        self.dropped[reason] += 1
        self._log.log(reason, logging.ERROR, f"moescope: a trace is dropped: {reason}")

    def _end(self, ending: Ending) -> None:
        trace = ending.trace
        if trace.broken:  # counted as dropped already
            self.released += trace.nbytes
        elif ending.reason is not None:
            trace.chunks.clear()
            self.released += trace.nbytes
            # If another worker of the DP rank has all rows, this one has no traces to lose.
            if self.captured or not self._sharded:
                self._count(trace)
                self.dropped[ending.reason] += 1
        elif trace.number == 0:  # other workers have all its rows, or none was computed
            self.released += trace.nbytes
        else:
            trace.tell_end()
            self.closed.append(trace)
