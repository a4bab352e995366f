"""What a trace holds while it grows, and how it is cut into parts."""

from __future__ import annotations

import numpy as np
import pytest

from moescope.capture.tracing.buffer import Trace, compact, cut
from moescope.capture.wire.traces import NO_EXPERT, Run

MASKED = 255


def ids(count: int) -> np.ndarray:
    return np.zeros((count, 2), dtype=np.uint8)


def test_consecutive_positions_are_one_run() -> None:
    trace = Trace("a", [], prompt_tokens=5, cached_tokens=0)
    for first, count, step in ((0, 3, 10), (3, 2, 11), (5, 1, 12), (0, 2, 15), (2, 1, 16)):
        trace.add(first, ids(count), step)
    assert trace.runs == [(0, 6), (0, 3)]  # preempted: the second run computes positions again
    assert trace.steps == [(10, 3), (11, 2), (12, 1), (15, 2), (16, 1)]
    assert sum(map(len, trace.chunks)) == 9


def test_a_closed_trace_has_an_end_after_its_start() -> None:
    trace = Trace("a", [], prompt_tokens=5, cached_tokens=0)
    assert trace.ended_at_ns == 0
    trace.close()
    assert trace.ended_at_ns >= trace.started_at_ns


@pytest.mark.parametrize(
    ("experts", "masked_slot", "dtype"),
    [(256, False, np.uint8), (257, False, np.uint16), (8, True, np.uint16)],
)
def test_ids_take_a_byte_where_one_holds_them(experts: int, masked_slot: bool, dtype: type) -> None:
    rows = np.array([[1, 7], [MASKED if masked_slot else 3, 0]], dtype=np.uint8)
    made = compact(rows, MASKED, experts)
    assert made.dtype == dtype
    assert made.tolist() == [[1, 7], [NO_EXPERT if masked_slot else 3, 0]]
    rows[:] = 0  # staged rows are used again: what was made is a copy
    assert made[0].tolist() == [1, 7]


@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [
        (0, 9, [Run(10, 4), Run(0, 5)]),
        (0, 10, [Run(10, 4), Run(0, 6)]),
        (2, 5, [Run(12, 2), Run(0, 1)]),
        (9, 20, [Run(5, 1)]),
        (0, 4, [Run(10, 4)]),
        (3, 6, [Run(13, 1), Run(0, 2)]),
        (4, 4, []),
        (6, 100, [Run(2, 4)]),
    ],
)
def test_a_part_has_the_runs_of_its_tokens(start: int, end: int, expected: list[Run]) -> None:
    assert cut([(10, 4), (0, 6)], start, end) == expected
