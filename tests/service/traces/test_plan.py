"""Each position comes from the first trace that has it whole."""

from __future__ import annotations

import pytest

from moescope.service.traces.plan import MAX_RUNS, Offer, TooManyRunsError, plan
from moescope.service.traces.sources import contradicts, shapes_of
from moescope.service.traces.spans import span
from tests.service.trace_parts import LAYERS, experts_of
from tests.service.traces.stored_traces import source, worker

TRUTH = experts_of(1, 60)
BOTH = {1, 3}


def test_the_first_that_has_a_position_gives_it() -> None:
    one = source(1, worker(TRUTH, [(10, 10), (30, 10)]))
    two = source(2, worker(TRUTH, [(0, 40)]))
    three = source(3, worker(TRUTH, [(0, 60)]))
    offers = [Offer(one, span(0, 60)), Offer(two, span(5, 35)), Offer(three, span(0, 45))]
    found = plan(span(2, 60), offers, BOTH)
    assert [taken.tolist() for taken in found.taken] == [
        [[10, 20], [30, 40]],
        [[5, 10], [20, 30]],
        [[2, 5], [40, 45]],
    ]
    assert found.left.tolist() == [[45, 60]]


def test_whole_rows_come_before_those_of_some_layers() -> None:
    """The first has layer 1 of 20 positions, but layer 3 of 10 only."""
    one = source(1, worker(TRUTH[:1], [(0, 20)], LAYERS[:1]), worker(TRUTH[1:], [(0, 10)], LAYERS[1:]))
    two = source(2, worker(TRUTH, [(5, 10)]))
    found = plan(span(0, 20), [Offer(one, span(0, 20)), Offer(two, span(0, 20))], BOTH)
    assert [taken.tolist() for taken in found.taken] == [[[0, 10], [15, 20]], [[10, 15]]]


def test_workers_of_one_layer_have_their_positions_together() -> None:
    shards = source(1, worker(TRUTH, [(0, 10)]), worker(TRUTH, [(10, 10)]))
    assert shards.whole(BOTH).tolist() == shards.anywhere.tolist() == [[0, 20]]
    assert shards.whole({1, 3, 5}).tolist() == []


def test_contradicting_shapes() -> None:
    one, other = (
        source(1, worker(TRUTH, [(0, 4)])),
        source(2, worker(TRUTH, [(0, 4)], [LAYERS[0], LAYERS[1]])),
    )
    assert not contradicts(other, shapes_of([one]))
    wider = source(3, worker(TRUTH, [(0, 4)], [LAYERS[0], type(LAYERS[1])(3, 65, 4)]))
    assert contradicts(wider, shapes_of([one]))


def test_too_many_runs() -> None:
    truth = experts_of(1, 3 * MAX_RUNS)
    torn = source(1, worker(truth, [(2 * n, 1) for n in range(MAX_RUNS + 1)]))
    with pytest.raises(TooManyRunsError):
        plan(span(0, 3 * MAX_RUNS), [Offer(torn, span(0, 3 * MAX_RUNS))], BOTH)
    assert len(plan(span(0, 2 * MAX_RUNS), [Offer(torn, span(0, 3 * MAX_RUNS))], BOTH).taken[0]) == MAX_RUNS
