"""What one frame tells of its life: when it began, when its totals were true, all by the service's clock."""

from __future__ import annotations

from moescope.capture.wire import Frame
from moescope.service.counts.epoch_state import EpochState
from moescope.service.counts.layers import Layout
from moescope.service.counts.step_costs import Stragglers
from moescope.service.counts.totals import Totals


def heard(frame: Frame, counted: Totals, known: EpochState | None, at: float, made_at: float) -> EpochState:
    """A life once one more of its frames was accepted."""
    began, started = began_of(frame, at), _started(frame, at)
    lag = at - frame.captured_at_ns / 1e9
    came, going = at, 0.0 if frame.ended else made_at
    if known is not None:
        going = max(going, known.going_at)
        came, started, lag = known.came_at, min(started, known.started_at), min(lag, known.lag)
        began = min(began, known.began_at)
    return EpochState(
        epoch=frame.epoch,
        seq=frame.seq,
        counted=counted,
        producer=frame.producer,
        began_at=began,
        started_at=started,
        came_at=came,
        heard_at=at,
        made_at=made_at,
        captured_at_ns=frame.captured_at_ns,
        lag=lag,
        overlaps=0 if known is None else known.overlaps,
        spoken_at=0.0 if known is None else known.spoken_at,
        ended=frame.ended,
        stragglers=_carried(known, counted.layout),
        going_at=going,
    )


def _carried(known: EpochState | None, layout: Layout) -> Stragglers | None:
    """The stragglers of a life in arrays of its newest layout, which has all layers of those before."""
    if known is None or known.stragglers is None:
        return None
    return known.stragglers.widened(known.counted.layout, layout)


def began_of(frame: Frame, at: float) -> float:
    """When a life began, for all that a frame says which comes at ``at``; see :class:`EpochState`."""
    return at - frame.uptime_ns / 1e9


def _started(frame: Frame, at: float) -> float:
    return at - (frame.uptime_ns or max(0, frame.captured_at_ns - frame.epoch)) / 1e9


def made_at_of(frame: Frame, known: EpochState | None, at: float) -> float:
    """When the totals of a frame were true, by the service's clock; ``at`` where the frame doesn't say."""
    if known is not None and frame.uptime_ns:  # nobody sets this clock
        return min(at, known.began_at + frame.uptime_ns / 1e9)
    if known is None or frame.captured_at_ns <= known.captured_at_ns:
        return at
    captured = frame.captured_at_ns / 1e9
    return captured + min(known.lag, at - captured)
