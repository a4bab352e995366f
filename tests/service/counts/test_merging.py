"""Accounts of several services, merged in any order: exact while epochs are remembered, never too much."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from moescope.service.counts.account import Account
from moescope.service.counts.account_state import AccountState
from moescope.service.counts.merging import merge_accounts
from moescope.service.counts.refusals import RefusedError
from tests.service.frames import EPOCH, frame

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

    def frame(self, at: int, epoch: int) -> None:
        state = self.states[at]
        account = Account(self.max_epochs) if state is None else Account.restored(state, self.max_epochs)
        slots = self.truth.get(epoch, 0) + 2
        try:
            account.post(frame({1: [slots, 0]}, epoch=EPOCH + epoch, seq=slots))
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
