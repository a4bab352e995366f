"""What one of several services was told is on all of them, and stays, whatever became of the others."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from moescope.capture.wire import Frame
from moescope.service.drift.baseline import Baseline, removal
from moescope.service.live.state import LiveState
from moescope.service.settings import Settings
from moescope.service.store.clickhouse.store import ClickHouseStore
from moescope.service.windows.window import merge_spans
from tests.service.conftest import Clock
from tests.service.frames import EPOCH, frame, placement, producer
from tests.service.store.accounts import LATER
from tests.service.store.clickhouse.several import KEPT, REFUSED, UNKEPT, Peer

Start = Callable[..., Peer]
DEPLOYMENT = ("prod", "tiny")


@pytest.fixture
def start(url: str, clock: Clock) -> Iterator[Start]:
    """Start a service on the one database."""
    peers: list[Peer] = []

    def started(off: float = 0.0, **settings: Any) -> Peer:
        peers.append(Peer(url, clock, off, **settings))
        return peers[-1]

    yield started
    for peer in peers:
        peer.kill()


def test_a_late_frame_of_an_older_start_that_was_acknowledged_is_not_lost(start: Start, clock: Clock) -> None:
    a, b, c = start(), start(), start()
    assert a.take(frame({0: [10, 0]})) == [KEPT]
    assert a.take(frame({0: [2, 0]}, epoch=LATER)) == [KEPT]
    b.hear()
    assert b.slots() == [12, 0]
    assert a.take(frame({0: [30, 0]}, seq=2)) == [KEPT]
    assert b.take(frame({0: [4, 0]}, epoch=LATER, seq=2)) == [KEPT]
    a.kill()  # with whatever it knew
    clock.now += 1
    for peer in (start(), start()):
        assert peer.slots() == [34, 0]
    assert b.take(frame({0: [6, 0]}, epoch=LATER, seq=3)) == [KEPT]
    for peer in (b, c, start()):
        peer.hear()
        assert peer.slots() == [36, 0]


def test_what_the_store_did_not_take_is_told_when_it_is_back_though_no_frame_comes(
    start: Start, clock: Clock
) -> None:
    """Its worker's last frame, answered 503; sent again it is a duplicate, which is there by then."""
    a, b = start(), start()
    a.take(frame({0: [2, 0]}))
    a.line.cut()
    last = frame({0: [8, 0]}, seq=2)
    assert a.take(last) == [UNKEPT]
    clock.now += 80
    b.take(frame({0: [2, 0]}, who=producer(dp_rank=1, dp_size=2)))
    a.line.mend()
    a.hear()
    b.hear()
    assert a.slots() == b.slots() == start().slots() == [10, 0]
    assert a.take(last) == [KEPT]


def test_where_experts_were_does_not_take_the_place_of_where_they_are(start: Start, clock: Clock) -> None:
    """A service that was cut off kept what it was told before, over what another one was told since: services
    that were started after that said so, for as long as experts stayed where they were."""
    a, b = start(), start()

    def told(seq: int) -> Frame:
        placed = placement(range(2), [0, seq % 2], 1, seq)
        return frame({0: [2 * seq, 0]}, who=producer(ep_size=2), seq=seq, placement=placed)

    a.line.cut()
    assert a.take(told(1)) == [UNKEPT]
    clock.now += 60
    assert b.take(told(2)) == [KEPT]
    clock.now += 60
    a.line.mend()
    for peer in (a, b, a):
        peer.hear()
    versions = [[where.version for _, where in peer.state.placements(DEPLOYMENT)] for peer in (a, b, start())]
    assert versions == [[2], [2], [2]]


def test_a_rank_was_heard_when_its_present_start_was_whoever_heard_the_late_frame_of_a_former(
    start: Start, clock: Clock
) -> None:
    """Where it wasn't, services differed in which ranks are of a deployment's present start."""
    a, b = start(), start()
    ranks = [producer(dp_rank=rank, dp_size=2) for rank in range(2)]
    a.take(frame({0: [10, 0]}, who=ranks[1]))
    clock.now += 15
    began = clock.now
    a.take(frame({0: [2, 0]}, who=ranks[1], epoch=LATER))
    clock.now += 5
    a.take(frame({0: [12, 0]}, who=ranks[1], seq=2))
    b.hear()
    for peer in (a, b, start()):
        [rank] = peer.state.producers(DEPLOYMENT)
        assert (rank.latest.epoch, rank.received_at, rank.age) == (LATER, began, 5.0)
    c = start()
    assert c.take(frame({0: [3, 0]}, who=ranks[1], epoch=LATER, seq=2)) == [KEPT]
    a.hear()
    assert a.state.producers(DEPLOYMENT)[0].age == 0.0


def test_a_frame_that_came_twice_was_heard_when_it_came_last(start: Start, clock: Clock) -> None:
    """Its worker was not told that it was kept, and sent it to a service that could not keep it either."""
    a, b = start(), start()
    first = frame({0: [10, 0]})
    a.take(first)
    b.line.cut()
    clock.now += 6
    assert b.take(first) == [UNKEPT]
    b.line.mend()
    for peer in (b, a):
        peer.hear()
    for peer in (a, b, start()):
        [rank] = peer.state.producers(DEPLOYMENT)
        assert (rank.received_at, peer.slots()) == (clock.now, [10, 0])


def test_a_duplicate_after_the_store_was_away_is_kept(start: Start, clock: Clock) -> None:
    a, b = start(), start()
    a.line.cut()
    last = frame({0: [8, 0]}, seq=2)
    assert a.take(last) == [UNKEPT]
    clock.now += 80
    a.line.mend()
    assert a.take(last) == [KEPT]
    b.hear()
    assert b.slots() == start().slots() == [8, 0]


@pytest.mark.parametrize("off", [-86_400, -600, 600, 86_400])
def test_a_clock_that_is_off_keeps_nobody_from_hearing_the_others(
    start: Start, clock: Clock, off: float
) -> None:
    a, b, c = start(off), start(), start()
    for peer, dp_rank, slots in ((a, 0, 10), (b, 1, 500), (c, 2, 5000)):
        who = producer(dp_rank=dp_rank, dp_size=3)
        assert peer.take(frame({0: [slots, 0]}, who=who)) == [KEPT]
    for peer in (a, b, c):
        peer.hear()
        assert peer.slots() == [5510, 0]
    clock.now += 100
    b.take(frame({0: [600, 0]}, who=producer(dp_rank=1, dp_size=3), seq=2))
    for peer in (a, c):
        peer.hear()
        assert peer.slots() == [5610, 0]
    [found] = {
        tuple(span.span.delta.tokens for span in peer.state.spans(DEPLOYMENT, clock.now - 50, None))
        for peer in (a, b, c)
    }
    assert found == (0, 50, 0)


def test_who_writes_times_that_are_far_ahead_is_heard_and_hears(replicas: list[ClickHouseStore]) -> None:
    """Services of an earlier moescope go by the clocks of their hosts."""
    one, two = replicas
    ahead, right = (
        LiveState(Settings(), lambda now=now: EPOCH / 1e9 + now, store)
        for now, store in ((600, one), (0, two))
    )  # type: ignore[misc]
    for turn in range(1, 4):
        ahead.ingest(frame({0: [2 * turn, 0]}, seq=turn))
        right.ingest(frame({0: [20 * turn, 0]}, seq=turn, who=producer(dp_rank=1, dp_size=2)))
        for store, state in ((one, ahead), (two, right)):
            store.save(state.take_records())
        for store, state in ((one, ahead), (two, right)):
            state.adopt(store.news())
            assert sum(int(item.totals.counts[0]) for item in state.producers()) == 22 * turn


def test_who_only_heard_of_a_model_change_removes_nothing(start: Start, clock: Clock) -> None:
    a, b = start(), start()
    ranks = [producer(dp_rank=n, dp_size=2) for n in (0, 1)]
    for who in ranks:
        a.take(frame({0: [2, 0]}, who=who))
    b.hear()
    clock.now += 60
    new = [frame({0: [2, 0, 4 + n]}, top_k=1, who=who, epoch=LATER) for n, who in enumerate(ranks)]
    assert a.take(new[0]) == [KEPT]
    b.hear()
    assert a.take(new[1]) == [KEPT]
    clock.now += 1
    assert b.take(frame({0: [2, 0, 6]}, top_k=1, who=ranks[0], epoch=LATER, seq=2)) == [KEPT]
    for peer in (a, b, start()):
        peer.hear()
        assert peer.slots() == [4, 0, 11]


def test_who_took_the_frame_of_another_model_removes_what_it_knew_and_no_more(
    start: Start, clock: Clock
) -> None:
    """Others have kept a start of that rank that it had not heard of, and a late frame of the old one."""
    a, b, c = start(), start(), start()
    ranks = [producer(dp_rank=n, dp_size=2) for n in (0, 1)]
    for who in ranks:
        a.take(frame({0: [2, 0]}, who=who))
    for peer in (b, c):
        peer.hear()
    clock.now += 60
    new = [
        frame({0: [2, 0, 4 + n]}, top_k=1, who=who, epoch=LATER, uptime_ns=10**9)
        for n, who in enumerate(ranks)
    ]
    assert b.take(new[1]) == [KEPT]
    assert c.take(frame({0: [6, 0]}, seq=2, who=ranks[1])) == [KEPT]
    assert a.take(new[0]) == [KEPT]
    clock.now += 1
    for _ in range(2):
        for peer in (a, b, c):
            peer.hear()
    for peer in (a, b, c, start()):
        assert peer.slots() == [4, 0, 9]
    assert c.take(frame({0: [8, 0]}, seq=3, who=ranks[1])) == [REFUSED]


def test_history_never_falls_where_two_services_had_half_of_it(start: Start, clock: Clock) -> None:
    """The last frame of one start came to one of them, and the first of the next one to the other."""
    a, b = start(), start()
    born, only = clock.now, {"who": producer(ep_size=1)}
    a.take(frame({0: [2, 0]}, **only))
    b.hear()
    clock.now += 10
    a.take(frame({0: [50, 0]}, seq=2, **only))
    clock.now += 1
    b.take(frame({0: [0, 4]}, epoch=LATER, **only))
    clock.now += 5
    later = start()
    for _ in range(2):
        for peer in (a, b):
            peer.hear()
    windows = [(born - 1, born + 5), (born + 5, born + 10.5), (born + 10.5, born + 12)]
    for peer in (a, b, later, start()):
        found = [merge_spans(peer.state.spans(DEPLOYMENT, *window)) for window in windows]
        assert [window.layers[0].counts.tolist() for window in found] == [[2, 0], [48, 0], [0, 4]]


def _baseline(name: str, tokens: int) -> Baseline:
    return Baseline(*DEPLOYMENT, name, "", 1.0, 2.0, 3.0, tokens, (), b"", b"")


@pytest.mark.parametrize("off", [0, 86_400])
def test_a_baseline_that_is_pinned_or_removed_on_one_service_is_on_all(start: Start, off: float) -> None:
    """The last word counts, whatever the clocks of hosts show."""
    a, b = start(off), start()
    assert a.keep(_baseline("first", 1).document())
    b.hear()
    found = b.book.get(DEPLOYMENT, "first")
    assert found is not None
    assert found.tokens == 1
    changes = b.book.changes
    b.hear()
    assert b.book.changes == changes, "what is known already changes nothing"
    assert b.keep(_baseline("first", 2).document())
    assert b.keep(_baseline("second", 3).document())
    a.hear()
    assert [item.tokens for item in a.book.all()] == [2, 3]
    assert b.keep(removal(DEPLOYMENT, "first"))
    a.hear()
    for peer in (a, b, start()):
        assert [item.name for item in peer.book.all()] == ["second"]
