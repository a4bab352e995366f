"""Frames that are refused change nothing, and what other services heard is taken in."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from moescope.capture.wire import Producer
from moescope.service.counts.refusals import RefusedError
from moescope.service.live.state import LiveState
from moescope.service.settings import Settings
from moescope.service.store.limits import Retention
from moescope.service.store.records import Posting
from moescope.service.store.sqlite.store import SqliteStore
from moescope.service.windows.window import merge_spans
from tests.service.conftest import Clock
from tests.service.frames import EPOCH, frame, producer

DEPLOYMENT = ("prod", "tiny")


def test_a_frame_that_is_refused_makes_no_room(make_state: Callable[..., LiveState], clock: Clock) -> None:
    state = make_state(max_producers=2, expire_after_s=60)
    state.ingest(frame({0: [1, 1]}, who=producer(server="a")))
    clock.now += 61
    state.ingest(frame({0: [1, 1]}, who=producer(server="b")))
    with pytest.raises(RefusedError, match="more than 2"):
        state.ingest(frame({0: [2**53, 3]}, who=producer(server="c")))
    assert [key[0] for key in state.deployments()] == ["a", "b"]


def _posted(state: LiveState, who: Producer) -> Posting:
    """What a service keeps of a producer."""
    entry = state._ledger.roster.get(who.key)
    assert entry is not None
    return Posting(who.key, entry.received_at - 1, entry.received_at, entry.account.state())


def test_what_another_service_heard_of_a_new_shape_outgrows_who_is_silent_here(
    make_state: Callable[..., LiveState], clock: Clock
) -> None:
    here, there = make_state(), make_state()
    for dp_rank in range(2):
        here.ingest(frame({0: [1, 1]}, who=producer(dp_rank=dp_rank, dp_size=2)))
    old = _posted(here, producer(dp_rank=1))
    clock.now += 20
    there.ingest(frame({0: [1, 1, 2]}, epoch=EPOCH + 10**10))
    here.adopt([_posted(there, producer())])
    assert [item.latest.producer.dp_rank for item in here.producers()] == [0]
    assert merge_spans(here.spans(DEPLOYMENT, None, None)).layers[0].counts.tolist() == [1, 1, 2]
    clock.now += 20  # what is older outgrows nobody, however silent
    here.adopt([old])
    assert [item.latest.producer.dp_rank for item in here.producers()] == [0]


def test_who_lives_here_is_not_outgrown_by_what_another_service_heard(
    make_state: Callable[..., LiveState], clock: Clock
) -> None:
    here, there = make_state(), make_state()
    here.ingest(frame({0: [1, 1]}, who=producer(dp_rank=1, dp_size=2)))
    there.ingest(frame({0: [1, 1, 2]}))
    here.adopt([_posted(there, producer())])
    assert [item.latest.producer.dp_rank for item in here.producers()] == [1]


def test_a_late_frame_of_an_older_start_takes_no_newer_ranks_place(
    make_state: Callable[..., LiveState], clock: Clock
) -> None:
    """Whether this service knows that start or not."""
    ranks = [producer(dp_rank=n, dp_size=2) for n in (0, 1)]
    for knows in (True, False):
        state = make_state()
        if knows:
            state.ingest(frame({0: [1, 1]}, who=ranks[0], uptime_ns=10**9))
        clock.now += 60
        state.ingest(frame({0: [1, 1, 2]}, who=ranks[1], epoch=EPOCH + 10**10, uptime_ns=10**9))
        clock.now += 30
        with pytest.raises(RefusedError, match="a late frame of an older start"):
            state.ingest(frame({0: [3, 3]}, seq=2, who=ranks[0], uptime_ns=50 * 10**9))
        assert [item.latest.producer.dp_rank for item in state.producers()] == [1]


def test_who_goes_on_takes_the_place_of_a_newer_start_that_fell_silent(
    make_state: Callable[..., LiveState], clock: Clock
) -> None:
    state, ranks = make_state(), [producer(dp_rank=n, dp_size=2) for n in (0, 1)]
    state.ingest(frame({0: [1, 1]}, who=ranks[0], uptime_ns=10**9))
    clock.now += 60
    state.ingest(frame({0: [1, 1, 2]}, who=ranks[1], epoch=EPOCH + 10**10, uptime_ns=10**9))
    clock.now += 30
    state.ingest(frame({0: [3, 3]}, seq=2, who=ranks[0], epoch=EPOCH + 2 * 10**10, uptime_ns=10**9))
    assert [item.latest.producer.dp_rank for item in state.producers()] == [0]


def test_what_is_merged_while_no_frame_comes_waits_once(clock: Clock, tmp_path: Path) -> None:
    """Two services had the last frames of an epoch each, one of which its store did not get."""
    with closing(SqliteStore(tmp_path, Retention())) as store:
        here, there = (LiveState(Settings(), clock, store) for _ in range(2))
        here.ingest(frame({0: [8, 8]}, seq=2))
        here.take_records()
        there.ingest(frame({0: [4, 4]}))
        for seq in range(1, 6):
            there.ingest(frame({0: [seq, seq]}, epoch=EPOCH + 10**10, seq=seq))
            here.adopt([_posted(there, producer())])
        [kept] = here.take_records()
        assert isinstance(kept, Posting)
        assert kept.account.totals.counts.tolist() == [13, 13]


def test_the_clock_of_another_service_may_be_ahead(
    make_state: Callable[..., LiveState], clock: Clock
) -> None:
    here, there = make_state(), make_state()
    here.ingest(frame({0: [2, 2]}))
    clock.now += 3600
    there.ingest(frame({0: [4, 4]}, seq=2))
    told = _posted(there, producer())
    clock.now -= 3590
    here.adopt([told])
    clock.now += 30
    assert here.producers()[0].stale, "nothing came for 30 s"
    here.ingest(frame({0: [6, 6]}, seq=3))
    assert here.spans(DEPLOYMENT, clock.now - 20, None)[0].span.delta.tokens == 2
