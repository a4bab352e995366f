"""Faults of capture and of workers: what a simulated fleet's frames say when something is wrong."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import msgspec
import numpy as np

from moescope.capture import wire


@dataclass(frozen=True, slots=True)
class Faults:
    """What is wrong, all the time.

    Attributes:
        unseen: decoder layers that are covered and whose router reports no token.
        miscounted: decoder layers that count each slot twice, so that slots are not rows x top-k.
        disabled: DP ranks whose capture is off.
        missing: DP ranks that never report.
        twice: DP ranks that two live processes claim.
        no_loads: DP ranks whose loads of single steps never come, as if another service got them.
        silent_tp: whether each rank has a second TP worker, which never reports.
        restart_s: seconds between two starts of DP rank 0; None: it doesn't start again.
        drops_per_s: snapshots that each rank fails to send, a second.
        trace_drops_per_s: routing traces that each rank loses, a second.

    Raises:
        ValueError: a rate is negative, or a rank starts again more often than each 0.1 s.
    """

    unseen: tuple[int, ...] = ()
    miscounted: tuple[int, ...] = ()
    disabled: tuple[int, ...] = ()
    missing: tuple[int, ...] = ()
    twice: tuple[int, ...] = ()
    no_loads: tuple[int, ...] = ()
    silent_tp: bool = False
    restart_s: float | None = None
    drops_per_s: float = 0.0
    trace_drops_per_s: float = 0.0

    def __post_init__(self) -> None:
        if min(self.drops_per_s, self.trace_drops_per_s) < 0:
            raise ValueError("drops per second are not negative")
        if self.restart_s is not None and self.restart_s < 0.1:
            raise ValueError(f"a rank can't start again each {self.restart_s:g} s: give 0.1 or more")

    def restarts(self, before: float, elapsed: float) -> bool:
        """Whether DP rank 0 starts again between two times, in seconds since the simulation began."""
        period = self.restart_s
        return period is not None and int(elapsed // period) > int(before // period)

    def applied(self, frame: wire.Frame, elapsed: float) -> Iterator[wire.Frame]:
        """What is sent in place of a frame: itself, changed; nothing; or frames of two processes.

        Args:
            frame: of a worker without faults.
            elapsed: seconds since the worker's start, since what it counts begins anew with each.
        """
        rank = frame.producer.dp_rank
        if rank in self.missing:
            return
        frame = self._miscounted(frame)
        drops = {**frame.drops, "sends_failed": frame.drops["sends_failed"] + int(self.drops_per_s * elapsed)}
        lost = int(self.trace_drops_per_s * elapsed)
        traces = {"captured": lost, "delivered": 0, "dropped_buffer_full": lost} if lost else frame.traces
        frame = msgspec.structs.replace(frame, drops=drops, traces=traces)
        if rank in self.no_loads:
            frame = msgspec.structs.replace(frame, step_loads=None)
        if rank in self.disabled:
            reason = "simulated: capture is off"
            frame = msgspec.structs.replace(frame, state="disabled", state_reason=reason)
        if self.silent_tp:
            who = msgspec.structs.replace(frame.producer, tp_size=2)
            frame = msgspec.structs.replace(frame, producer=who)
        yield frame
        if rank in self.twice:
            other = msgspec.structs.replace(frame.producer, host="simulated-twin", pid=frame.producer.pid + 1)
            yield msgspec.structs.replace(frame, producer=other, epoch=frame.epoch + 1)

    def _miscounted(self, frame: wire.Frame) -> wire.Frame:
        if not self.unseen and not self.miscounted:
            return frame
        sizes = [layer.num_experts for layer in frame.layers]
        factors = np.ones(len(sizes), dtype=np.int64)
        seen = np.ones(len(sizes), dtype=np.int64)
        for place, layer in enumerate(frame.layers):
            factors[place] += layer.layer in self.miscounted
            seen[place] = layer.layer not in self.unseen
        by_expert = np.repeat(factors * seen, sizes)
        return msgspec.structs.replace(
            frame,
            counts=_times(frame.counts, by_expert),
            rows=_times(frame.rows, seen),
            decode_counts=_times(frame.decode_counts, by_expert),
            decode_rows=_times(frame.decode_rows, seen),
        )


def _times(data: bytes, factors: wire.Int64Array) -> bytes:
    return wire.pack_counts(wire.unpack_counts(data) * factors) if data else data
