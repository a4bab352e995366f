"""Straggler cost of a window, from sums that were worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from moescope.capture.wire import MoeLayer
from moescope.service.counts.layers import Layout
from moescope.service.counts.step_costs import stragglers_of
from moescope.service.counts.totals import Totals, no_totals
from moescope.service.live.state import LiveState
from moescope.service.settings import Settings
from moescope.service.windows.step_window import cost_in, is_whole, straggler_cost, windowed_sums
from moescope.service.windows.window import merge_spans
from tests.service.frames import frame, halves, producer

# Steps by layers by EP ranks: in layer 0 rank 0 is hot, then rank 1; layer 2 is even, then idle.
LOADS = np.array([[[8, 2], [3, 3]], [[1, 9], [0, 0]]])


def _credited(layers: tuple[int, ...], loads: np.ndarray, joined: int, incomplete: int = 0) -> Totals:
    layout = Layout([MoeLayer(layer, 4, 2) for layer in layers])
    return no_totals(layout).with_stragglers(layout, stragglers_of(loads, joined, incomplete))


def test_the_cost_is_of_single_steps() -> None:
    cost = cost_in([(0, _credited((0, 2), LOADS, joined=3, incomplete=2))])
    first, second = cost.layers
    assert (first.layer, first.max_slots, first.mean_slots, first.busy_steps) == (0, 17, 10, 2)
    assert (second.layer, second.max_slots, second.mean_slots, second.busy_steps) == (2, 3, 3, 1)
    assert cost.sums == (20, 13)
    assert cost.hottest.tolist() == [1.5, 1.5]  # of layer 2's only step each is half of the busiest
    assert first.caused.tolist() == [3, 4]  # 8 - 5, then 9 - 5
    assert cost.caused.tolist() == [3, 4]  # nobody waits in layer 2, whose ranks are even
    assert (cost.stages[0].joined, cost.stages[0].incomplete) == (3, 2)
    assert straggler_cost(*cost.sums) == pytest.approx(1 - 13 / 20)


def test_stages_have_layers_of_their_own_and_who_joined_nothing_has_none() -> None:
    cost = cost_in(
        [
            (1, _credited((5,), LOADS[:, :1], joined=2)),
            (0, _credited((0, 2), LOADS, joined=3)),
            (2, _credited((7,), LOADS[:0, :1], joined=0, incomplete=4)),
            (3, no_totals(Layout([MoeLayer(9, 4, 2)]))),
        ]
    )
    assert [item.layer for item in cost.layers] == [0, 2, 5]
    assert list(cost.stages) == [0, 1, 2]
    assert (cost.stages[2].joined, cost.stages[2].incomplete) == (0, 4)
    nothing = cost_in([])
    assert (nothing.layers, nothing.sums, nothing.hottest.tolist()) == ((), (0, 0), [])


@pytest.mark.parametrize(("most", "mean", "cost"), [(0, 0, None), (10, 10, 0), (10, 2.5, 0.75), (3, 3.1, 0)])
def test_without_work_there_is_no_cost_and_rounding_makes_none_negative(
    most: float, mean: float, cost: float | None
) -> None:
    assert straggler_cost(most, mean) == cost


def test_sums_of_the_window_are_those_of_the_layers_that_are_seen_whole() -> None:
    state = LiveState(Settings(), lambda: 1_700_000_100.0)
    for rank, layers in enumerate(({0: [8, 0, 2, 0], 2: [4, 0, 0, 0]}, {0: [2, 0, 0, 4], 2: [0, 0, 0, 0]})):
        who = producer(dp_rank=rank, dp_size=2, ep_rank=rank, ep_size=2)
        state.ingest(frame(layers, who=who, placement=halves(4, 2)))
    window = merge_spans(state.spans(("prod", "tiny"), None, None))
    assert [is_whole(layer) for layer in window.layers] == [True, False]  # rank 1 saw nothing in layer 2
    assert windowed_sums(window) == (10, 8)
    assert windowed_sums(window, only={0}) == (10, 8)
    assert windowed_sums(window, only={2}) == (0, 0)
