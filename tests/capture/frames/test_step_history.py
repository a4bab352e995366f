"""Which steps a frame carries: each once it is known until it has arrived, and how many are lost.

The way of the loads from the ring into frames is tested in `tests/capture/counting/test_load_ring.py`.
"""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from moescope.capture.frames import step_history
from moescope.capture.frames.step_history import RingPart, StepHistory
from moescope.capture.wire import unpack_microbatches, unpack_step_loads
from moescope.capture.wire.checks import MAX_SPAN


def part(first: int, numbers: list[int], end: int) -> RingPart:
    """Steps of one layer and two EP ranks; the loads of step n are n and 1."""
    loads = np.array([[[number, 1]] for number in numbers], np.int32).reshape(-1, 1, 1, 2)
    return RingPart(first, np.array(numbers, np.int64), loads, end)


def carried(history: StepHistory) -> tuple[int, int, dict[int, list[int]]]:
    """What the next frame carries: the range of steps, and the loads of those that computed tokens."""
    packed = history.pack()
    steps, loads = unpack_step_loads(packed, 1, 2)
    return packed.first, packed.end, dict(zip(steps.tolist(), loads[:, 0].tolist(), strict=True))


def test_steps_wait_until_a_frame_with_them_has_arrived() -> None:
    history = StepHistory(version=7)
    history.add(part(0, [0, 2], 3))
    assert carried(history) == (0, 3, {0: [0, 1], 2: [2, 1]})
    history.add(part(2, [4], 6))
    assert carried(history) == (0, 6, {0: [0, 1], 2: [2, 1], 4: [4, 1]})
    history.delivered()
    assert carried(history) == (6, 6, {})
    assert history.pack().placement_version == 7


def test_steps_that_come_after_the_frame_was_built_are_in_the_next_one() -> None:
    history = StepHistory(version=0)
    history.add(part(0, [0], 1))
    history.pack()
    history.delivered()
    history.add(part(1, [1], 2))
    assert carried(history) == (1, 2, {1: [1, 1]})


def test_steps_that_two_snapshots_have_are_taken_once() -> None:
    history = StepHistory(version=0)
    history.add(part(0, [0, 1, 2], 3))
    history.add(part(1, [1, 2, 3], 4))
    history.add(part(1, [1, 2], 4))
    assert carried(history) == (0, 4, {step: [step, 1] for step in range(4)})
    assert history.lost == 0


@pytest.mark.parametrize(("numbers", "first"), [([8, 9], 8), ([], 10)])
def test_where_steps_are_missing_all_before_them_are_given_up(numbers: list[int], first: int) -> None:
    history = StepHistory(version=0)
    history.add(part(0, [0, 1], 2))
    history.add(part(7, numbers, 10))  # steps 2 .. 6 are overwritten
    assert carried(history) == (first, 10, {step: [step, 1] for step in numbers})
    assert history.lost == 2 + 5


def test_the_oldest_steps_are_lost_where_too_many_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_history, "MAX_WAITING", 3)
    history = StepHistory(version=0)
    history.add(part(0, [0, 1, 4, 6, 7], 8))
    assert carried(history) == (2, 8, {step: [step, 1] for step in (4, 6, 7)})
    assert history.lost == 2


def test_a_range_that_grows_too_long_while_the_worker_idles_is_cut() -> None:
    history = StepHistory(version=0)
    one = np.ones((1, 1, 1, 2), np.int32)
    history.add(RingPart(0, np.array([3]), one, 10))
    history.add(RingPart(1, np.zeros(0, np.int64), one[:0], 3 + MAX_SPAN))
    assert (history.pack().first, history.lost) == (3, 0)
    history.add(RingPart(1, np.zeros(0, np.int64), one[:0], 4 + MAX_SPAN))
    packed = history.pack()
    assert (packed.first, packed.end, packed.steps, history.lost) == (4, 4 + MAX_SPAN, b"", 1)


def test_microbatches_have_entries_where_they_have_slots() -> None:
    history = StepHistory(version=0)
    loads = np.array([[[[4, 1]], [[2, 2]]], [[[3, 0]], [[0, 0]]], [[[0, 0]], [[0, 0]]], [[[0, 0]], [[1, 0]]]])
    history.add(RingPart(0, np.array([0, 1, 3, 4]), loads.astype(np.int32), 6))
    packed = history.pack()
    steps, carried_loads = unpack_step_loads(packed, 1, 2)
    assert steps.tolist() == [0, 0, 1, 3, 4, 4]
    assert unpack_microbatches(packed).tolist() == [0, 1, 0, 0, 0, 1]
    assert carried_loads[:, 0].tolist() == [[4, 1], [2, 2], [3, 0], [0, 0], [0, 0], [1, 0]]
    history.delivered()
    assert history.pack().steps == b""
    assert history.lost == 0


def test_where_no_step_is_split_frames_are_as_before() -> None:
    history = StepHistory(version=0)
    loads = np.array([[[[4, 1]], [[0, 0]]], [[[3, 0]], [[0, 0]]]], np.int32)
    history.add(RingPart(0, np.array([0, 1]), loads, 2))
    packed = history.pack()
    assert (packed.microbatches, len(packed.steps) // 4) == (b"", 2)
    assert unpack_microbatches(packed).tolist() == [0, 0]


def test_many_microbatches_fit_a_frame() -> None:
    history, parts = StepHistory(version=0), 256
    for first in range(0, 60, 20):
        loads = np.ones((20, parts, 1, 2), np.int32)
        history.add(RingPart(first, np.arange(first, first + 20), loads, first + 20))
    packed = history.pack()
    assert (packed.first, packed.end, len(packed.microbatches), history.lost) == (44, 60, 16 * parts, 44)


@pytest.mark.parametrize("parts", [1, 2, 8])
def test_microbatches_that_no_step_has_cost_no_step(parts: int) -> None:
    """With 58 layers and 256 EP ranks 70 entries fit."""
    history = StepHistory(version=0)
    loads = np.zeros((60, parts, 58, 256), np.int32)
    loads[:, 0] = 1
    history.add(RingPart(0, np.arange(60), loads, 60))
    assert history.lost == 0
    history.pack()
    history.delivered()
    history.add(RingPart(60, np.arange(60, 71), loads[:11], 71))
    history.add(RingPart(71, np.arange(71, 131), loads, 131))
    packed = history.pack()
    steps, _ = unpack_step_loads(packed, 58, 256)
    assert (steps.tolist(), history.lost) == (list(range(61, 131)), 1)


def test_split_steps_take_the_room_of_their_microbatches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_history, "MAX_WAITING", 7)
    history = StepHistory(version=0)
    loads = np.ones((5, 2, 1, 2), np.int32)
    loads[3:, 1] = 0  # three split steps, then two that are not
    history.add(RingPart(0, np.arange(5), loads, 5))
    steps, _ = unpack_step_loads(history.pack(), 1, 2)
    assert (steps.tolist(), history.lost) == ([1, 1, 2, 2, 3, 4], 1)


def test_what_waits_does_not_hold_the_memory_of_its_snapshot() -> None:
    history = StepHistory(version=0)
    loads = np.zeros((100, 8, 10, 10), np.int32)
    loads[:, 0] = 1
    tracemalloc.start()
    history.add(RingPart(0, np.arange(100), loads.copy(), 100))
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert 100 * 100 * 4 < held < 2 * 100 * 100 * 4 + 100 * 400
