"""Accounts of several services, merged in any order: exact while epochs are remembered, never too much."""

from __future__ import annotations

from dataclasses import fields

from hypothesis import given
from hypothesis import strategies as st

from moescope.capture.wire import Frame
from moescope.service.counts.account import Account
from moescope.service.counts.account_state import AccountState
from moescope.service.counts.merging import merge_accounts
from moescope.service.counts.refusals import RefusedError
from moescope.service.counts.totals import Totals
from tests.service.frames import EPOCH, frame
from tests.service.store.accounts import account_of

SERVICES = 3
STEPS = st.one_of(
    st.tuples(st.just("frame"), st.integers(0, SERVICES - 1), st.integers(0, 5)),  # at a service, of an epoch
    st.tuples(st.just("hear"), st.integers(0, SERVICES - 1), st.integers(0, SERVICES - 1)),  # from another
)


class Services:
    """Some services, and what really was counted."""

    def __init__(self, max_epochs: int) -> None:
        self.max_epochs = max_epochs
        self.states: list[AccountState | None] = [None] * SERVICES
        self.truth: dict[int, int] = {}
        self.now = 0.0

    def frame(self, at: int, epoch: int) -> None:
        self.now += 20
        state = self.states[at]
        account = Account(self.max_epochs) if state is None else Account.restored(state, self.max_epochs)
        slots = self.truth.get(epoch, 0) + 2
        try:
            account.post(frame({1: [slots, 0]}, epoch=EPOCH + epoch, seq=slots), at=self.now)
        except RefusedError:
            return
        self.truth[epoch] = slots
        self.states[at] = account.state()

    def hear(self, one: int, other: int) -> None:
        mine, its = self.states[one], self.states[other]
        if its is not None:
            self.states[one] = its if mine is None else merge_accounts(mine, its, self.max_epochs)

    def hear_all(self) -> None:
        for one in range(SERVICES):
            for other in range(SERVICES):
                self.hear(one, other)

    def counted(self) -> list[int]:
        return [0 if state is None else int(state.totals.counts[0]) for state in self.states]


@given(st.lists(STEPS, max_size=40), st.sampled_from([1, 2, 6]))
def test_any_order_of_hearing_of_each_other(steps: list[tuple[str, int, int]], max_epochs: int) -> None:
    services = Services(max_epochs)
    for kind, one, other in steps:
        if kind == "frame":
            services.frame(one, other)
        else:
            services.hear(one, other)
        assert max(services.counted()) <= sum(services.truth.values())
    services.hear_all()
    services.hear_all()
    assert len(set(services.counted())) == 1
    if max_epochs == 6:
        assert services.counted()[0] == sum(services.truth.values())


def test_merging_keeps_the_better_account() -> None:
    old, new = account_of((EPOCH, 1, 10)).state(), account_of((EPOCH, 1, 10), (EPOCH, 2, 20)).state()
    assert merge_accounts(old, new, 4) is new
    assert merge_accounts(new, old, 4) is new
    many = [account_of((EPOCH + n, 1, 2), after_s=60 * n).state() for n in range(6)]
    merged = many[0]
    for other in many[1:]:
        merged = merge_accounts(merged, other, 4)
    assert merged.totals.counts[0] == 12
    assert [item.epoch - EPOCH for item in sorted(merged.epochs, key=lambda item: item.epoch)] == [2, 3, 4, 5]
    assert merged.forgotten == (EPOCH, EPOCH + 1)
    assert merge_accounts(merged, many[0], 4) is merged


def test_of_one_life_the_later_frame_is_the_newest_whichever_service_heard_it_begin_earlier() -> None:
    first, then = Account(4), Account(4)
    first.post(frame({1: [2, 0]}, seq=1, uptime_ns=10**9), at=1.006)
    then.post(frame({1: [4, 0]}, seq=2, uptime_ns=2 * 10**9), at=2.001)
    then.post(frame({1: [6, 0]}, seq=3, uptime_ns=3 * 10**9, ended=True), at=3.001)
    for pair in ((first.state(), then.state()), (then.state(), first.state())):
        merged = merge_accounts(*pair, max_epochs=4)
        assert (merged.latest.seq, merged.latest.ended, merged.totals.counts[0]) == (3, True, 6)
        assert [item.seq for item in merged.epochs] == [3]


def test_merging_starts_from_the_sum_that_has_all_of_the_other_s() -> None:
    starts = [(EPOCH + n, 1, 2) for n in range(6)]
    whole = account_of(*starts[:5], max_epochs=2).state()
    newer = account_of(*starts[1:], max_epochs=2, after_s=61).state()  # never knew the first
    for merged in (merge_accounts(whole, newer, 2), merge_accounts(newer, whole, 2)):
        assert merged.totals.counts[0] == 12
        assert sorted(item.epoch - EPOCH for item in merged.epochs) == [4, 5]
        assert merged.latest.epoch == EPOCH + 5
        assert merge_accounts(merged, newer, 2) is merged


def test_what_one_service_counts_from_zero_the_other_does_not_leave_out() -> None:
    whole, late = account_of((EPOCH, 1, 10)), account_of((EPOCH, 2, 30))
    late.leave_all_out(at=7.0)
    for pair in ((whole.state(), late.state()), (late.state(), whole.state())):
        merged = merge_accounts(*pair, max_epochs=4)
        assert (merged.totals.tokens, merged.base) == (15, None)
    later = account_of((EPOCH, 3, 40))
    later.leave_all_out(at=9.0)
    merged = merge_accounts(later.state(), late.state(), max_epochs=4)
    assert merged.base is not None
    assert (merged.totals.tokens, merged.base.totals.tokens, merged.base.at) == (20, 15, 7.0)


NOT_OF_ONE_LIFE = {"dp_size", "ep_size", "switches", "former_tokens", "unphased_tokens", "unphased_steps"}


def test_every_plain_number_is_the_sum_over_the_lives() -> None:
    def told(seq: int, times: int, epoch: int = EPOCH) -> Frame:
        numbers = {"steps": 2, "idle_steps": 3, "accepted_drafts": 5, "rejected_drafts": 7}
        grown = {name: times * value for name, value in numbers.items()}
        return frame({1: [22 * times, 0]}, seq=seq, epoch=epoch, drops={"post": times}, **grown)

    one, two = Account(4), Account(4)
    one.post(told(1, 4), at=1000.0)
    two.post(told(1, 4), at=1000.0)
    two.post(told(2, 40), at=1001.0)
    one.post(told(1, 1, EPOCH + 10**10), at=1010.0)
    plain = {item.name for item in fields(Totals) if item.type == "int"} - NOT_OF_ONE_LIFE
    for pair in ((one.state(), two.state()), (two.state(), one.state())):
        merged = merge_accounts(*pair, max_epochs=4)
        for name in sorted(plain):
            lives = [getattr(item.counted, name) for item in merged.epochs]
            assert all(lives), f"{name}: let the frames here tell one that is not zero"
            assert getattr(merged.totals, name) == sum(lives), name
        assert sum(merged.totals.drops.values()) == sum(
            sum(item.counted.drops.values()) for item in merged.epochs
        )
