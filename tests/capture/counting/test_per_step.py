"""When the strategy of one kernel a step launches, and for which layers. Launches are noted, not run.

The kernels and the graphs themselves are tested in `tests/gpu`.
"""

from __future__ import annotations

import sys

import pytest
import torch

from moescope.capture.counting.strategy import ReferencesUnsafeError
from moescope.capture.seam.rows import Layout, RowSpan
from tests.capture.counting.noted_launches import Bench


def test_the_last_layers_call_launches_all(bench: Bench) -> None:
    bench.call(0, 1)
    assert bench.launches == []
    bench.call(2)
    bench.call(0, 1, 2)
    assert bench.launches == [("now", [0, 1, 2])] * 2


def test_a_captured_pass_is_launched_within_the_graph(bench: Bench) -> None:
    bench.capturing = True
    bench.call(0, 1, 2)
    assert bench.launches == [("graph", [0, 1, 2])]


def test_the_end_of_an_eager_step_launches_what_is_left(bench: Bench) -> None:
    bench.strategy.begin_step()
    bench.call(0, 1)
    bench.strategy.end_step()
    assert bench.launches == [("now", [0, 1])]


def test_what_a_dummy_pass_left_is_not_counted_in_the_next_step(bench: Bench) -> None:
    bench.call(0, 1)
    bench.strategy.begin_step()
    bench.call(0, 1, 2)
    bench.strategy.end_step()
    assert bench.launches == [("now", [0, 1, 2])]


def test_which_layer_is_the_last_is_learnt_before_the_capture(bench: Bench) -> None:
    bench.call(0, 1)  # layer 2 never runs
    bench.call(0)
    bench.call(1)
    assert bench.launches == [("now", [0, 1])]
    bench.capturing = True
    bench.call(0, 1)
    assert bench.launches[1:] == [("graph", [0, 1])]


def test_a_layer_beyond_the_learnt_last_one_is_launched_too(bench: Bench) -> None:
    bench.call(0, 1, 0, 1)
    bench.call(2)
    bench.call(0, 1, 2)
    assert bench.launches == [("now", [0, 1]), ("now", [2]), ("now", [0, 1, 2])]


def test_a_layer_that_runs_twice_in_a_step_is_launched_twice(bench: Bench) -> None:
    bench.strategy.begin_step()
    bench.call(0, 0, 1, 1, 2)
    bench.strategy.end_step()
    assert bench.launches == [("now", [0]), ("now", [0, 1]), ("now", [1, 2])]


def test_a_graph_without_its_launch_is_an_error_at_the_next_step(bench: Bench) -> None:
    bench.capturing = True
    bench.call(0, 1)
    bench.capturing = False
    with pytest.raises(bench.missed, match=r"a CUDA graph was captured without counting layers \[0, 1\]"):
        bench.strategy.begin_step()


def test_a_warm_up_that_ended_early_is_not_launched_within_the_next_graph(bench: Bench) -> None:
    bench.call(0, 1)
    bench.capturing = True
    bench.call(0, 1, 2)
    assert bench.launches == [("graph", [0, 1, 2])]


def test_ids_in_one_place_for_two_layers_are_refused(bench: Bench) -> None:
    shared = torch.zeros(4, 2, dtype=torch.int32)
    bench.call(0, ids=shared)
    with pytest.raises(ReferencesUnsafeError, match="layer 1 writes its ids where an earlier layer's are"):
        bench.call(1, ids=shared)


def test_a_layer_that_runs_twice_in_a_step_and_writes_in_one_place_is_refused_before_it_is_counted(
    bench: Bench,
) -> None:
    sink = torch.zeros(8, 2, dtype=torch.int16)
    bench.call(0, 1, 2)  # outside of steps each pass writes to the same place
    bench.strategy.begin_step()
    bench.call(0, ids=sink[:4])
    with pytest.raises(ReferencesUnsafeError, match="layer 0 runs twice in a step"):
        bench.call(0, ids=sink[:3])
    assert [place for place, _ in bench.launches] == ["now"]  # that of the pass before


def test_references_are_kept_until_the_launch_and_no_longer(bench: Bench) -> None:
    ids = torch.zeros(4, 2, dtype=torch.int32)
    before = sys.getrefcount(ids)
    bench.call(0, ids=ids)
    assert sys.getrefcount(ids) > before
    bench.call(1, 2)
    assert sys.getrefcount(ids) == before


def test_rows_that_another_worker_counts_are_not_launched(bench: Bench) -> None:
    bench.call(0, 1, 2, span=RowSpan(Layout.SINGLE_DP, 0, 0, 0))
    assert bench.launches == []


def test_layers_with_other_types_of_ids_are_launched_apart(bench: Bench) -> None:
    bench.call(0)
    bench.call(1, ids=torch.zeros(4, 2, dtype=torch.int64))
    bench.call(2)
    assert bench.launches == [("now", [0, 2]), ("now", [1])]


@pytest.mark.parametrize(
    ("ids", "message"), [(torch.zeros(4), r"\[n, top_k\], got shape \(4,\)"), (torch.zeros(4, 2), "integers")]
)
def test_what_the_kernel_cannot_read_is_refused(bench: Bench, ids: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        bench.call(0, ids=ids)


def test_tables_of_new_graphs_are_brought_to_the_device_before_a_step(bench: Bench) -> None:
    bench.capturing = True
    bench.call(0, 1, 2)
    bench.capturing = False
    for _ in range(2):
        bench.strategy.begin_step()
        assert bench.strategy._tables.uploads == 1
        bench.strategy.end_step()
