"""A frame that comes to two services, to one of them late: what the first one knows stays known."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from moescope.capture.wire import Frame
from tests.service.conftest import Clock
from tests.service.frames import EPOCH, frame
from tests.service.store.accounts import LATER
from tests.service.store.clickhouse.several import KEPT, Peer

Start = Callable[[], Peer]
DEPLOYMENT = ("prod", "tiny")


@pytest.fixture
def start(url: str, clock: Clock) -> Iterator[Start]:
    """Start a service on the one database."""
    peers: list[Peer] = []

    def started() -> Peer:
        peers.append(Peer(url, clock))
        return peers[-1]

    yield started
    for peer in peers:
        peer.kill()


def said(seconds: float, **fields: Any) -> Frame:
    """A frame of a start that has been up for so long, as its worker says."""
    return frame({0: [10, 0]}, uptime_ns=round(seconds * 1e9), **fields)


def births(peer: Peer) -> list[float]:
    """When the counting of a service's producers began."""
    return [
        peer.state._ledger.history.track(item.latest.producer.key).birth for item in peer.state.producers()
    ]


def rounds(clock: Clock, *peers: Peer) -> None:
    """Two rounds of news."""
    for _ in range(2):
        clock.now += 1
        for peer in peers:
            peer.hear()


@pytest.mark.parametrize("seq", [1, 2])
def test_when_a_start_began_is_what_the_first_service_heard(start: Start, clock: Clock, seq: int) -> None:
    """The other one hears the same frame late, or the next one; its row takes the place of the first."""
    a, b = start(), start()
    began = clock.now - 1
    assert a.take(said(1)) == [KEPT]
    clock.now += 5
    assert b.take(said(1, seq=seq)) == [KEPT]
    rounds(clock, a, b)
    for peer in (a, b, start()):
        assert births(peer) == [pytest.approx(began, abs=0.002)]


def test_services_agree_on_which_start_counts(start: Start, clock: Clock) -> None:
    a, b = start(), start()
    assert a.take(said(1)) == [KEPT]
    clock.now += 3
    assert b.take(said(1, epoch=LATER)) == [KEPT]
    a.hear()
    clock.now += 3
    assert b.take(said(1)) == [KEPT]  # as if it had begun after the other one
    assert b.state.producers()[0].latest.epoch == EPOCH
    rounds(clock, a, b)
    for peer in (a, b, start()):
        [found] = peer.state.producers()
        assert (found.latest.epoch, peer.slots()) == (LATER, [20, 0])


def test_services_of_which_each_heard_another_start_last_let_the_newest_one_count(
    start: Start, clock: Clock
) -> None:
    """Both let the first one count when they hear of each other: one knew no other, one heard it late."""
    a, b = start(), start()
    assert a.take(said(1)) == [KEPT]
    clock.now += 3
    assert b.take(said(1, epoch=LATER, state="disabled")) == [KEPT]
    clock.now += 3
    assert b.take(said(1)) == [KEPT]
    assert [peer.state.producers()[0].latest.epoch for peer in (a, b)] == [EPOCH, EPOCH]
    rounds(clock, a, b)
    peers = [a, b, start()]
    a.kill()
    peers.append(start())
    for peer in peers:
        [found] = peer.state.producers()
        said_last = found.latest.epoch, found.latest.seq, found.latest.state
        assert (said_last, found.restarts, peer.slots()) == ((LATER, 1, "disabled"), 1, [20, 0])


@pytest.mark.parametrize("ended", [True, False])
def test_services_agree_that_an_older_start_went_on_when_the_newer_one_was_silent(
    start: Start, clock: Clock, ended: bool
) -> None:
    """The one that goes on is heard by one service, which does not know the other one until both are over."""
    a, b = start(), start()
    assert a.take(said(1)) == [KEPT]
    clock.now += 3
    assert b.take(said(1, epoch=LATER)) == [KEPT]
    clock.now += 40
    assert a.take(said(44, seq=2)) == [KEPT]
    assert a.take(said(45, seq=3, ended=ended)) == [KEPT]
    rounds(clock, b, a)
    for peer in (a, b, start()):
        [found] = peer.state.producers()
        assert (found.latest.epoch, found.latest.seq, found.latest.ended) == (EPOCH, 3, ended)
    assert b.take(said(44, epoch=LATER, seq=2)) == [KEPT]
    rounds(clock, a, b)
    for peer in (a, b, start()):
        assert peer.state.producers()[0].latest.epoch == LATER


def test_what_is_known_alike_is_not_written_again(
    start: Start, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = start(), start()
    a.take(said(1))
    clock.now += 5
    b.take(said(1))
    rounds(clock, a, b)
    written: list[str] = []
    for peer in (a, b):
        insert = peer.store._connection.insert

        def noted(
            table: str, names: object, rows: list[object], insert: Callable[..., None] = insert
        ) -> None:
            written.extend([table] * len(rows))
            insert(table, names, rows)

        monkeypatch.setattr(peer.store._connection, "insert", noted)
    rounds(clock, a, b)
    assert written == []


def test_frames_within_a_millisecond_are_of_one_instant(start: Start, clock: Clock) -> None:
    """The store has one of them, so windows from before begin with the newest on all services."""
    a, b = start(), start()
    clock.now += 0.6e-3  # a store rounds that up
    assert a.take(said(120)) == [KEPT]
    assert b.take(frame({0: [30, 0]}, uptime_ns=121 * 10**9, seq=2)) == [KEPT]
    rounds(clock, a, b)
    for peer in (a, b, start()):
        [item] = peer.state.spans(DEPLOYMENT, clock.now - 60, None)
        assert item.span.delta.tokens == 0
