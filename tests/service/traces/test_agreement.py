"""Whether two traces are of one prompt, by their rows."""

from __future__ import annotations

import numpy as np

from moescope.capture.wire import MoeLayer
from moescope.service.traces.agreement import MOST_POSITIONS, compare
from moescope.service.traces.routing import Routing, put_together
from moescope.service.traces.spans import span, together
from tests.service.trace_parts import LAYERS, experts_of
from tests.service.traces.stored_traces import worker

TRUTH = experts_of(1, 2000)
OTHER = experts_of(2, 2000)
SLOTS = 6  # of a position


def routing(truth: list[np.ndarray], first: int, end: int, layers: list[MoeLayer] = LAYERS) -> Routing:
    return put_together([worker(truth, [(first, end - first)], layers)])


def mixed(until: int) -> list[np.ndarray]:
    """The truth up to a position, something else from there on."""
    return [np.concatenate([a[:until], b[until:]]) for a, b in zip(TRUTH, OTHER, strict=True)]


def test_the_same_in_any_order_of_experts() -> None:
    turned = [ids[:, ::-1].copy() for ids in TRUTH]
    found = compare(routing(TRUTH, 0, 60), routing(turned, 30, 90), span(30, 60))
    assert found == (30, 30 * SLOTS, 30 * SLOTS, None)


def test_the_last_positions_are_compared_within_a_bound() -> None:
    found = compare(routing(TRUTH, 0, 2000), routing(TRUTH, 0, 2000), span(0, 2000))
    assert (found.positions, found.differs_at) == (MOST_POSITIONS, None)


def test_only_what_both_computed_is_compared() -> None:
    found = compare(routing(TRUTH, 0, 60), routing(TRUTH, 0, 60), together(span(3, 5), span(50, 52)))
    assert (found.positions, found.slots) == (4, 4 * SLOTS)


def test_an_end_that_differs_is_not_outvoted() -> None:
    found = compare(routing(TRUTH, 0, 400), routing(mixed(389), 0, 400), span(0, 400))
    assert found.equal > 0.9 * found.slots
    assert found.differs_at == 389  # 11 positions are 66 slots: the first block from the end


def test_one_position_is_enough_to_differ_and_to_agree() -> None:
    assert compare(routing(TRUTH, 0, 40), routing(OTHER, 0, 40), span(39, 40)).differs_at == 39
    assert compare(routing(TRUTH, 0, 40), routing(TRUTH, 0, 40), span(39, 40)).differs_at is None


def test_near_ties_are_no_difference() -> None:
    """A third of the slots differs, everywhere."""
    near = [ids.copy() for ids in TRUTH]
    near[0][:, 0] = near[1][:, 0] = 15
    found = compare(routing(TRUTH, 0, 100), routing(near, 0, 100), span(0, 100))
    assert found.equal < 0.75 * found.slots
    assert found.differs_at is None


def test_only_layers_that_both_have_are_compared() -> None:
    found = compare(routing(TRUTH[1:], 0, 40, LAYERS[1:]), routing(TRUTH, 0, 40), span(0, 40))
    assert (found.slots, found.equal) == (40 * 4, 40 * 4)
    nothing = compare(
        routing(TRUTH[1:], 0, 40, LAYERS[1:]), routing(TRUTH[:1], 0, 40, LAYERS[:1]), span(0, 40)
    )
    assert nothing == (0, 0, 0, None)
