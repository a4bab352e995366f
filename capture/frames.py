"""From snapshots to frames: what a producer says of itself, with each snapshot's totals."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from moescope.capture.snapshot import Snapshot
from moescope.capture.wire import (
    WIRE_MAJOR,
    WIRE_MINOR,
    Frame,
    MoeLayer,
    Placement,
    Producer,
    UncoveredLayer,
    pack_counts,
)

MAX_REASON = 1024


class FrameBuilder:
    """Numbers the frames of one epoch of one producer."""

    def __init__(
        self,
        producer: Producer,
        epoch: int,
        layers: Sequence[MoeLayer],
        uncovered: Sequence[UncoveredLayer],
        placement: Placement | None,
        strategy: Callable[[], str] = lambda: "",
        traces: Callable[[], Mapping[str, int]] = dict,
    ) -> None:
        self._producer = producer
        self._epoch = epoch
        self._layers = list(layers)
        self._uncovered = list(uncovered)
        self._placement = placement
        self._strategy = strategy
        self._traces = traces
        self._num_slots = sum(layer.num_experts for layer in layers)
        self._seq = 0

    def build(self, snapshot: Snapshot, drops: Mapping[str, int]) -> Frame:
        """The next frame, with these totals."""
        self._seq += 1
        reason = snapshot.disabled_reason
        return Frame(
            wire=(WIRE_MAJOR, WIRE_MINOR),
            producer=self._producer,
            epoch=self._epoch,
            seq=self._seq,
            captured_at_ns=snapshot.captured_at_ns,
            state="counting" if reason is None else "disabled",
            state_reason=(reason or "")[:MAX_REASON],
            layers=self._layers,
            uncovered=self._uncovered,
            counts=pack_counts(snapshot.flat[: self._num_slots]),
            rows=pack_counts(snapshot.flat[self._num_slots :]),
            tokens=snapshot.tokens,
            steps=snapshot.steps,
            idle_steps=snapshot.idle_steps,
            placement=self._placement,
            strategy=self._strategy(),
            drops=dict(drops),
            traces=dict(self._traces()),
        )
