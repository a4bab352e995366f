"""Who may join, who is silent, whose layers conflict."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from moescope.service.counts.refusals import RefusedError
from moescope.service.live.state import LiveState
from tests.service.conftest import Clock
from tests.service.frames import frame, producer


def test_a_silent_producer_turns_stale_then_expires(
    make_state: Callable[..., LiveState], clock: Clock
) -> None:
    state = make_state(stale_after_s=15, expire_after_s=100)
    state.ingest(frame({0: [1, 1]}))
    assert state.producers()[0].state == "counting"
    clock.now += 16
    state.ingest(frame({0: [1, 1]}))  # a doubled frame is no sign of life
    found = state.producers()[0]
    assert (found.state, found.age, found.expired) == ("stale", 16, False)
    clock.now += 100
    assert state.producers()[0].expired
    state.ingest(frame({0: [1, 1]}, seq=2, state="disabled", state_reason="layout"))
    assert state.producers()[0].state == "disabled"


def test_a_silent_producer_turns_stale_also_after_the_clock_was_set_back(
    make_state: Callable[..., LiveState], clock: Clock
) -> None:
    state = make_state(stale_after_s=15)
    state.ingest(frame({0: [1, 1]}))
    clock.now -= 3600
    found = state.producers()[0]
    assert (found.age, found.stale, found.received_at) == (0, False, clock.now)
    clock.now += 16
    assert state.producers()[0].stale
    state.ingest(frame({0: [2, 2]}, seq=2))
    assert not state.producers()[0].stale


def test_two_shapes_under_one_name_are_refused_while_both_live(
    make_state: Callable[..., LiveState], clock: Clock
) -> None:
    state = make_state()
    state.ingest(frame({0: [1, 1]}, who=producer(dp_size=2)))
    other = frame({0: [1, 1, 2]}, who=producer(dp_rank=1, dp_size=2))
    with pytest.raises(RefusedError, match=r"MOESCOPE_SERVER"):
        state.ingest(other)
    clock.now += 20
    state.ingest(other)
    assert [item.latest.producer.dp_rank for item in state.producers()] == [1]
    clock.now += 20
    state.ingest(frame({0: [1, 1]}, who=producer(dp_size=2)))  # the other shape is gone with its producer
    state.ingest(frame({0: [1, 2]}, seq=2, who=producer(dp_size=2)))
    assert [item.latest.producer.dp_rank for item in state.producers()] == [0]


def test_producers_are_bounded_and_expired_deployments_make_room(
    make_state: Callable[..., LiveState], clock: Clock
) -> None:
    state = make_state(max_producers=2, expire_after_s=60)
    state.ingest(frame({0: [1, 1]}, who=producer(server="a")))
    clock.now += 50
    state.ingest(frame({0: [1, 1]}, who=producer(server="b")))
    with pytest.raises(RefusedError, match=r"max_producers"):
        state.ingest(frame({0: [1, 1]}, who=producer(server="c")))
    clock.now += 20
    state.ingest(frame({0: [1, 1]}, who=producer(server="c")))
    assert [key[0] for key in state.deployments()] == ["b", "c"]


def test_a_full_house_of_another_shape_makes_room_for_the_new_one(
    make_state: Callable[..., LiveState], clock: Clock
) -> None:
    state = make_state(max_producers=2, expire_after_s=60)
    for dp_rank in range(2):
        state.ingest(frame({0: [1, 1]}, who=producer(dp_rank=dp_rank, dp_size=4)))
    clock.now += 61
    state.ingest(frame({0: [1, 1, 2]}, who=producer(dp_rank=2, dp_size=4)))
    assert [item.latest.producer.dp_rank for item in state.producers()] == [2]
