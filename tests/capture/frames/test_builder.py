"""Frames from snapshots: numbered, with the counts by phase where the phases are known."""

from __future__ import annotations

import numpy as np
import pytest

from moescope.capture.frames.builder import MAX_REASON, FrameBuilder
from moescope.capture.frames.snapshot import Snapshot
from moescope.capture.frames.step_history import RingPart, StepHistory
from moescope.capture.seam.eplb import MovingPlacement, PlacementMap
from moescope.capture.step.totals import Totals
from moescope.capture.wire import (
    DROPS,
    Frame,
    MoeLayer,
    Producer,
    UncoveredLayer,
    decode_frame,
    encode_frame,
    unpack_counts,
    unpack_ids,
)

WHO = Producer(server="s", model="m", dp_rank=0, dp_size=1, ep_size=2)
LAYERS = [MoeLayer(1, 2, 1), MoeLayer(4, 3, 2)]
TOTALS = Totals(tokens=7, steps=3, idle_steps=2, decode_tokens=2, decode_steps=1, mixed_steps=1)
PREFILL, DECODE, ROWS = [3, 2, 1, 4, 5], [1, 1, 0, 3, 1], [5, 5, 2, 2]


def snapshot(
    totals: Totals = TOTALS, reason: str | None = None, placement: PlacementMap | None = None
) -> Snapshot:
    """Five prefill tokens and two decode tokens, counted in both layers."""
    flat = np.array([*PREFILL, *DECODE, *ROWS], np.int64)
    return Snapshot(flat, totals, reason, captured_at_ns=10**18, placement=placement)


def sent(frame: Frame) -> Frame:
    """The frame as the service reads it."""
    return decode_frame(encode_frame(frame))


def test_a_frame_has_the_totals_of_both_phases_and_those_of_decode() -> None:
    builder = FrameBuilder(
        WHO,
        5,
        LAYERS,
        [UncoveredLayer(6, "why")],
        None,
        lambda: "one",
        lambda: {"captured": 1},
        absent=[UncoveredLayer(7, "where")],
        absent_unnamed="others",
    )
    frame = sent(builder.build(snapshot(), {"sends_failed": 2}))
    assert unpack_counts(frame.counts).tolist() == [4, 3, 1, 7, 6]
    assert unpack_counts(frame.rows).tolist() == [7, 7]
    assert unpack_counts(frame.decode_counts).tolist() == DECODE
    assert unpack_counts(frame.decode_rows).tolist() == [2, 2]
    assert (frame.tokens, frame.steps, frame.idle_steps) == (7, 3, 2)
    assert (frame.decode_tokens, frame.decode_steps, frame.mixed_steps) == (2, 1, 1)
    assert (frame.producer, frame.epoch, frame.captured_at_ns) == (WHO, 5, 10**18)
    assert (frame.layers, frame.uncovered) == (LAYERS, [UncoveredLayer(6, "why")])
    assert (frame.absent, frame.absent_unnamed) == ([UncoveredLayer(7, "where")], "others")
    assert (frame.strategy, frame.traces, frame.drops) == ("one", {"captured": 1}, {"sends_failed": 2})
    assert (frame.state, frame.placement, frame.step_loads) == ("counting", None, None)


def test_where_phases_are_not_known_a_frame_says_nothing_of_them() -> None:
    builder = FrameBuilder(WHO, 5, LAYERS, [], None)
    frame = sent(builder.build(snapshot(TOTALS._replace(phases_known=False)), {}))
    assert unpack_counts(frame.counts).tolist() == [4, 3, 1, 7, 6]
    assert (frame.decode_counts, frame.decode_rows) == (b"", b"")
    assert (frame.decode_tokens, frame.decode_steps, frame.mixed_steps) == (0, 0, 0)


def test_frames_of_an_epoch_are_numbered_from_1() -> None:
    builder = FrameBuilder(WHO, 5, LAYERS, [], None)
    assert [builder.build(snapshot(), {}).seq for _ in range(3)] == [1, 2, 3]


def test_a_frame_says_which_one_before_it_was_taken() -> None:
    builder = FrameBuilder(WHO, 5, LAYERS, [], None)
    told = []
    for delivered in (False, True, False, True, True):
        told.append(sent(builder.build(snapshot(), {})).acknowledged)
        if delivered:
            builder.delivered()
    assert told == [0, 0, 2, 2, 4]


def test_a_frame_tells_how_long_the_worker_has_been_up_by_a_clock_that_nobody_sets() -> None:
    clock = iter([50, 50, 57]).__next__
    builder = FrameBuilder(WHO, 5, LAYERS, [], None, clock=clock)
    assert [sent(builder.build(snapshot(), {})).uptime_ns for _ in range(2)] == [1, 7]


def test_a_frame_says_why_capture_has_stopped_however_long_the_reason_is() -> None:
    builder = FrameBuilder(WHO, 5, LAYERS, [], None)
    frame = sent(builder.build(snapshot(reason="x" * 2000), {}))
    assert (frame.state, frame.state_reason) == ("disabled", "x" * MAX_REASON)


def test_loads_of_steps_are_in_each_frame_until_one_is_delivered() -> None:
    history = StepHistory(version=0)
    history.add(RingPart(0, np.array([0, 3]), np.ones((2, 1, 2, 2), np.int32), 5))
    builder = FrameBuilder(WHO, 5, LAYERS, [], None, history=history)
    for _ in range(2):
        loads = sent(builder.build(snapshot(), {})).step_loads
        assert loads is not None
        assert (loads.first, loads.end, len(loads.steps) // 4) == (0, 5, 2)
    builder.delivered()
    frame = sent(builder.build(snapshot(), {"sends_failed": 1}))
    assert frame.step_loads is not None
    assert (frame.step_loads.first, frame.step_loads.steps) == (5, b"")
    assert frame.drops == {"sends_failed": 1, "steps_lost": 0}
    assert set(frame.drops) <= DROPS


@pytest.mark.parametrize("later", [None, PlacementMap(4, np.array([[0, 1, 1], [0, 1, 2]]))])
def test_a_placement_that_moves_is_the_latest_that_was_settled(later: PlacementMap | None) -> None:
    layers = [MoeLayer(1, 2, 1), MoeLayer(4, 3, 2)]
    moving = MovingPlacement(layers, [0, 1], ep_size=2)
    builder = FrameBuilder(WHO, 5, layers, [], None, moving=moving)
    assert builder.build(snapshot(), {}).placement is None  # no map has come
    first = PlacementMap(3, np.array([[0, 1, 0, 1], [2, 1, 0, 2]]))
    placed = sent(builder.build(snapshot(placement=first), {})).placement
    assert placed is not None
    assert placed.version == 3
    tables = [placed.tables[index] for index in placed.table_of_layer]
    assert [unpack_ids(table.physical_to_logical).tolist() for table in tables] == first.map.tolist()
    assert unpack_ids(tables[0].physical_to_ep_rank).tolist() == [0, 0, 1, 1]
    after = builder.build(snapshot(placement=later), {}).placement
    # Three physical experts don't fit two EP ranks: where the experts are is not known then.
    assert after == (placed if later is None else None)


def test_what_cannot_be_told_is_left_out_and_said() -> None:
    reasons: dict[str, str] = {}
    builder = FrameBuilder(
        WHO, 5, LAYERS, [], None, moving=MovingPlacement(LAYERS, [0, 1], 2), unavailable=lambda: reasons
    )
    moved = snapshot(placement=PlacementMap(3, np.array([[0, 1, 0, 1], [2, 0, 1, 2]])))
    before = sent(builder.build(moved, {}))
    assert before.placement is not None
    assert (before.unavailable, before.decode_tokens) == ({}, 2)
    reasons |= {"phases": "because", "placement": "x" * 2000}
    after = sent(builder.build(moved, {}))
    assert after.unavailable == {"phases": "because", "placement": "x" * MAX_REASON}
    assert (after.placement, after.decode_counts, after.decode_rows, after.decode_tokens) == (
        None,
        b"",
        b"",
        0,
    )
    assert (after.counts, after.rows, after.tokens) == (before.counts, before.rows, before.tokens)
