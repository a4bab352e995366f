"""Which life counts at present, and whether several do, whatever the clocks of the hosts say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moescope.capture import wire
from moescope.service.counts.account import Account
from moescope.service.counts.conflict import MAX_CONFLICTS, joined
from moescope.service.counts.lives import MAX_LIVES
from moescope.service.counts.refusals import RefusedError
from tests.service.frames import EPOCH, frame, producer

S = 10**9
YEAR_S = 365 * 86400.0


@dataclass(frozen=True)
class Life:
    """A process: when it counted, by a clock that is right, and how far off its own clock is."""

    name: str
    start: float
    end: float
    skew: float = 0.0
    tells_uptime: bool = False

    def frame(self, seq: int, at: float, tokens: int) -> wire.Frame:
        """What it captured at an instant."""
        epoch = EPOCH + int((self.start + self.skew) * S)
        return frame(
            {0: [tokens, tokens]},
            who=producer(host=self.name, pid=len(self.name)),
            epoch=epoch,
            seq=seq,
            after_s=at - self.start,
            steps=tokens,
            uptime_ns=int((at - self.start) * S) + 1 if self.tells_uptime else 0,
        )


def hosts(account: Account, now: float) -> list[str]:
    """The hosts of the processes that are in conflict, oldest first."""
    found = account.conflict(now)
    return [] if found is None else [item.producer.host for item in found.lives if item.producer is not None]


def current(account: Account, now: float) -> str:
    account.settle(now)
    assert account.latest is not None
    return account.latest.producer.host


def post(account: Account, life: Life, at: float, seq: int) -> None:
    account.post(life.frame(seq, at, seq), at=at)


@pytest.mark.parametrize("skew", [0.0, 600.0, -600.0, YEAR_S, -YEAR_S])
def test_a_rank_that_is_replaced_counts_at_once_whatever_its_clock_says(skew: float) -> None:
    account = Account(max_epochs=4)
    a, b = Life("a", 0, 50), Life("bb", 60, 99, skew)
    for at in (1.0, 2.0, 50.0):
        post(account, a, at, int(at))
    post(account, b, 61.0, 1)
    assert (current(account, 61.0), hosts(account, 61.0)) == ("bb", [])
    account.post(a.frame(40, 49.0, 40), at=62.0)  # late, and less than what is known
    account.post(a.frame(51, 50.5, 51), at=62.0)
    assert (current(account, 62.0), account.totals.tokens) == ("bb", 52)


def test_the_last_frames_of_a_process_that_shuts_down_are_no_conflict() -> None:
    account = Account(max_epochs=4)
    a, b = Life("a", 0, 11), Life("bb", 10, 99)
    for seq in range(1, 10):
        post(account, a, seq, seq)
    post(account, b, 10.0, 1)
    post(account, a, 11.0, 10)
    for seq in range(2, 30):
        post(account, b, 10.0 + seq, seq)
        assert hosts(account, 10.0 + seq) == []


def test_frames_that_come_late_in_turn_with_those_of_the_next_life_are_no_conflict() -> None:
    account = Account(max_epochs=4)
    a, b = Life("a", 0, 11), Life("bb", 12, 99)
    post(account, a, 1.0, 1)
    for n in range(2, 12):
        account.post(b.frame(n, 11.0 + n, n), at=11.0 + n)
        account.post(a.frame(n, float(n), n), at=11.5 + n)
        assert hosts(account, 11.5 + n) == []
    assert (current(account, 23.0), account.totals.tokens) == ("bb", 22)


@pytest.mark.parametrize("skew", [0.0, YEAR_S, -YEAR_S])
@pytest.mark.parametrize("survivor", ["a", "bb"])
def test_two_that_go_on_are_named_and_whichever_is_left_is_alone_and_live(skew: float, survivor: str) -> None:
    account = Account(max_epochs=4)
    a, b = Life("a", 0, 99), Life("bb", 5, 99, skew)
    post(account, a, 1.0, 1)
    for n in range(1, 7):
        post(account, b, 5.0 + n, n)
        post(account, a, 5.5 + n, 1 + n)
    assert hosts(account, 11.5) == ["a", "bb"]
    assert [item.counted.tokens for item in account.state().epochs] == [7, 6]
    found = account.conflict(11.5)
    assert found is not None
    assert "pid 1 on host a, pid 2 on host bb" in found.reason
    assert "MOESCOPE_SERVER" in found.reason
    left = a if survivor == "a" else b
    for n in range(8, 30):
        post(account, left, 6.0 + n, n)
    assert (current(account, 36.0), hosts(account, 36.0)) == (survivor, [])
    assert account.totals.tokens == 29 + (6 if survivor == "a" else 7)
    [(since, until)] = account.conflicts
    assert (since, until >= 11.5) == (6.0, True)


def test_the_survivor_takes_over_without_a_frame_at_that_very_moment() -> None:
    account = Account(max_epochs=4, stale_after=15)
    a, b = Life("a", 0, 99), Life("bb", 5, 99)
    for n in range(1, 7):
        post(account, a, 5.0 + n, n)
        post(account, b, 5.5 + n, n)
    account.post(a.frame(7, 24.0, 7), at=24.0)
    assert current(account, 26.4) == "bb"
    assert current(account, 26.6) == "a"
    assert account.life.heard_at == 24.0


@pytest.mark.parametrize("ended", [True, False])
def test_the_last_frame_of_a_former_worker_never_hides_that_the_new_one_hangs(ended: bool) -> None:
    account = Account(max_epochs=4, stale_after=15)
    a, b = Life("a", 0, 31), Life("bb", 30, 99)
    for seq in range(1, 31):
        post(account, a, seq, seq)
    post(account, b, 30.5, 1)
    account.post(msgspec.structs.replace(a.frame(31, 31.2, 31), ended=ended), at=31.2)
    for one in (account, Account.restored(account.state(), 4)):
        for now in (31.2, 45.4, 45.8, 46.1, 60.0):
            assert (current(one, now), one.life.heard_at) == ("bb", 30.5)


@pytest.mark.parametrize(("ended", "counts"), [(True, "bb"), (False, "a")])
def test_a_former_worker_that_shuts_down_late_does_not_take_the_place_of_a_silent_one(
    ended: bool, counts: str
) -> None:
    account = Account(max_epochs=4, stale_after=15)
    a, b = Life("a", 0, 50), Life("bb", 30, 99)
    post(account, a, 30.0, 1)
    post(account, b, 30.5, 1)
    account.post(msgspec.structs.replace(a.frame(2, 50.0, 2), ended=ended), at=50.0)
    assert current(account, 50.0) == counts


def test_what_a_life_said_as_it_shut_down_is_not_taken_for_the_word_of_another() -> None:
    account = Account(max_epochs=4)
    a, b = Life("a", 0, 99), Life("bb", 5, 99)
    post(account, a, 5.0, 1)
    account.post(msgspec.structs.replace(b.frame(1, 6.0, 1), ended=True), at=6.0)
    again = Account.restored(account.state(), 4)
    assert again.latest is not None
    assert again.latest.ended
    for life in again.state().epochs:
        assert life.ended == (life.epoch == again.latest.epoch)
    again._lives.current = again._lives.get(a.frame(1, 5.0, 1).epoch)
    assert again.latest is not None
    assert not again.latest.ended


@pytest.mark.parametrize("step", [-600.0, 600.0])
def test_a_worker_whose_own_clock_is_set_is_in_conflict_and_survives_like_any_other(step: float) -> None:
    account = Account(max_epochs=4, stale_after=15)
    a, b = Life("a", 0, 99, tells_uptime=True), Life("bb", 30, 99, tells_uptime=True)
    for n in range(1, 100):
        made = a.frame(n, float(n), n)
        if n >= 20:
            made = msgspec.structs.replace(made, captured_at_ns=made.captured_at_ns + int(step * S))
        account.post(made, at=float(n))
        if 30 < n <= 60:
            post(account, b, n + 0.5, n - 30)
    assert (current(account, 99.0), account.life.heard_at) == ("a", 99.0)
    [(since, until)] = account.conflicts
    assert (since, until >= 60.0) == (31.5, True)


def test_idle_processes_that_only_repeat_themselves_are_no_conflict_of_counts() -> None:
    account = Account(max_epochs=4)
    a, b = Life("a", 0, 99), Life("bb", 5, 99)
    for seq in range(1, 9):
        account.post(a.frame(seq, 1.0, 3), at=5.0 * seq)
        account.post(b.frame(seq, 6.0, 3), at=5.0 * seq + 2)
    assert hosts(account, 43.0) == []
    assert account.totals.tokens == 6


def test_ten_servers_of_one_name_are_named_and_none_is_refused() -> None:
    account = Account(max_epochs=2)
    lives = [Life("h" * (i + 1), i / 10, 99) for i in range(10)]
    for n in range(1, 9):
        for i, life in enumerate(lives):
            post(account, life, n + i / 20, n)
    assert len(hosts(account, 9.0)) == 10
    assert account.totals.tokens == 80
    found = account.conflict(9.0)
    assert found is not None
    assert "10 live processes" in found.reason
    assert "2 more" in found.reason


def test_lives_are_bounded_and_what_is_beyond_is_refused_with_the_remedy() -> None:
    account = Account(max_epochs=2)
    for i in range(MAX_LIVES):
        post(account, Life("h", i / 1000, 99), 1 + i / 1000, 1)
    with pytest.raises(RefusedError, match="MOESCOPE_SERVER") as refused:
        post(account, Life("h", 0.9, 99), 2.0, 1)
    assert refused.value.reason == "too_many_lives"
    post(account, Life("h", 0.9, 99), 60.0, 1)  # the others fell silent
    assert len(account.state().epochs) == 2


def test_two_processes_of_one_epoch_are_told_apart() -> None:
    account = Account(max_epochs=2)
    account.post(frame({0: [2, 2]}, who=producer(host="a", pid=7)))
    with pytest.raises(RefusedError, match=r"pid 7 on host a, this is pid 8 on host b; .*MOESCOPE_SERVER"):
        account.post(frame({0: [2, 2]}, who=producer(host="b", pid=8)))


def test_a_conflict_survives_a_restart_of_the_service() -> None:
    account = Account(max_epochs=4)
    a, b = Life("a", 0, 99), Life("bb", 5, 99)
    for n in range(1, 7):
        post(account, a, 5.0 + n, n)
        post(account, b, 5.5 + n, n)
    again = Account.restored(account.state(), 4)
    assert hosts(again, 12.0) == ["a", "bb"]
    assert again.conflicts == account.conflicts
    post(again, a, 13.0, 7)
    assert hosts(again, 13.0) == ["a", "bb"]


def test_a_service_that_hears_the_older_life_last_knows_the_newer_one_by_its_uptime() -> None:
    account = Account(max_epochs=4)
    a, b = Life("a", 0, 99, tells_uptime=True), Life("bb", 50, 99, -YEAR_S, tells_uptime=True)
    post(account, b, 61.0, 1)
    post(account, a, 61.5, 60)
    assert current(account, 62.0) == "bb"


def test_the_clock_of_the_service_is_set_back() -> None:
    account = Account(max_epochs=4)
    a, b = Life("a", 0, 99), Life("bb", 60, 99)
    post(account, a, 3600.0, 1)
    post(account, b, 3661.0, 1)
    account.post(b.frame(2, 3662.0, 2), at=62.0)
    account.post(b.frame(3, 3663.0, 3), at=90.0)
    assert (current(account, 90.0), account.life.heard_at) == ("bb", 90.0)
    assert account.life.came_at == 62.0


def in_conflict(begin: float) -> Account:
    """Of the lives a and bb, which went on at once for seconds from ``begin`` on."""
    account = Account(max_epochs=4)
    a, b = Life("a", begin, begin + 99), Life("bb", begin + 1, begin + 99)
    for n in range(1, 7):
        post(account, a, begin + n, n)
        post(account, b, begin + 0.5 + n, n)
    return account


def test_conflicts_are_set_back_with_the_clock_of_the_service() -> None:
    account = in_conflict(3600.0)
    assert account.conflicts == ((3601.5, 3606.5),)
    b = Life("bb", 3601, 3699)
    account.post(b.frame(7, 3608.0, 7), at=8.0)
    [(since, until)] = account.conflicts
    assert (since, until) == (3.0, 8.0)  # it still goes on
    account.post(b.frame(8, 3610.0, 8), at=10.0)
    assert account.conflicts == ((since, 10.0),)


def test_what_was_heard_on_a_clock_that_was_ahead_is_not_heard_for_ever() -> None:
    account = in_conflict(3600.0)
    assert hosts(account, 3600.0) == ["a", "bb"]  # within what clocks may differ
    assert hosts(account, 6.0) == []


def test_conflicts_that_a_clock_ahead_told_are_not_in_the_future_and_do_not_drift() -> None:
    state = in_conflict(100.0).state()
    assert state.conflicts == ((101.5, 106.5),)
    assert state.heard_by(50.0).conflicts == ((45.0, 50.0),)
    told = state
    for now in (106.0, 105.0, 104.0):
        told = told.heard_by(now)
        assert told.conflicts == ((101.5, now),)


def test_when_a_life_began_does_not_drift_where_clocks_differ_a_little() -> None:
    """Services tell each other the earliest instant that any of them knows: each would make it earlier."""
    state = in_conflict(100.0).state()
    told = state.heard_by(106.4)
    assert [(life.began_at, life.came_at) for life in told.epochs] == [
        (life.began_at, life.came_at) for life in state.epochs
    ]
    assert max(life.heard_at for life in told.epochs) == 106.4
    far = state.heard_by(50.0)
    assert [life.order for life in far.epochs] < [life.order for life in state.epochs]


def test_conflicts_that_are_remembered_are_bounded() -> None:
    found = joined([(10.0 * n, 10.0 * n + 1) for n in range(2 * MAX_CONFLICTS)])
    assert len(found) == MAX_CONFLICTS
    assert (found[0][0], found[-1][1]) == (0.0, 10.0 * (2 * MAX_CONFLICTS - 1) + 1)
    assert joined([(1.0, 3.0), (2.0, 4.0)]) == ((1.0, 4.0),)


@dataclass(frozen=True)
class Sent:
    """A frame on its way."""

    arrival: float
    life: Life
    seq: int
    made: wire.Frame


MAX_DELAY = 3.0


@st.composite
def deliveries(draw: st.DrawFn, overlap: bool) -> tuple[list[Life], list[Sent]]:
    """Up to three lives, one after the other or at once, and their frames in the order of their arrival."""
    lives: list[Life] = []
    begin = 10.0
    for n in range(draw(st.integers(2, 3))):
        length = 60.0 if overlap else draw(st.floats(5, 15))
        skew = draw(st.sampled_from([0.0, -600.0, 600.0, YEAR_S, -YEAR_S]))
        lives.append(Life("h" * (n + 1), begin, begin + length, skew, draw(st.booleans())))
        begin += draw(st.floats(0.1, 20)) if overlap else length + draw(st.floats(0.2, 5))
    sent = []
    for life in lives:
        at, seq = life.start, 0
        while at <= life.end:
            seq += 1
            made = life.frame(seq, at, seq)
            # A frame that is lost is sent anew until one arrives; one in three is doubled.
            copies = draw(st.sampled_from([1, 1, 2] if overlap else [0, 1, 1, 2]))
            if seq == 1:
                copies = max(1, copies)
            most = 0.1 if seq == 1 else MAX_DELAY  # of a life that is heard the clock is known
            sent += [Sent(at + draw(st.floats(0, most)), life, seq, made) for _ in range(copies)]
            at += draw(st.floats(1, 3) if overlap else st.floats(0.3, 2))
    return lives, sorted(sent, key=lambda item: item.arrival)


def _counted(sent: Sequence[Sent]) -> int:
    newest: dict[Life, int] = {}
    for item in sent:
        newest[item.life] = max(item.seq, newest.get(item.life, 0))
    return sum(newest.values())


@given(deliveries(overlap=False))
def test_lives_that_follow_each_other_are_right_however_their_frames_come(
    case: tuple[list[Life], list[Sent]],
) -> None:
    lives, sent = case
    account = Account(max_epochs=4)
    for i, item in enumerate(sent):
        account.post(item.made, at=item.arrival)
        assert hosts(account, item.arrival) == []
        assert account.totals.tokens == _counted(sent[: i + 1])
    assert account.conflicts == ()
    assert current(account, sent[-1].arrival) == lives[-1].name


@given(deliveries(overlap=True), st.integers(0, 2))
def test_lives_that_go_on_at_once_are_named_and_the_one_that_is_left_is_right(
    case: tuple[list[Life], list[Sent]], left: int
) -> None:
    lives, sent = case
    account = Account(max_epochs=4)
    all_live = max(life.start for life in lives) + 25.0
    before = [item for item in sent if item.arrival <= all_live]
    for item in before:
        account.post(item.made, at=item.arrival)
    assert set(hosts(account, before[-1].arrival)) == {life.name for life in lives}
    assert account.totals.tokens == _counted(before)
    survivor = lives[left % len(lives)]
    seq = max(item.seq for item in before if item.life is survivor)
    for n in range(1, 20):
        account.post(survivor.frame(seq + n, all_live + n, seq + n), at=all_live + n)
    now = all_live + 19.0
    assert (current(account, now), hosts(account, now)) == (survivor.name, [])
    assert account.life.heard_at == now
    assert account.totals.tokens == _counted(before) + 19
