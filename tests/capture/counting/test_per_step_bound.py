"""What happens to the launches of one kernel a step where kept ids would take more than they may."""

from __future__ import annotations

import sys

import pytest
import torch

from moescope.capture.counting.strategy import ReferencesUnsafeError
from moescope.capture.seam.rows import Layout, RowSpan
from moescope.capture.settings.environment import CaptureSettings
from tests.capture.counting.noted_launches import IDS_BYTES, SPAN, Bench


def test_beyond_the_bound_the_launch_comes_early_and_each_layer_is_launched_once(bench: Bench) -> None:
    bench.make(layers=8, kept_ids_bytes=3 * IDS_BYTES)
    bench.strategy.begin_step()
    bench.call(*range(8))
    bench.strategy.end_step()
    assert bench.launches == [("now", [0, 1, 2, 3]), ("now", [4, 5, 6, 7])]


@pytest.mark.parametrize("capturing", [False, True])
@pytest.mark.parametrize("kept", [0, 1, 2, 5, 7, 100])
def test_ids_never_take_more_than_the_bound(bench: Bench, kept: int, capturing: bool) -> None:
    bench.make(layers=9, kept_ids_bytes=kept * IDS_BYTES)
    bench.capturing = capturing
    for _ in range(3):
        for ordinal in range(9):
            bench.call(ordinal)
            assert bench.held() <= kept * IDS_BYTES
    where = "graph" if capturing else "now"
    assert [place for place, _ in bench.launches] == [where] * len(bench.launches)
    assert [ordinal for _, layers in bench.launches for ordinal in layers] == [*range(9)] * 3
    assert len(bench.launches) == 3 * -(-9 // (kept + 1))


def test_the_worst_case_of_the_documents_keeps_32_mib_of_487_mb(bench: Bench) -> None:
    """58 layers, 65,536 tokens of each of four DP ranks by allgather, top-8, int32."""
    layers, rows, top_k = 58, 4 * 65_536, 8
    assert layers * rows * top_k * 4 == 486_539_264
    bench.make(layers, CaptureSettings().kept_ids_bytes)
    bench.strategy.begin_step()
    most = 0
    for ordinal in range(layers):
        ids = torch.empty(rows, top_k, dtype=torch.int32)  # untouched: it takes addresses, and no memory
        bench.call(ordinal, ids=ids, span=RowSpan(Layout.ALL_DP, 65_536, 65_536, 0))
        most = max(most, bench.held())
    bench.strategy.end_step()
    assert most == 32 << 20
    assert [ordinal for _, launched in bench.launches for ordinal in launched] == [*range(layers)]
    assert len(bench.launches) == 12


def test_rows_that_another_worker_counts_are_not_kept(bench: Bench) -> None:
    ids = torch.zeros(4, 2, dtype=torch.int32)
    before = sys.getrefcount(ids)
    bench.call(0, ids=ids, span=RowSpan(Layout.SINGLE_DP, 0, 0, 0))
    assert sys.getrefcount(ids) == before


def test_a_slice_of_columns_holds_the_whole_rows(bench: Bench) -> None:
    bench.make(layers=4, kept_ids_bytes=IDS_BYTES)
    wide = torch.zeros(4, 64, dtype=torch.int32)
    bench.call(0, ids=wide[:, :2])
    assert bench.launches == [("now", [0])]
    bench.call(1, ids=torch.zeros(2, 4, dtype=torch.int32).t())  # a transposed tensor is as large as it is
    assert bench.launches == [("now", [0])]


def test_a_pass_that_ended_after_an_early_launch_teaches_the_last_layer(bench: Bench) -> None:
    bench.make(layers=6, kept_ids_bytes=IDS_BYTES)
    bench.call(0, 1, 2)  # layers 3 to 5 never run
    bench.call(0)
    bench.capturing = True
    bench.strategy.record(0, torch.zeros(4, 2, dtype=torch.int32), SPAN, bench.buffers.flat)
    bench.call(1, 2)
    assert bench.launches == [("now", [0, 1]), ("graph", [0, 1]), ("graph", [2])]
    bench.capturing = False
    bench.strategy.begin_step()


def test_a_layer_that_runs_twice_after_an_early_launch_is_launched_twice(bench: Bench) -> None:
    bench.make(layers=4, kept_ids_bytes=IDS_BYTES)
    bench.strategy.begin_step()
    bench.call(0, 1, 1, 2, 3)
    bench.strategy.end_step()
    assert sorted(ordinal for _, layers in bench.launches for ordinal in layers) == [0, 1, 1, 2, 3]


def test_memory_that_an_early_launch_freed_may_be_used_again(bench: Bench) -> None:
    bench.make(layers=4, kept_ids_bytes=0)
    place = torch.zeros(4 * 2, dtype=torch.int32)
    address = place.data_ptr()
    for ordinal in range(4):
        ids = torch.from_numpy(place.numpy()).view(4, 2)  # a storage of its own at the same address
        assert ids.data_ptr() == address
        bench.call(ordinal, ids=ids)
        del ids
    assert [layers for _, layers in bench.launches] == [[0], [1], [2], [3]]


def test_ids_in_one_place_are_refused_after_an_early_launch_too(bench: Bench) -> None:
    """Else a pass of the profiling, which is large, would not show what a small one needs to know."""
    bench.make(layers=4, kept_ids_bytes=0)
    shared = torch.zeros(4, 2, dtype=torch.int32)
    bench.call(0, ids=shared[:])
    with pytest.raises(ReferencesUnsafeError, match="layer 1 writes its ids where an earlier layer's are"):
        bench.call(1, ids=shared[:])
