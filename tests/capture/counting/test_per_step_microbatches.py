"""Launches of one kernel a step where vLLM splits steps into microbatches, which run in turns."""

from __future__ import annotations

import pytest
import torch

from moescope.capture.counting.strategy import ReferencesUnsafeError
from moescope.capture.seam.rows import Layout, RowSpan
from tests.capture.counting.noted_launches import IDS_BYTES, Bench, Entries


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
