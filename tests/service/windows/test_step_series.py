"""A series of straggler costs says what the windows of its intervals say."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from moescope.capture import wire
from moescope.service.live.state import LiveState
from moescope.service.settings import Settings
from moescope.service.windows.step_series import intervals_of
from moescope.service.windows.step_window import cost_of, windowed_sums
from moescope.service.windows.window import merge_spans
from tests.service.conftest import Clock
from tests.service.frames import EPOCH, frame, halves, producer

DEPLOYMENT = ("prod", "tiny")


@pytest.fixture
def state(clock: Clock) -> LiveState:
    return LiveState(Settings(), clock)


def _push(state: LiveState, clock: Clock, rank: int, seq: int, steps: list[list[int]], **who: Any) -> None:
    """A frame with these steps' slots by EP rank, in layers 0 and 3; counts are those of all steps so far."""
    values = np.repeat(np.array(steps).reshape(-1, 1, 2), 2, axis=1)
    first = len(steps) * (seq - 1)
    counts = [seq * int(total) for total in values[:, 0].sum(axis=0)]
    row = [counts[0], 0, counts[1], 0]
    state.ingest(
        frame(
            {0: row, 3: row},
            who=producer(dp_rank=rank, dp_size=2, ep_rank=rank, ep_size=2, **who),
            seq=seq,
            after_s=clock.now - EPOCH / 1e9,
            placement=halves(4, 2),
            step_loads=wire.pack_step_loads(
                first, first + len(steps), first + np.arange(len(steps)), values, 1
            ),
        )
    )


def test_intervals_are_those_of_windows(state: LiveState, clock: Clock) -> None:
    instants = [clock.now]
    for seq in range(1, 4):
        clock.now += 10
        _push(state, clock, 0, seq, [[8, 0], [0, 8]])
        _push(state, clock, 1, seq, [[4, 2], [2, 0]])
        instants.append(clock.now)
    intervals = intervals_of(state.one_by_one(DEPLOYMENT, instants)[1](), len(instants), [0, 3], 2)
    assert len(intervals) == 3
    for i, interval in enumerate(intervals):
        spans = state.spans(DEPLOYMENT, instants[i], instants[i + 1])
        assert interval.cost.sums == cost_of(spans).sums
        assert interval.windowed == windowed_sums(merge_spans(spans))
    # Of each two steps the busiest ranks got 12 and 8 slots in each layer, the mean rank 7 and 5.
    assert intervals[1].cost.sums == (40, 24)
    assert intervals[1].windowed == (28, 24)


def test_only_the_layers_that_are_asked_for_are_in_the_sums_of_windows(
    state: LiveState, clock: Clock
) -> None:
    start = EPOCH / 1e9  # when the workers began
    clock.now += 10
    for rank in (0, 1):
        _push(state, clock, rank, 1, [[6, 2]])
    _, boundaries = state.one_by_one(DEPLOYMENT, [start, clock.now])
    [one], [none] = (intervals_of(boundaries(), 2, layers, 2) for layers in ([3], [7]))
    assert (one.windowed, none.windowed) == ((12, 8), (0, 0))
    assert one.cost.sums == none.cost.sums == (24, 16)


def test_an_interval_before_all_that_is_remembered_is_truncated(state: LiveState, clock: Clock) -> None:
    begun = clock.now - 50  # the workers' start
    _push(state, clock, 0, 1, [[6, 2]])
    _push(state, clock, 1, 1, [[6, 2]])
    first = clock.now
    clock.now += 10
    _push(state, clock, 0, 2, [[6, 2]])
    intervals = intervals_of(state.one_by_one(DEPLOYMENT, [begun, first, clock.now])[1](), 3, [0, 3], 2)
    assert [interval.truncated for interval in intervals] == [True, False]
