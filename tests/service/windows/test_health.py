"""Conservation and coverage."""

from __future__ import annotations

import pytest

from moescope.capture import wire
from moescope.service.live.producers import ProducerState
from moescope.service.live.row_laws import BOUND_AFTER_S
from moescope.service.live.state import LiveState
from moescope.service.settings import Settings
from moescope.service.windows.health import Mismatch, absent_layers, mismatches, stages, unseen_layers
from tests.service.frames import frame, producer
from tests.service.windows.fleet import Fleet


@pytest.fixture
def fleet() -> Fleet:
    return Fleet()


def _producers(*frames: wire.Frame) -> list[ProducerState]:
    state = LiveState(Settings(), lambda: 1_700_000_100.0)
    for made in frames:
        state.ingest(made)
    return state.producers()


def test_counts_that_add_up_have_no_mismatch() -> None:
    found = _producers(frame({0: [3, 5], 2: [8, 0]}))
    assert mismatches(found[0].latest) == []
    assert [(stage.state, stage.reason, stage.broken) for stage in stages(found)] == [("holds", None, ())]


def test_slots_that_are_not_rows_times_top_k_are_named() -> None:
    found = mismatches(_producers(frame({0: [4, 4], 2: [8, 1]}, rows=[4, 4], tokens=4))[0].latest)
    assert found == [Mismatch(layer=2, law="slots", expected=8, got=9)]


def test_with_one_tp_rank_rows_that_are_not_tokens_are_named() -> None:
    [stage] = stages(_producers(frame({0: [4, 4], 1: [8, 8]}, tokens=8)))
    assert (stage.state, stage.broken) == ("broken", (Mismatch(0, "rows", expected=8, got=4),))


def test_rows_add_up_over_tp_workers_at_one_step(fleet: Fleet) -> None:
    fleet.tell(0, 8, {0: 52, 1: 100}, tokens=100)  # layer 0 is sharded, layer 1 replicated
    fleet.tell(1, 8, {0: 48, 1: 0}, tokens=100)
    stage = fleet.stage()
    assert (stage.state, stage.compared_steps, stage.compared_tokens) == ("holds", 8, 100)


def test_a_tp_worker_that_drops_a_layer_shows_at_the_next_common_step(fleet: Fleet) -> None:
    fleet.tell(0, 8, {0: 52, 1: 52}, tokens=100)
    fleet.tell(1, 8, {0: 48, 1: 48}, tokens=100)
    assert fleet.stage().state == "holds"
    fleet.tell(0, 16, {0: 104, 1: 104}, tokens=200)
    fleet.tell(1, 16, {0: 96, 1: 95}, tokens=200)  # one token is lost
    assert fleet.broken() == [Mismatch(1, "rows", expected=200, got=199)]


def test_a_rule_that_counts_only_rank_0s_shard_shows(fleet: Fleet) -> None:
    fleet.tell(0, 4, {0: 50, 1: 50}, tokens=100)
    fleet.tell(1, 4, {0: 0, 1: 0}, tokens=100)
    assert [(found.layer, found.got) for found in fleet.broken()] == [(0, 50), (1, 50)]


def test_rows_that_are_counted_twice_show(fleet: Fleet) -> None:
    fleet.tell(0, 4, {0: 100}, tokens=100)
    fleet.tell(1, 4, {0: 100}, tokens=100)
    assert fleet.broken() == [Mismatch(0, "rows", expected=100, got=200)]


def test_decode_that_bypasses_the_callback_shows_by_phase(fleet: Fleet) -> None:
    fleet.tell(0, 9, {0: 60}, tokens=100, decode={0: 0}, decode_tokens=40, tp_size=1)
    assert fleet.broken() == [Mismatch(0, "rows", 100, 60), Mismatch(0, "decode_rows", 40, 0)]


def test_phases_that_are_mixed_up_show_though_all_rows_are_there(fleet: Fleet) -> None:
    fleet.tell(0, 9, {0: 100}, tokens=100, decode={0: 60}, decode_tokens=40, tp_size=1)
    assert fleet.broken() == [Mismatch(0, "prefill_rows", 60, 40), Mismatch(0, "decode_rows", 40, 60)]


def test_snapshots_of_different_steps_raise_no_alarm_while_the_sum_is_possible(fleet: Fleet) -> None:
    fleet.tell(0, 8, {0: 50}, tokens=100)
    fleet.tell(1, 8, {0: 50}, tokens=100)
    fleet.clock.now += BOUND_AFTER_S
    for step in range(9, 30, 2):  # the workers' snapshots never meet
        fleet.tell(0, step, {0: 50 * step // 8}, tokens=100 * step // 8)
        fleet.tell(1, step + 1, {0: 50 * (step + 1) // 8}, tokens=100 * (step + 1) // 8)
        assert fleet.broken() == []


def test_snapshots_of_different_steps_show_what_no_order_of_them_explains(fleet: Fleet) -> None:
    fleet.tell(0, 8, {0: 50, 1: 50}, tokens=100)
    fleet.tell(1, 8, {0: 50, 1: 50}, tokens=100)
    fleet.clock.now += BOUND_AFTER_S
    fleet.tell(0, 15, {0: 95, 1: 55}, tokens=190)
    fleet.tell(1, 16, {0: 100, 1: 60}, tokens=200)
    assert fleet.broken() == [Mismatch(1, "rows", expected=190, got=115)]
    fleet.tell(0, 16, {0: 100, 1: 60}, tokens=200)  # the exact number replaces the bound
    assert fleet.broken() == [Mismatch(1, "rows", expected=200, got=120)]


def test_what_was_lost_once_stays_said(fleet: Fleet) -> None:
    fleet.tell(0, 1, {0: 9}, tokens=10, tp_size=1)
    fleet.tell(0, 2, {0: 19}, tokens=20, tp_size=1)
    assert fleet.broken() == [Mismatch(0, "rows", 20, 19)]


def test_each_pipeline_stage_is_compared_by_itself(fleet: Fleet) -> None:
    fleet.tell(0, 8, {0: 100}, tokens=100, tp_size=1, pp_rank=0, pp_size=2)
    fleet.tell(0, 7, {1: 40}, tokens=90, tp_size=1, pp_rank=1, pp_size=2)
    assert [stage.state for stage in stages(fleet.state.producers())] == ["holds", "broken"]
    assert fleet.broken() == [Mismatch(1, "rows", 90, 40)]


def test_a_pipeline_stage_that_never_reported_is_unknown(fleet: Fleet) -> None:
    fleet.tell(0, 8, {0: 100}, tokens=100, tp_size=1, pp_rank=0, pp_size=2)
    stage = fleet.stage(1)
    assert (stage.state, stage.reason) == ("unknown", "no worker of pipeline stage 1 has reported")


def test_a_tp_worker_that_never_reported_is_neither_a_breach_nor_health(fleet: Fleet) -> None:
    fleet.tell(0, 8, {0: 50, 1: 0}, tokens=100)
    stage = fleet.stage()
    assert (stage.state, stage.broken) == ("unknown", ())
    assert stage.reason == "TP rank 1 has not reported since the start (TP size 2)"
    assert unseen_layers(fleet.state.producers()) == []


def test_a_tp_worker_that_falls_silent_makes_it_unknown(fleet: Fleet) -> None:
    fleet.tell(0, 8, {0: 50}, tokens=100)
    fleet.tell(1, 8, {0: 50}, tokens=100)
    fleet.clock.now += 20
    fleet.tell(0, 80, {0: 500}, tokens=1000)
    stage = fleet.stage()
    assert (stage.state, stage.reason) == ("unknown", "TP rank 1 has been silent for 20 s")


def test_a_worker_that_stopped_counting_makes_it_unknown(fleet: Fleet) -> None:
    fleet.tell(0, 8, {0: 50}, tokens=100)
    fleet.tell(1, 8, {0: 50}, tokens=100)
    fleet.tell(1, 8, {0: 57}, tokens=100, state="disabled", state_reason="a fault")  # in mid-step
    fleet.tell(0, 16, {0: 100}, tokens=200)
    stage = fleet.stage()
    assert (stage.state, stage.reason) == ("unknown", "TP rank 1 does not count: a fault")


def test_snapshots_that_never_meet_are_said_after_a_minute(fleet: Fleet) -> None:
    fleet.tell(0, 8, {0: 50}, tokens=100)
    fleet.tell(1, 8, {0: 50}, tokens=100)
    for step in range(10, 24, 2):
        fleet.clock.now += 10
        fleet.tell(0, step, {0: 50 * step // 8}, tokens=100 * step // 8)
        fleet.tell(1, step + 1, {0: 50 * (step + 1) // 8}, tokens=100 * (step + 1) // 8)
    stage = fleet.stage()
    assert stage.state == "unknown"
    assert stage.reason is not None
    assert "no snapshots of one step for 7" in stage.reason


def test_an_idle_server_is_healthy_for_as_long_as_it_is_idle(fleet: Fleet) -> None:
    fleet.tell(0, 0, {0: 0}, tokens=0)
    fleet.tell(1, 0, {0: 0}, tokens=0)
    fleet.clock.now += 3600
    fleet.tell(0, 0, {0: 0}, tokens=0, idle_steps=0)
    fleet.tell(1, 0, {0: 0}, tokens=0, idle_steps=0)
    assert fleet.stage().state == "holds"


def test_a_restart_is_compared_from_zero_and_not_with_former_frames(fleet: Fleet) -> None:
    fleet.tell(0, 1, {0: 5}, tokens=5)
    fleet.tell(1, 1, {0: 0}, tokens=5)
    again = int(fleet.clock.now * 1e9)
    fleet.clock.now += 5
    # The same first request after the restart: the former frame of TP rank 1 must not answer for it.
    fleet.tell(0, 1, {0: 3}, tokens=5, epoch=again)
    assert fleet.stage().state == "unknown"
    fleet.tell(1, 1, {0: 2}, tokens=5, epoch=again)
    assert fleet.stage().state == "holds"


def test_a_layer_that_one_tp_worker_does_not_cover(fleet: Fleet) -> None:
    fleet.tell(0, 8, {0: 50, 1: 100, 2: 50}, tokens=100)
    fleet.tell(1, 8, {0: 50}, tokens=100)
    stage = fleet.stage()
    assert stage.state == "unknown"  # layer 1 is whole without it, layer 2 is not
    assert stage.reason is not None
    assert stage.reason.startswith("layers [2] are covered on some of the TP ranks only")


def test_without_phases_only_the_whole_is_compared(fleet: Fleet) -> None:
    fleet.tell(0, 8, {0: 50}, tokens=100, decode={0: 10}, decode_tokens=20)
    fleet.tell(1, 8, {0: 50}, tokens=100)
    assert fleet.stage().state == "holds"


def test_a_layer_is_unseen_when_no_tp_rank_saw_it() -> None:
    first = frame({0: [4, 4], 1: [0, 0], 2: [0, 0]}, tokens=4, who=producer(tp_size=2))
    second = frame({0: [0, 0], 1: [0, 0], 2: [4, 4]}, tokens=4, who=producer(tp_rank=1, tp_size=2))
    found = _producers(first, second)
    assert unseen_layers(found) == [1]
    assert stages(found)[0].broken == ()  # it is said once


def test_a_layer_is_not_unseen_before_all_tp_ranks_have_computed() -> None:
    first = frame({0: [0, 0]}, tokens=0, who=producer(tp_size=2))
    second = frame({0: [0, 0]}, tokens=4, who=producer(tp_rank=1, tp_size=2))
    assert unseen_layers(_producers(first, second)) == []


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
