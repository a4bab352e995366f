"""Hosts whose clocks differ, and workers of 0.1.0, change no state, no window and no join."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import msgspec
import numpy as np
import pytest

from moescope.capture import wire
from moescope.service.live.state import LiveState
from moescope.service.metrics.parts.ranks import groups
from moescope.service.store.records import Posting
from moescope.service.windows.window import merge_spans
from tests.service.conftest import Clock
from tests.service.frames import EPOCH, frame, halves, placement, producer
from tests.service.live.step_frames import S, stepped

DEPLOYMENT = ("prod", "tiny")
YEAR = 365 * 86400 * S
SKEWS = (-YEAR, -600 * S, 600 * S, YEAR)


@pytest.mark.parametrize("skew", SKEWS)
def test_a_rank_that_is_replaced_on_another_host_is_live_at_once(
    make_state: Callable[..., LiveState], clock: Clock, skew: int
) -> None:
    state = make_state()
    old = producer(host="old", dp_size=2, ep_size=2)
    told = {"placement": halves(2, 1), "acknowledged": 0}  # no other service has these counts
    state.ingest(frame({0: [4, 4]}, who=old, seq=9, after_s=3600, **told))
    clock.now += 30
    moved = placement([0, 1], [1, 0], 1, version=0)
    new = producer(host="new", dp_size=1, ep_size=2)
    state.ingest(frame({0: [2, 0]}, who=new, epoch=EPOCH + skew, after_s=20, placement=moved))
    [found] = state.producers()
    assert (found.state, found.latest.producer.host, found.restarts) == ("counting", "new", 1)
    assert found.started_at == clock.now - 20
    window = merge_spans(state.spans(DEPLOYMENT, clock.now - 10, None))
    assert (window.dp_size, window.tokens) == (1, 1)
    assert [held for _, held in state.placements(DEPLOYMENT)] == [moved]
    assert [item.placement.version for item in state.placement_history(DEPLOYMENT)] == [1, 0]
    [group] = groups(state)
    assert group.total.tokens == 5


@pytest.mark.parametrize("skew", SKEWS)
@pytest.mark.parametrize("first", [0, 1])
def test_steps_are_joined_after_the_service_was_restarted(
    make_state: Callable[..., LiveState], clock: Clock, skew: int, first: int
) -> None:
    state = make_state()
    epochs = (EPOCH, EPOCH + skew)
    for n in range(3):
        for rank in (first, 1 - first):
            at = 30.0 + n + (epochs[rank] - EPOCH) / S
            state.ingest(_numbered(stepped(rank, 90 + n, [[4, 0]], epoch=epochs[rank], at=at), n + 1))
            clock.now += 0.5
    [status] = state.joins(DEPLOYMENT).values()
    assert status.reason is None
    cost = state.producers()[0].totals.stragglers
    assert cost is not None
    assert cost.joined == 3


@pytest.mark.parametrize("skew", SKEWS)
def test_a_rank_that_starts_again_alone_is_told_whatever_its_clock_says(
    make_state: Callable[..., LiveState], clock: Clock, skew: int
) -> None:
    state = make_state()
    for rank in (0, 1):
        state.ingest(_numbered(stepped(rank, 0, [[4, 0]], at=30.0), 1))
    clock.now += 30
    state.ingest(_numbered(stepped(1, 0, [[4, 0]], epoch=EPOCH + skew, at=skew / S + 2), 1))
    state.ingest(_numbered(stepped(0, 1, [[4, 0]], at=60.0), 2))
    [status] = state.joins(DEPLOYMENT).values()
    assert status.reason is not None
    assert status.reason.startswith("DP rank 0 had done steps when another rank started again")


def _numbered(made: wire.Frame, seq: int) -> wire.Frame:
    return msgspec.structs.replace(made, seq=seq)


def _as_of_0_1_0(made: wire.Frame) -> wire.Frame:
    """The same frame as a worker of wire minor 4 sends it: without the fields that came later."""
    told: dict[str, Any] = msgspec.msgpack.decode(wire.encode_frame(made))
    told["wire"] = [1, 4]
    told.pop("uptime_ns", None)
    for name in ("pool", "role", "start"):
        told["producer"].pop(name, None)
    return wire.decode_frame(msgspec.msgpack.encode(told))


def test_workers_of_0_1_0_that_claim_one_rank_are_in_conflict_too(
    make_state: Callable[..., LiveState], clock: Clock
) -> None:
    state = make_state()
    for n in range(1, 5):
        for host, epoch in (("a", EPOCH), ("b", EPOCH - YEAR)):
            made = frame(
                {0: [2 * n, 0]}, who=producer(host=host, pid=n // 9 + 3), epoch=epoch, seq=n, after_s=n
            )
            state.ingest(_as_of_0_1_0(made))
            clock.now += 0.5
    [found] = state.producers()
    assert found.state == "conflict"
    assert found.conflict is not None
    assert [item.producer.host for item in found.conflict.lives if item.producer] == ["a", "b"]


def _posting(state: LiveState) -> Posting:
    entry = state._ledger.roster.get(producer().key)
    assert entry is not None
    return Posting(producer().key, entry.received_at - 1, entry.received_at, entry.account.state())


def test_another_model_that_another_service_was_told_counts_though_the_clock_was_set_back(
    make_state: Callable[..., LiveState], clock: Clock
) -> None:
    """Its start seems to be the older one, by what was noted before."""
    here, there = make_state(), make_state()
    for state in (here, there):
        state.ingest(frame({0: [2, 0]}, who=producer(dp_rank=1, dp_size=2)))
    clock.now -= 3600
    for state in (here, there):
        state.producers()
    clock.now += 60
    there.ingest(frame({0: [2, 0, 0]}, top_k=1, epoch=EPOCH + 60 * S))
    here.adopt([_posting(there)])
    assert [item.latest.producer.dp_rank for item in here.producers()] == [0]


def _hold_conflict(
    here: LiveState, there: LiveState, clock: Clock, rounds: Iterable[Iterable[tuple[LiveState, wire.Frame]]]
) -> None:
    """After each round's frames the services hear of each other; in the end both name a conflict."""
    for frames in rounds:
        for state, made in frames:
            state.ingest(made)
            clock.now += 0.5
        here.adopt([_posting(there)])
        there.adopt([_posting(here)])
    for state in (here, there):
        [found] = state.producers()
        assert (found.state, found.totals.counts.tolist()) == ("conflict", [16, 16])


def test_services_that_share_a_store_agree_on_which_life_is_the_newest(
    make_state: Callable[..., LiveState], clock: Clock
) -> None:
    """One heard the former life, the other its successor, whose clock is behind."""
    here, there = make_state(), make_state()
    here.ingest(frame({0: [8, 8]}, who=producer(host="old"), seq=5, after_s=50))
    clock.now += 60
    there.ingest(frame({0: [2, 2]}, who=producer(host="new"), epoch=EPOCH - YEAR))
    for one, other in ((here, there), (there, here)):
        one.adopt([_posting(other)])
        [found] = one.producers()
        assert (found.latest.producer.host, found.totals.tokens, found.stale) == ("new", 10, False)


def test_two_lives_that_each_report_to_a_service_of_their_own_are_named(
    make_state: Callable[..., LiveState], clock: Clock
) -> None:
    here, there = make_state(), make_state()
    a, b = producer(host="a"), producer(host="b")
    rounds = [
        (
            (here, frame({0: [2 * n, 0]}, who=a, seq=n, after_s=n)),
            (there, frame({0: [0, 2 * n]}, who=b, epoch=EPOCH - YEAR, seq=n, after_s=n)),
        )
        for n in range(1, 9)
    ]
    _hold_conflict(here, there, clock, rounds)


def test_two_lives_are_named_whatever_the_order_in_which_services_hear_of_each_other(
    make_state: Callable[..., LiveState], clock: Clock
) -> None:
    here, there = make_state(), make_state()
    old, new = producer(host="a"), producer(host="b")
    rounds = [
        (
            (there, frame({0: [0, 2 * n]}, who=new, epoch=EPOCH + 9 * S, seq=n, uptime_ns=n * S)),
            (here, frame({0: [2 * n, 0]}, who=old, seq=n, after_s=9 + n, uptime_ns=(9 + n) * S)),
        )
        for n in range(1, 9)
    ]
    _hold_conflict(here, there, clock, rounds)


def test_a_conflict_that_is_over_stays_so_when_the_clock_of_the_service_is_set_back(
    make_state: Callable[..., LiveState], clock: Clock
) -> None:
    state = make_state()
    for n in range(1, 100):
        if n == 60:
            clock.now -= 3600
            mended_at = state._ledger.mended_at([producer().key])
            assert mended_at == clock.now  # not in an hour
        state.ingest(frame({0: [2 * n, 0]}, who=producer(host="a"), seq=n, after_s=n, uptime_ns=n * S))
        if 10 < n < 20:
            made = frame(
                {0: [0, 2 * n]}, who=producer(host="b"), epoch=EPOCH + 9 * S, seq=n, uptime_ns=(n - 9) * S
            )
            state.ingest(made)
        clock.now += 1
    [found] = state.producers()
    [(_, until)] = found.conflicts
    assert (found.state, until < clock.now - 60) == ("counting", True)
    window = merge_spans(state.spans(DEPLOYMENT, None, None))
    assert window.conflict is None
    assert window.tokens > 0


def test_switches_of_capture_never_sink_where_services_share_a_store(
    make_state: Callable[..., LiveState], clock: Clock
) -> None:
    here, there = make_state(), make_state()
    for seq, state in ((1, "counting"), (2, "disabled"), (3, "counting"), (4, "disabled"), (5, "counting")):
        here.ingest(frame({0: [2, 2]}, seq=seq, state=state))
        clock.now += 1
    assert here.producers()[0].totals.switches == 4
    there.ingest(frame({0: [2, 2]}, seq=6, state="disabled"))
    told = []
    for one, other in ((here, there), (there, here)):
        one.adopt([_posting(other)])
        told.append(one.producers()[0].totals.switches)
    assert told == [5, 5]


def test_the_law_of_rows_takes_a_worker_that_was_replaced_for_a_new_one(
    make_state: Callable[..., LiveState], clock: Clock
) -> None:
    state = make_state()
    for tp_rank in (0, 1):
        who = producer(tp_rank=tp_rank, tp_size=2)
        state.ingest(frame({0: [4, 0]}, top_k=1, who=who, rows=[4], tokens=8, seq=3))
    clock.now += 40
    for tp_rank in (0, 1):
        who = producer(tp_rank=tp_rank, tp_size=2)
        state.ingest(frame({0: [1, 0]}, top_k=1, who=who, epoch=EPOCH - YEAR, rows=[1], tokens=2))
        clock.now += 1
    laws = [item.law.compared for item in state.producers()]
    assert [None if law is None else int(law.tokens[0]) for law in laws] == [2, 2]
    assert np.array_equal(state.producers()[0].totals.counts, [5, 0])
