"""Rows of several workers: of a position that two of them computed, those of the later step."""

from __future__ import annotations

import numpy as np
import pytest

from moescope.service.traces.routing import put_together
from tests.service.trace_parts import LAYERS, experts_of
from tests.service.traces.stored_traces import worker

FIRST, AGAIN = experts_of(1, 30), experts_of(2, 30)


@pytest.mark.parametrize("later_has_the_lower_rank", [True, False])
def test_the_last_computation_wins_whichever_worker_made_it(later_has_the_lower_rank: bool) -> None:
    """Preempted after position 20; then the other worker of two has 5 to 14, in an order of its own."""
    before = worker(FIRST, [(0, 20)], steps=[3] * 20)
    after = worker(AGAIN, [(10, 5), (5, 5)], steps=[8] * 5 + [9] * 5)
    workers = [after, before] if later_has_the_lower_rank else [before, after]
    found = put_together(workers)
    [rows] = found.chunks(100)
    for at, width in enumerate((2, 4)):
        expected = np.concatenate([FIRST[at][:5], AGAIN[at][5:15], FIRST[at][15:20]])
        np.testing.assert_array_equal(rows.experts[:, at, :width], expected)
    assert rows.times.tolist() == [1] * 5 + [2] * 10 + [1] * 5
    in_pieces = np.concatenate([some.experts for some in found.chunks(7)])
    np.testing.assert_array_equal(in_pieces, rows.experts)


def test_a_position_may_go_back_and_forth() -> None:
    one = worker(FIRST, [(0, 10), (0, 4)], steps=[1] * 10 + [7] * 4)
    other = worker(AGAIN, [(0, 6)], steps=[5] * 6)
    [rows] = put_together([one, other]).chunks(100)
    expected = np.concatenate([FIRST[1][:4], AGAIN[1][4:6], FIRST[1][6:10]])
    np.testing.assert_array_equal(rows.experts[:, 1], expected)


def test_stages_are_no_rivals() -> None:
    """Workers of other layers have other steps for the same position, and both count."""
    stages = [
        worker(FIRST[:1], [(0, 9)], LAYERS[:1], [1] * 9),
        worker(FIRST[1:], [(0, 9)], LAYERS[1:], [2] * 9),
    ]
    [rows] = put_together(stages).chunks(100)
    np.testing.assert_array_equal(rows.experts[:, 0, :2], FIRST[0][:9])
    np.testing.assert_array_equal(rows.experts[:, 1], FIRST[1][:9])


def test_without_steps_each_position_is_there_once() -> None:
    [rows] = put_together([worker(FIRST, [(0, 9)]), worker(AGAIN, [(4, 9)])]).chunks(100)
    np.testing.assert_array_equal(rows.experts[:4, 1], FIRST[1][:4])
    np.testing.assert_array_equal(rows.experts[4:, 1], AGAIN[1][4:13])
