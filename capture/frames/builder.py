"""From snapshots to frames: each has what the producer says of itself, and a snapshot's totals."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from moescope.capture.frames.snapshot import Snapshot
from moescope.capture.frames.step_history import StepHistory
from moescope.capture.seam.eplb import MovingPlacement
from moescope.capture.step.live_requests import Drafts
from moescope.capture.step.word import Phase
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
    """Builds and numbers the frames of one epoch of one producer.

    Args:
        producer, epoch: see `Frame`.
        layers: the covered layers.
        uncovered: the MoE layers that can't be counted, with the reasons.
        placement: where the experts are, if they don't move; or None.
        strategy: tells the name of the strategy in use.
        traces: tells the accounts of traces (see `TraceSender.accounts`).
        history: the loads of steps that wait for a frame; None without a ring of loads.
        moving: where the experts are, if EPLB moves them; or None.
        unavailable: tells what can't be told, and why (see `Frame.unavailable`).
        absent, absent_unnamed, decoder_layers: see `Frame`.
        drafts: tells the draft tokens so far, by what became of them.
        clock: nanoseconds on a clock that nobody sets. The epoch begins when the builder is made.

    Attributes:
        producer: may be replaced by one with other sizes, by another thread than the one that builds.
    """

    def __init__(
        self,
        producer: Producer,
        epoch: int,
        layers: Sequence[MoeLayer],
        uncovered: Sequence[UncoveredLayer],
        placement: Placement | None,
        strategy: Callable[[], str] = lambda: "",
        traces: Callable[[], Mapping[str, int]] = dict,
        history: StepHistory | None = None,
        moving: MovingPlacement | None = None,
        unavailable: Callable[[], Mapping[str, str]] = dict,
        absent: Sequence[UncoveredLayer] = (),
        absent_unnamed: str = "",
        decoder_layers: int = 0,
        clock: Callable[[], int] = time.monotonic_ns,
        drafts: Callable[[], Drafts] = Drafts,
    ) -> None:
        self.producer = producer
        self._epoch = epoch
        self._layers = list(layers)
        self._uncovered = list(uncovered)
        self._placement = placement
        self._strategy = strategy
        self._traces = traces
        self._history = history
        self._moving = moving
        self._unavailable = unavailable
        self._absent = list(absent)
        self._absent_unnamed = absent_unnamed
        self._decoder_layers = decoder_layers
        self._num_counts = sum(layer.num_experts for layer in layers)
        self._seq = 0
        self._acknowledged = 0
        self._clock = clock
        self._drafts = drafts
        self._began_ns = clock()

    def build(self, snapshot: Snapshot, drops: Mapping[str, int], ended: bool = False) -> Frame:
        """The next frame: the totals of the snapshot, and the loads of steps that were not delivered yet.

        Args:
            snapshot, drops: of counts, and of what was lost or put off.
            ended: no frame follows this one, as the worker shuts down.
        """
        self._seq += 1
        reason, totals, history = snapshot.disabled_reason, snapshot.totals, self._history
        counts = snapshot.flat[: 2 * self._num_counts].reshape(2, -1)
        rows, ep_slots = np.split(snapshot.flat[2 * self._num_counts :], [2 * len(self._layers)])
        rows, ep_slots = rows.reshape(2, -1), ep_slots.reshape(2, -1)
        drafts, unavailable = self._drafts(), dict(self._unavailable())
        by_rank = bool(ep_slots.size) and "ep_slots" not in unavailable
        phased = totals.phases_known and "phases" not in unavailable
        lost = {} if history is None else {"steps_lost": history.lost}
        lost |= {"drafts_lost": drafts.lost} if drafts.lost else {}
        return Frame(
            wire=(WIRE_MAJOR, WIRE_MINOR),
            producer=self.producer,
            epoch=self._epoch,
            seq=self._seq,
            acknowledged=self._acknowledged,
            captured_at_ns=snapshot.captured_at_ns,
            state="counting" if reason is None else "disabled",
            state_reason=(reason or "")[:MAX_REASON],
            layers=self._layers,
            uncovered=self._uncovered,
            counts=pack_counts(counts.sum(axis=0)),
            rows=pack_counts(rows.sum(axis=0)),
            tokens=totals.tokens,
            steps=totals.steps,
            idle_steps=totals.idle_steps,
            placement=None if "placement" in unavailable else self._placement_at(snapshot),
            strategy=self._strategy(),
            drops=dict(drops) | lost,
            traces=dict(self._traces()),
            decode_counts=pack_counts(counts[Phase.DECODE]) if phased else b"",
            decode_rows=pack_counts(rows[Phase.DECODE]) if phased else b"",
            decode_tokens=totals.decode_tokens if phased else 0,
            decode_steps=totals.decode_steps if phased else 0,
            mixed_steps=totals.mixed_steps if phased else 0,
            step_loads=None if history is None or "steps" in unavailable else history.pack(),
            unavailable={what: reason[:MAX_REASON] for what, reason in unavailable.items()},
            absent=self._absent,
            absent_unnamed=self._absent_unnamed,
            decoder_layers=self._decoder_layers,
            ep_slots=pack_counts(ep_slots.sum(axis=0)) if by_rank else b"",
            decode_ep_slots=pack_counts(ep_slots[Phase.DECODE]) if by_rank and phased else b"",
            ended=ended,
            accepted_drafts=drafts.accepted,
            rejected_drafts=drafts.rejected,
            uptime_ns=max(1, self._clock() - self._began_ns),
            weights_version=snapshot.weights.version,
            weights_label=snapshot.weights.label,
        )

    def _placement_at(self, snapshot: Snapshot) -> Placement | None:
        if self._moving is None:
            return self._placement
        if snapshot.placement is not None:
            self._moving.update(snapshot.placement)
        return self._moving.placement

    def delivered(self) -> None:
        """The service has taken the last frame."""
        self._acknowledged = self._seq
        if self._history is not None:
            self._history.delivered()
