"""Narrow totals are the same totals in fewer bytes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from moescope.capture.wire import MoeLayer
from moescope.service.counts.ep_slots import EpSlots
from moescope.service.counts.layers import Layout
from moescope.service.counts.narrow import narrowed, wide_nbytes, widened, without_decode_arrays
from moescope.service.counts.totals import Totals, no_decode, no_totals
from moescope.service.live.spans import Snapshot, between


def totals(most: int) -> Totals:
    none = no_totals(Layout([MoeLayer(layer=3, num_experts=4, top_k=2)]))
    counts = np.array([most, 0, 1, 2], dtype=np.int64)
    slots = EpSlots(np.array([[most, 1]], dtype=np.int64), np.array([[5, 0]], dtype=np.int64))
    whole = replace(none, counts=counts, rows=np.array([most], dtype=np.int64), ep_slots=slots, tokens=7)
    return replace(whole, decode=replace(no_decode(whole), counts=counts // 2, tokens=3))


@pytest.mark.parametrize(("most", "nbytes"), [(255, 1), (65_535, 2), (2**32 - 1, 4), (2**32, 8), (2**62, 8)])
def test_each_array_takes_what_its_largest_number_needs(most: int, nbytes: int) -> None:
    wide = totals(most)
    narrow = narrowed(wide)
    assert narrow.counts.itemsize == nbytes
    assert narrow.tokens == 7
    assert narrow.nbytes < wide.nbytes
    assert narrowed(narrow).nbytes == narrow.nbytes
    assert narrow.ep_slots.minus(wide.ep_slots) == wide.ep_slots.minus(narrow.ep_slots)
    assert narrow.ep_slots.over_layers() == wide.ep_slots.over_layers()
    back = widened(narrow)
    assert widened(back) is back
    assert wide_nbytes(narrow) == wide_nbytes(back) == back.nbytes == wide.nbytes
    assert narrow.decode is not None
    assert wide.decode is not None
    assert back.decode is not None
    assert narrow.decode.unplaced.itemsize == narrow.decode.estimated.itemsize == 1
    for one, other in ((back, wide), (back.decode, wide.decode)):
        assert one.counts.dtype == one.ep_slots.whole.dtype == np.int64
        assert one.counts.tolist() == other.counts.tolist()
        assert one.rows.tolist() == other.rows.tolist()
        assert one.ep_slots == other.ep_slots
        assert one.unplaced.tolist() == other.unplaced.tolist()
        assert one.estimated.dtype == np.int64
        assert one.estimated.tolist() == other.estimated.tolist()
    assert narrowed(replace(wide, counts=-wide.counts)).counts.tolist() == (-wide.counts).tolist()


def test_of_what_counters_leave_out_no_array_of_decode_is_held() -> None:
    wide = totals(70_000)
    one, other = without_decode_arrays(wide), without_decode_arrays(wide)
    narrow = narrowed(wide)
    assert one.counts.tolist() == wide.counts.tolist()
    assert one.ep_slots == wide.ep_slots
    assert one.decode is not None
    assert other.decode is not None
    assert narrow.decode is not None
    assert (one.tokens, one.decode.tokens) == (7, 3)
    assert not one.decode.counts.any()
    assert one.decode.counts.shape == narrow.decode.counts.shape
    assert one.decode.counts is other.decode.counts
    assert one.decode.ep_slots.ranks == narrow.ep_slots.ranks
    assert without_decode_arrays(replace(wide, decode=None)).decode is None


def test_a_difference_of_narrow_totals_does_not_wrap() -> None:
    """A count may fall where lives are in conflict, and the phases are taken apart after the difference."""
    first, last = narrowed(totals(200)), narrowed(totals(100))
    span = between(0.0, Snapshot(1.0, first), Snapshot(2.0, last), 1.0, 2.0)
    assert span.delta.counts.tolist() == [-100, 0, 0, 0]
    assert span.delta.counts.dtype == np.int64
    since_birth = replace(span, first=None).delta
    assert since_birth.counts.dtype == np.int64
