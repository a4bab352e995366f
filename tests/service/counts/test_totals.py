"""Totals add up and subtract over layouts that differ."""

from __future__ import annotations

import pytest

from moescope.capture.wire import MoeLayer
from moescope.service.counts.layers import Layout
from moescope.service.counts.phase_split import Phase, of_phase
from moescope.service.counts.totals import Totals, no_totals, totals_of
from tests.service.frames import frame


def _totals(counts: dict[int, list[int]]) -> Totals:
    made = frame(counts)
    return totals_of(made, Layout(made.layers))


def test_sum_over_the_union_of_layers() -> None:
    total = _totals({1: [1, 3], 4: [5, 5, 2]}).plus(_totals({0: [2, 2], 4: [1, 1, 2]}))
    assert [layer.layer for layer in total.layout.layers] == [0, 1, 4]
    assert [total.counts_of(i).tolist() for i in range(3)] == [[2, 2], [1, 3], [6, 6, 4]]
    assert total.rows.tolist() == [2, 2, 8]


def test_phases_add_up_over_layouts_that_differ() -> None:
    both = [
        frame({1: [2, 4]}, decode={1: [2, 2]}),
        frame({0: [4, 0], 1: [2, 2]}, decode={0: [2, 0], 1: [1, 1]}),
    ]
    first, second = (totals_of(made, Layout(made.layers)) for made in both)
    total = first.plus(second).plus(_totals({4: [2, 2]}))
    assert total.decode is not None
    assert total.decode.counts.tolist() == [2, 0, 3, 3, 0, 0]
    assert total.decode.rows.tolist() == [1, 3, 0]
    assert of_phase(total.minus(second), Phase.PREFILL).counts.tolist() == [0, 0, 0, 2, 2, 2]


def test_totals_share_what_did_not_change() -> None:
    total = _totals({1: [1, 3]})
    assert total.plus(no_totals(total.layout)).counts is total.counts


def test_difference_with_nothing_is_itself() -> None:
    total = _totals({1: [1, 3]})
    assert total.minus(no_totals(Layout(()))).counts.tolist() == [1, 3]


def test_sums_by_layer() -> None:
    total = _totals({1: [1, 3], 4: [5, 5, 2]})
    assert total.layout.sums(total.counts).tolist() == [4, 12]
    assert Layout(()).sums(total.counts[:0]).tolist() == []


@pytest.mark.parametrize("other", [MoeLayer(4, 8, 2), MoeLayer(4, 3, 1)])
def test_a_layer_of_another_shape_is_a_conflict(other: MoeLayer) -> None:
    layout = Layout([MoeLayer(1, 2, 2), MoeLayer(4, 3, 2)])
    assert layout.conflict(Layout([other])) == (MoeLayer(4, 3, 2), other)
    assert layout.conflict(Layout([MoeLayer(7, 9, 1)])) is None
