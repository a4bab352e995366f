"""The joins of many deployments share one budget of memory."""

from __future__ import annotations

from moescope.service.counts.layers import Layout
from moescope.service.counts.step_costs import Stragglers
from moescope.service.live.step_joins import Joins
from moescope.service.store.records import Key
from tests.service.live.step_frames import stepped


class Accounts:
    """Takes what is credited, or not yet."""

    def __init__(self) -> None:
        self.open = True
        self.credited: dict[Key, list[Stragglers]] = {}

    def credit(self, key: Key, layout: Layout, more: Stragglers) -> bool:
        assert [layer.layer for layer in layout.layers] == [0, 2]
        if self.open:
            self.credited.setdefault(key, []).append(more)
        return self.open


def test_over_the_budget_the_largest_gives_up_and_counts_its_steps() -> None:
    accounts = Accounts()
    joins = Joins(accounts.credit, budget=190_000)
    joins.take(stepped(0, 0, [[1, 1]] * 50, model="small"))
    for first in range(0, 4000, 500):
        joins.take(stepped(0, first, [[1, 1]] * 500, model="large"))
    assert joins._nbytes <= 190_000
    given_up = sum(item.incomplete for item in accounts.credited["prod", "large", 0, 0, 0])
    assert given_up + joins.status("prod", "large")[0].pending == 4000
    assert joins.status("prod", "small")[0].pending == 50
    joins.take(stepped(1, 0, [[1, 1]] * 50, model="small"))
    assert accounts.credited["prod", "small", 0, 0, 0][-1].joined == 50
    for model in ("small", "large"):
        joins.forget(("prod", model, 0, 0, 0))
    assert joins._nbytes == 0


def test_what_is_joined_waits_for_the_first_worker_s_account() -> None:
    accounts = Accounts()
    joins = Joins(accounts.credit)
    accounts.open = False
    for rank in (0, 1):
        joins.take(stepped(rank, 0, [[1, 1]] * 3))
    accounts.open = True
    joins.take(stepped(0, 3, [[1, 1]]))
    assert [item.joined for item in accounts.credited["prod", "tiny", 0, 0, 0]] == [3]
