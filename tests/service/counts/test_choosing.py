"""Which start counts follows from what is known of all starts, in whatever order and grouping it came."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from moescope.capture.wire import Frame
from moescope.service.counts.account import Account
from moescope.service.counts.account_state import AccountState
from moescope.service.counts.merging import merge_accounts
from tests.service.frames import EPOCH, frame, producer

S = 10**9
SERVICES = 4
MAX_EPOCHS = 8
DELAYS = st.sampled_from([0, 0, 0, 5, 40])


@dataclass(frozen=True)
class Sent:
    """A frame that comes to a service at an instant."""

    at: float
    service: int
    made: Frame


@st.composite
def states(draw: st.DrawFn) -> list[AccountState]:
    """What services know that have not heard of each other; frames came late, doubled, or not at all."""
    sent: list[Sent] = []
    for number in range(draw(st.integers(2, 4))):
        begin = 100.0 + draw(st.integers(0, 60))
        epoch = EPOCH + number + draw(st.sampled_from([0, -600, 600])) * S  # by the clock of its host
        tells_uptime, ends = draw(st.booleans()), draw(st.booleans())
        every = draw(st.sampled_from([1, 9, 20]))
        count = draw(st.integers(1, 4))
        for seq in range(1, count + 1):
            up = 1 + every * (seq - 1)
            made = frame(
                {0: [2 * seq, 0]},
                who=producer(host=f"h{number}", pid=number),
                epoch=epoch,
                seq=seq,
                after_s=up,
                uptime_ns=up * S if tells_uptime else 0,
                state=draw(st.sampled_from(["counting", "disabled"])),
                ended=ends and seq == count,
            )
            ways = draw(st.lists(st.tuples(st.integers(0, SERVICES - 1), DELAYS), max_size=2))
            sent += [Sent(begin + up + delay, service, made) for service, delay in ways]
    accounts: dict[int, Account] = {}
    for item in sorted(sent, key=lambda item: item.at):
        account = accounts.setdefault(item.service, Account(MAX_EPOCHS))
        account.post(item.made, at=item.at)
        if draw(st.booleans()):
            account.settle(item.at)
    return [account.state() for account in accounts.values()]


def grouped(draw: st.DataObject, known: Sequence[AccountState]) -> AccountState:
    """All accounts merged, two by two, in an order and a grouping that is drawn."""
    left = list(draw.draw(st.permutations(known)))
    while len(left) > 1:
        at = draw.draw(st.integers(0, len(left) - 2))
        left[at : at + 2] = [merge_accounts(left[at], left[at + 1], MAX_EPOCHS)]
    return left[0]


def said(state: AccountState) -> tuple[int, int, str, bool, int, int]:
    latest = state.latest
    tokens = state.totals.tokens
    return latest.epoch, latest.seq, latest.state, latest.ended, latest.counted.tokens, tokens


@given(states(), st.data())
def test_any_order_and_grouping_says_the_same(known: list[AccountState], data: st.DataObject) -> None:
    if not known:
        return
    one, other = grouped(data, known), grouped(data, known)
    assert said(one) == said(other)
    assert one.life.order == other.life.order
    for again in (*known, one, other):
        assert said(merge_accounts(one, again, MAX_EPOCHS)) == said(one)
        assert said(merge_accounts(again, one, MAX_EPOCHS)) == said(one)
    assert merge_accounts(one, one, MAX_EPOCHS) is one
    now = max(life.heard_at for life in one.epochs)
    restored = Account.restored(one, MAX_EPOCHS)
    restored.settle(now)
    assert said(restored.state()) == said(one)


def posted(*sent: tuple[float, Frame]) -> Account:
    account = Account(MAX_EPOCHS)
    for at, made in sent:
        account.post(made, at=at)
    return account


def test_a_frame_that_tells_that_its_start_began_earlier_gives_the_place_back() -> None:
    """Its first frame came late, so it seemed to be the newer start."""
    late = frame({0: [2, 0]}, uptime_ns=S)
    newer = frame({0: [2, 0]}, epoch=EPOCH + S, uptime_ns=S, who=producer(host="b"))
    account = posted((103.0, newer), (106.0, late))
    assert account.life.epoch == EPOCH
    account.post(frame({0: [4, 0]}, seq=2, uptime_ns=9 * S), at=107.0)
    assert account.life.epoch == EPOCH + S
    assert account.latest is not None
    assert account.latest.producer.host == "b"


def test_a_start_that_went_on_counts_after_it_has_shut_down_too() -> None:
    """Of each other's frames the services did not know, so neither saw the one take the other's place."""
    older = [frame({0: [2 * seq, 0]}, seq=seq, after_s=20 * seq, ended=seq == 3) for seq in (1, 2, 3)]
    newer = frame({0: [2, 0]}, epoch=EPOCH + S, who=producer(host="b"))
    one = posted(*zip((100.0, 120.0, 140.0), older, strict=True)).state()
    other = posted((101.0, newer)).state()
    for pair in ((one, other), (other, one)):
        assert merge_accounts(*pair, MAX_EPOCHS).latest.epoch == EPOCH
    ended_only = posted((100.0, older[0]), (140.0, older[2])).state()
    for pair in ((ended_only, other), (other, ended_only)):
        assert merge_accounts(*pair, MAX_EPOCHS).latest.epoch == EPOCH + S


def test_two_that_take_turns_count_in_turn_on_all_services() -> None:
    """Each is silent for long while the other one counts."""
    workers = [(EPOCH, "a"), (EPOCH + S, "b")]
    known: list[AccountState] = []
    for turn in range(1, 5):
        epoch, host = workers[turn % 2]
        made = frame({0: [2 * turn, 0]}, epoch=epoch, seq=turn, after_s=100 * turn, who=producer(host=host))
        known.append(posted((100.0 * turn, made)).state())
        merged = known[0]
        for state in known[1:]:
            merged = merge_accounts(merged, state, MAX_EPOCHS)
        assert merged.latest.epoch == epoch
