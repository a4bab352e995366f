"""Services whose clocks differ tell each other instants, any number of times: none of them drifts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import pytest

from moescope.capture.wire import Frame
from moescope.service.counts.account_state import AccountState
from moescope.service.counts.choosing import STALE_AFTER_S
from tests.service.conftest import Clock
from tests.service.frames import EPOCH, frame, placement, producer
from tests.service.store.clickhouse.several import KEPT, Peer

DAY = 86_400.0
DEPLOYMENT = ("prod", "tiny")
ROUNDS = 8
APARTS = [(30.0, 0.0, 0.0), (0.0, -30.0, 30.0), (DAY, 0.0, -DAY), (-DAY, 0.0, 600.0), (6.0, 0.0, -6.0)]
Start = Callable[[Sequence[float]], list[Peer]]


@pytest.fixture
def start(url: str, clock: Clock) -> Iterator[Start]:
    """Start services on the one database, the clock of each so much ahead."""
    peers: list[Peer] = []

    def started(aparts: Sequence[float]) -> list[Peer]:
        found = [Peer(url, clock, apart=apart) for apart in aparts]
        peers.extend(found)
        return found

    yield started
    for peer in peers:
        peer.kill()


@dataclass
class Worker:
    """One start of a worker of a rank, and when it began."""

    number: int
    began: float
    tells_uptime: bool
    seq: int = 0
    epoch: int = field(init=False)

    def __post_init__(self) -> None:
        self.epoch = int(self.began * 1e9) - self.number * 10**13  # each host's clock is behind the last's

    def next(self, now: float) -> Frame:
        """Its next frame."""
        self.seq += 1
        up = now - self.began
        return frame(
            {0: [2 * self.seq, 0]},
            who=producer(host=f"h{self.number}", pid=self.number),
            epoch=self.epoch,
            seq=self.seq,
            after_s=up,
            uptime_ns=int(up * 1e9) if self.tells_uptime else 0,
        )


def account(peer: Peer) -> AccountState:
    entry = peer.state._ledger.roster.get(producer().key)
    assert entry is not None
    return entry.account.state()


def hear_all(peers: Sequence[Peer], clock: Clock) -> None:
    """A round of news of all, in whatever order; and what they merged is kept, as with any frame."""
    clock.now += 0.5
    for peer in peers:
        peer.hear()
        peer._keep(peer.state.take_records())
    clock.now += 0.5


def said(peer: Peer) -> tuple[int, int, str, int, int]:
    [found] = peer.state.producers()
    latest = found.latest
    return latest.epoch, latest.seq, found.state, found.restarts, found.totals.tokens


def check(peers: Sequence[Peer], aparts: Sequence[float], workers: Sequence[Worker], now: float) -> None:
    """Counts are true, and no instant is further from the truth than the clocks are from each other."""
    most, late = max(aparts), 3.0  # news take a while
    least = min(aparts) - (most - min(aparts))  # a row may have instants of several clocks
    assert {said(peer)[-1] for peer in peers} == {sum(worker.seq for worker in workers)}
    began = {worker.number: worker.began for worker in workers}
    for peer, apart in zip(peers, aparts, strict=True):
        lives = account(peer).epochs
        assert len(lives) == len(workers)
        for life in lives:
            assert life.producer is not None
            true = began[life.producer.pid]
            for at in (life.began_at, life.started_at, life.came_at):
                assert true + least - 0.1 <= at <= true + most + late
            for at in (life.heard_at, life.made_at, life.going_at):
                assert true + least - 0.1 <= at <= now + max(apart, 0.0) + late
        order = sorted(lives, key=lambda item: item.order)
        assert [item.producer.pid for item in order if item.producer] == sorted(began)


def check_alike(peers: Sequence[Peer], workers: Sequence[Worker]) -> None:
    """All say the same, and of the newest start."""
    newest = workers[-1]
    tokens = sum(worker.seq for worker in workers)
    right = (newest.epoch, newest.seq, "counting", len(workers) - 1, tokens)
    assert [said(peer) for peer in peers] == [right] * len(peers)


@pytest.mark.parametrize("aparts", APARTS)
@pytest.mark.parametrize("tells_uptime", [True, False])
def test_when_lives_began_does_not_drift(
    start: Start, clock: Clock, aparts: Sequence[float], tells_uptime: bool
) -> None:
    """Three starts of a rank, one after the other; the frames of each go to all services in turn."""
    peers, workers = start(aparts), []
    for number in (1, 2, 3):
        worker = Worker(number, clock.now, tells_uptime)
        workers.append(worker)
        clock.now += 0.1
        for turn in range(ROUNDS):
            assert peers[(number + turn) % len(peers)].take(worker.next(clock.now)) == [KEPT]
            hear_all(peers, clock)
    for _ in range(2):
        hear_all(peers, clock)
    check(peers, aparts, workers, clock.now)
    check_alike(peers, workers)
    late = start(aparts)
    for _ in range(2):
        hear_all([*peers, *late], clock)
    check([*peers, *late], [*aparts, *aparts], workers, clock.now)
    if max(aparts) - min(aparts) < STALE_AFTER_S:  # else how long who was silent can't be told from rows
        check_alike([*peers, *late], workers)


@pytest.mark.parametrize("back", [30.0, DAY])
def test_a_server_whose_clock_is_set_back_makes_no_life_older_than_that(
    start: Start, clock: Clock, back: float
) -> None:
    """Each service finds it out with its next frame, and has heard of the others' meanwhile."""
    peers = start((0.0, 0.0, 0.0))
    workers = []
    for number in (1, 2):
        clock.now += 5
        worker = Worker(number, clock.now, True)
        workers.append(worker)
        clock.now += 0.1
        for peer in peers:
            assert peer.take(worker.next(clock.now)) == [KEPT]
            hear_all(peers, clock)
    clock.now -= back
    for worker in workers:
        worker.began -= back
    for turn in range(ROUNDS):
        assert peers[turn % len(peers)].take(workers[1].next(clock.now)) == [KEPT]
        hear_all(peers, clock)
    hear_all(peers, clock)
    check(peers, (0.0, 0.0, 0.0), workers, clock.now)
    check_alike(peers, workers)


@pytest.mark.parametrize(("apart", "restarted"), [(DAY, False), (10.0, True)])
def test_where_experts_are_now_holds_whatever_the_clock_of_who_was_told_before(
    start: Start, clock: Clock, apart: float, restarted: bool
) -> None:
    """Else who was told before says for so long where they were, and keeps that over where they are."""
    ahead, right = peers = start((apart, 0.0))

    def told(seq: int) -> Frame:
        later = 10**9 if restarted and seq > 1 else 0
        where = placement(range(2), [0, seq % 2], 1, seq)
        who = producer(ep_size=2)
        return frame({0: [2 * seq, 0]}, who=who, epoch=EPOCH + later, seq=seq, placement=where)

    assert ahead.take(told(1)) == [KEPT]
    hear_all(peers, clock)
    for seq in (2, 3):
        assert right.take(told(seq)) == [KEPT]
        for _ in range(2):
            hear_all(peers, clock)
        for peer in peers:
            assert [where.version for _, where in peer.state.placements(DEPLOYMENT)] == [seq]


def test_a_window_of_who_only_heard_has_what_was_counted_in_it(start: Start, clock: Clock) -> None:
    ahead, right = peers = start((DAY, 0.0))
    for seq, slots in ((1, 20), (2, 26)):
        assert ahead.take(frame({0: [slots, 0]}, seq=seq, uptime_ns=10**9)) == [KEPT]
        hear_all(peers, clock)
        clock.now += 10
    [found] = right.state.spans(DEPLOYMENT, clock.now - 15, None)
    assert found.span.delta.tokens == 3


def test_when_weights_came_does_not_creep(start: Start, clock: Clock) -> None:
    ahead, right = peers = start((DAY, 0.0))
    found = []
    for seq in range(1, 7):
        made = frame({0: [2 * seq, 0]}, seq=seq, weights_version=int(seq > 1))
        assert ahead.take(made) == [KEPT]
        hear_all(peers, clock)
        found.append(account(right).totals.weights.at)
        clock.now += 10
    assert found[0] == 0
    assert found[1] == found[-1] <= clock.now - 50
