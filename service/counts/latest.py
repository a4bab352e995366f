"""What is kept of the newest frame of a life, without the bytes of its arrays."""

from __future__ import annotations

from dataclasses import replace

from moescope.capture.wire import Frame
from moescope.service.counts.account_state import Latest
from moescope.service.counts.epoch_state import EpochState
from moescope.service.counts.reasons import known_traces
from moescope.service.counts.totals import Totals


def latest_of(frame: Frame, counted: Totals) -> Latest:
    """What is kept of a frame; ``counted`` are its totals."""
    return Latest(
        producer=frame.producer,
        epoch=frame.epoch,
        seq=frame.seq,
        captured_at_ns=frame.captured_at_ns,
        state=frame.state,
        state_reason=frame.state_reason,
        uncovered=tuple(frame.uncovered),
        placement_version=None if frame.placement is None else frame.placement.version,
        strategy=frame.strategy,
        counted=counted,
        traces=known_traces(frame.traces),
        unavailable=dict(frame.unavailable),
        absent=tuple(frame.absent),
        absent_unnamed=frame.absent_unnamed,
        ended=frame.ended,
        decoder_layers=frame.decoder_layers,
    )


def latest_of_kept(life: EpochState, latest: Latest) -> Latest:
    """What is known of the newest frame of a life that was kept beside the one that counted then.

    Nothing but its totals and who it was is kept. What else it says comes with its next frame: until then it
    is taken to say what the other one said.
    """
    if life.epoch == latest.epoch and life.seq <= latest.seq:
        return latest
    return replace(
        latest,
        producer=life.producer or latest.producer,
        epoch=life.epoch,
        seq=life.seq,
        captured_at_ns=life.captured_at_ns,
        counted=life.counted,
        traces=latest.traces if life.epoch == latest.epoch else {},
        ended=life.ended,
        is_guessed=True,
    )
