"""When the strategy of one kernel a step launches, and for which layers. Launches are noted, not run.

The kernels and the graphs themselves are tested in `tests/gpu`.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
import torch

from moescope.capture.counting.reference import CountBuffers
from moescope.capture.counting.strategy import ReferencesUnsafeError
from moescope.capture.seam.rows import Layout, RowSpan
from moescope.capture.settings.environment import CaptureSettings
from moescope.capture.wire import MoeLayer

SPAN = RowSpan(Layout.SINGLE_DP, 0, 4, 0)
Entries = dict[int, tuple[int, ...]]


class NotedTables:
    """In place of `PointerTables`: a table is the word "graph" or "now", and the entries of a launch."""

    def __init__(self, layers: object, device: object, microbatches: int) -> None:
        self.uploads = 0

    def for_graph(self, entries: Entries) -> tuple[str, Entries]:
        return "graph", entries

    def for_now(self, entries: Entries) -> tuple[str, Entries]:
        return "now", entries

    def upload(self) -> None:
        self.uploads += 1


class Bench:
    """A strategy for three layers; more or less memory for kept ids, and a number of layers, with `make`.

    Attributes:
        capturing: whether a CUDA graph is captured.
        breakable: whether the capture is one that vLLM may interrupt; it goes on while a part runs eagerly.
        launches: where each launch's table is, and which layers of the table have rows of this worker.
    """

    def __init__(self, module: Any) -> None:
        self._module = module
        self.missed = module.MissedLaunchError
        self.capturing = False
        self.breakable = False
        self.launches: list[tuple[str, list[int]]] = []
        self.make()

    def make(self, layers: int = 3, kept_ids_bytes: int = 1 << 20, microbatches: int = 1) -> None:
        made = [MoeLayer(index, 8, 2) for index in range(layers)]
        self.buffers = CountBuffers(made, torch.device("cpu"), microbatches=microbatches)
        self.strategy = self._module.KernelPerStep(self.buffers, kept_ids_bytes)

    def call(self, *ordinals: int, ids: torch.Tensor | None = None, span: RowSpan = SPAN) -> None:
        for ordinal in ordinals:
            mine = torch.zeros(4, 2, dtype=torch.int32) if ids is None else ids
            self.strategy.record(ordinal, mine, span, self.buffers.flat)

    def held(self) -> int:
        """Bytes of the ids that are referenced."""
        passes = self.strategy._passes
        kept = [layer.ids for part in passes for layer in part.kept.values() if layer.ids is not None]
        return sum(ids.numel() * ids.element_size() for ids in kept)


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    made: list[Bench] = []
    kernels: Any = ModuleType("moescope.capture.counting.launch")
    kernels.supports = lambda dtype: not dtype.is_floating_point
    kernels.launch_layer = None
    kernels.launch_step = lambda table, *_: made[0].launches.append((table[0], list(table[1])))
    name = "moescope.capture.counting.per_step"
    monkeypatch.setitem(sys.modules, "moescope.capture.counting.launch", kernels)
    monkeypatch.delitem(sys.modules, name, raising=False)
    module = importlib.import_module(name)
    monkeypatch.setattr(module, "PointerTables", NotedTables)
    monkeypatch.setattr(module, "capture_breaks", lambda: made[0].breakable)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: made[0].capturing)
    made.append(Bench(module))
    yield made[0]
    sys.modules.pop(name, None)


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
    bench.strategy.begin_step()
    assert bench.strategy._tables.uploads == 1


IDS_BYTES = 4 * 2 * 4
"""Of one layer's ids in `Bench.call`."""


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


def captured_with_a_break(bench: Bench, *parts: tuple[bool, list[int]]) -> None:
    """A pass whose graph vLLM interrupts: each part is captured or runs eagerly."""
    bench.breakable = True
    for captured, ordinals in parts:
        bench.capturing = captured
        bench.call(*ordinals)
    bench.breakable = bench.capturing = False


def test_a_part_that_runs_eagerly_within_a_capture_costs_no_layer_its_launch(bench: Bench) -> None:
    bench.make(layers=6)
    bench.call(*range(6))
    bench.launches.clear()
    captured_with_a_break(bench, (True, [0, 1, 2]), (False, [3, 4, 5]))
    assert bench.launches == [("graph", [0]), ("graph", [1]), ("graph", [2])]
    bench.launches.clear()
    bench.strategy.begin_step()  # a replay: only the eager part calls back
    bench.call(3, 4, 5)
    bench.strategy.end_step()
    assert bench.launches == [("now", [3, 4, 5])]


def test_a_part_in_the_middle_runs_eagerly_within_a_capture(bench: Bench) -> None:
    bench.make(layers=4)
    captured_with_a_break(bench, (True, [0]), (False, [1, 2]), (True, [3]))
    captured_with_a_break(bench, (True, [0]), (False, [1, 2]), (True, [3]))
    assert bench.launches == [("graph", [0]), ("graph", [3])] * 2
    bench.launches.clear()
    bench.strategy.begin_step()
    bench.call(1, 2)
    bench.strategy.end_step()
    assert bench.launches == [("now", [1, 2])]


def test_captures_whose_eager_parts_do_not_route_soon_get_one_launch(bench: Bench) -> None:
    captured_with_a_break(bench, (True, [0, 1, 2]))
    captured_with_a_break(bench, (True, [0, 1, 2]))
    assert bench.launches == [("graph", [0]), ("graph", [1]), ("graph", [2]), ("graph", [0, 1, 2])]


def test_an_eager_part_that_shows_late_leaves_the_rest_of_its_graph_whole(bench: Bench) -> None:
    captured_with_a_break(bench, (True, [0, 1, 2]))
    bench.launches.clear()
    captured_with_a_break(bench, (True, [0]), (False, [1]), (True, [2]))
    assert bench.launches == [("graph", [0, 2])]
    captured_with_a_break(bench, (True, [0]), (False, [1]), (True, [2]))
    assert bench.launches[1:] == [("graph", [0]), ("graph", [2])]
    bench.strategy.begin_step()


def half(microbatch: int) -> RowSpan:
    """Rows of one of two microbatches of a step of eight tokens."""
    return RowSpan(Layout.LOCAL, 0, 4, 4 * microbatch, microbatch)


def in_turns(bench: Bench, *turns: tuple[int, list[int]]) -> None:
    """Routing calls of microbatches: which one, and which layers, turn by turn."""
    for microbatch, ordinals in turns:
        bench.call(*ordinals, span=half(microbatch))


TURNS = ((0, [0]), (1, [0]), (0, [1]), (1, [1]), (0, [2]), (1, [2]))


@pytest.mark.parametrize("where", ["now", "graph"])
@pytest.mark.parametrize("turns", [TURNS, ((0, [0, 1, 2]), (1, [0, 1, 2]))], ids=["in turns", "one by one"])
def test_each_microbatch_is_launched_by_its_own_last_layer(
    bench: Bench, where: str, turns: tuple[tuple[int, list[int]], ...]
) -> None:
    bench.make(microbatches=2)
    bench.capturing = where == "graph"
    launched: list[int] = []
    for turn in turns:
        in_turns(bench, turn)
        launched.append(len(bench.launches))
    assert bench.launches == [(where, [0, 1, 2])] * 2
    assert launched[-2:] == [1, 2]
    bench.capturing = False
    bench.strategy.begin_step()  # nothing was missed


def test_the_entries_of_a_launch_are_those_of_one_microbatch(bench: Bench) -> None:
    bench.make(microbatches=2)
    entries: list[Entries] = []
    bench.strategy._tables.for_now = lambda found: (entries.append(found), ("now", found))[1]
    in_turns(bench, *TURNS)
    first_token, microbatch = 2, 7
    assert [{entry[first_token] for entry in found.values()} for found in entries] == [{0}, {4}]
    assert [{entry[microbatch] for entry in found.values()} for found in entries] == [{0}, {1}]


def test_the_end_of_a_step_launches_what_is_left_of_each_microbatch(bench: Bench) -> None:
    bench.make(microbatches=2)
    bench.strategy.begin_step()
    in_turns(bench, (0, [0, 1]), (1, [0]))
    bench.strategy.end_step()
    assert bench.launches == [("now", [0, 1]), ("now", [0])]


def test_a_step_that_is_not_split_follows_one_that_is(bench: Bench) -> None:
    bench.make(microbatches=2)
    for _ in range(2):
        bench.strategy.begin_step()
        in_turns(bench, *TURNS)
        bench.strategy.end_step()
        bench.strategy.begin_step()
        bench.call(0, 1, 2)
        bench.strategy.end_step()
    assert bench.launches == [("now", [0, 1, 2])] * 6


def test_a_graph_that_lacks_the_launch_of_one_microbatch_is_an_error(bench: Bench) -> None:
    bench.make(microbatches=2)
    bench.capturing = True
    in_turns(bench, (0, [0, 1, 2]), (1, [0, 1]))
    bench.capturing = False
    with pytest.raises(bench.missed, match=r"without counting layers \[0, 1\]"):
        bench.strategy.begin_step()


def test_the_last_layer_is_learnt_over_all_microbatches(bench: Bench) -> None:
    bench.make(microbatches=2)
    in_turns(bench, (0, [0]), (1, [0]), (0, [1]), (1, [1]), (0, [0]), (1, [0]))  # layer 2 never runs
    bench.capturing = True
    in_turns(bench, (0, [0]), (1, [0]), (0, [1]), (1, [1]))
    assert bench.launches == [("graph", [0, 1])] * 2


def test_microbatches_whose_router_writes_to_one_place_are_refused(bench: Bench) -> None:
    """The second one would overwrite what the launch of the first one has yet to read."""
    bench.make(microbatches=2)
    shared = torch.zeros(4, 2, dtype=torch.int32)
    bench.call(0, ids=shared, span=half(0))
    with pytest.raises(ReferencesUnsafeError, match="layer 0 writes its ids where"):
        bench.call(0, ids=shared, span=half(1))


def test_the_bound_is_of_all_microbatches_together(bench: Bench) -> None:
    bench.make(layers=6, kept_ids_bytes=3 * IDS_BYTES, microbatches=2)
    bench.strategy.begin_step()
    for ordinal in range(6):
        for microbatch in range(2):
            bench.call(ordinal, span=half(microbatch))
            assert bench.held() <= 3 * IDS_BYTES
    bench.strategy.end_step()
    assert sorted(ordinal for _, layers in bench.launches for ordinal in layers) == sorted([*range(6)] * 2)
