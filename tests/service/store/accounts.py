"""Accounts for tests of stores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from moescope.service.counts.account import Account
from moescope.service.counts.account_state import AccountState
from moescope.service.store.interface import Store
from moescope.service.store.records import Key, Posting
from tests.service.frames import EPOCH, frame, halves, producer

BORN = EPOCH / 1e9
LATER = EPOCH + 10**9
"""Another epoch."""


def posting(
    counts: Sequence[int], after_s: float, dp_rank: int = 0, epoch: int = EPOCH, **fields: Any
) -> Posting:
    """The posting of an account whose only frame has these counts, in layers 1 and 3."""
    account = Account(max_epochs=4)
    who = producer(dp_rank=dp_rank, dp_size=2, ep_rank=dp_rank, ep_size=2)
    placed = halves(len(counts), layers=2)
    seq = int(after_s * 1000) + 1
    made = frame({1: counts, 3: counts}, who=who, epoch=epoch, seq=seq, placement=placed)
    account.post(made, at=BORN + after_s)
    return Posting(who.key, BORN, BORN + after_s, account.state(), **fields)


def key(dp_rank: int = 0) -> Key:
    return producer(dp_rank=dp_rank, dp_size=2).key


def instants(store: Store, upto_s: int, dp_rank: int = 0) -> list[int]:
    """Seconds after the birth at which a producer has totals."""
    found = store.totals_at(key(dp_rank), [BORN + second for second in range(upto_s + 1)])
    return sorted({round(item.at - BORN) for item in found if item is not None})


def account_of(*frames: tuple[int, int, int], max_epochs: int = 4, after_s: float = 1.0) -> Account:
    """An account after frames of (epoch, seq, slots of expert 0) that came a minute apart."""
    made = Account(max_epochs)
    for n, (epoch, seq, slots) in enumerate(frames):
        made.post(frame({1: [slots, 0]}, epoch=epoch, seq=seq), at=BORN + after_s + 60 * n)
    return made


def posted(state: AccountState, after_s: float) -> Posting:
    """The posting of an account, so long after the birth."""
    return Posting(state.latest.producer.key, BORN, BORN + after_s, state)


def slots(postings: Sequence[Posting]) -> list[int]:
    """The slots of expert 0 of each account."""
    return [int(item.account.totals.counts[0]) for item in postings]
