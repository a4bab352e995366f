"""Conservation and coverage."""

from __future__ import annotations

from moescope.capture import wire
from moescope.service.live.producers import ProducerState
from moescope.service.live.state import LiveState
from moescope.service.settings import Settings
from moescope.service.windows.health import Mismatch, absent_layers, mismatches, unseen_layers
from tests.service.frames import frame, producer


def _producers(*frames: wire.Frame) -> list[ProducerState]:
    state = LiveState(Settings(), lambda: 1_700_000_100.0)
    for made in frames:
        state.ingest(made)
    return state.producers()


def test_counts_that_add_up_have_no_mismatch() -> None:
    assert mismatches(_producers(frame({0: [3, 5], 2: [8, 0]}))[0].latest) == []


def test_slots_that_are_not_rows_times_top_k_are_named() -> None:
    found = mismatches(_producers(frame({0: [4, 4], 2: [8, 1]}, rows=[4, 4], tokens=4))[0].latest)
    assert found == [Mismatch(layer=2, law="slots", expected=8, got=9)]


def test_rows_that_are_not_tokens_are_named_unless_tp_shares_them() -> None:
    assert mismatches(_producers(frame({0: [4, 4]}, tokens=8))[0].latest) == [
        Mismatch(layer=0, law="rows", expected=8, got=4)
    ]
    assert mismatches(_producers(frame({0: [4, 4]}, tokens=8, who=producer(tp_size=2)))[0].latest) == []


def test_a_layer_is_unseen_when_no_tp_rank_saw_it() -> None:
    first = frame({0: [4, 4], 1: [0, 0], 2: [0, 0]}, tokens=4, who=producer(tp_size=2))
    second = frame({0: [0, 0], 1: [0, 0], 2: [4, 4]}, tokens=4, who=producer(tp_rank=1, tp_size=2))
    assert unseen_layers(_producers(first, second)) == [1]


def test_tp_ranks_need_not_have_the_same_layers() -> None:
    first = frame({0: [4, 4], 2: [0, 0]}, tokens=4, who=producer(tp_size=2))
    second = frame({2: [4, 4], 3: [0, 0]}, tokens=4, who=producer(tp_rank=1, tp_size=2))
    assert unseen_layers(_producers(first, second)) == [3]


def test_nothing_is_unseen_while_idle() -> None:
    assert unseen_layers(_producers(frame({0: [0, 0]}))) == []


def test_absent_layers_are_merged_over_producers_and_those_without_a_number_come_last() -> None:
    first = frame({0: [1, 1]}, absent=[wire.UncoveredLayer(7, "a"), wire.UncoveredLayer(3, "b")])
    second = frame(
        {3: [1, 1]},
        who=producer(dp_rank=1, dp_size=2),
        absent=[wire.UncoveredLayer(7, "c")],
        absent_unnamed="others",
    )
    newest = [item.latest for item in _producers(first, second)]
    assert list(absent_layers(newest).items()) == [(3, "b"), (7, "a"), (None, "others")]
    assert list(absent_layers(newest, {0, 3})) == [7, None]
