"""Accounts for tests of stores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from moescope.capture import wire
from moescope.service.counts.account import Account
from moescope.service.counts.account_state import AccountState
from moescope.service.counts.layers import Layout
from moescope.service.counts.step_costs import stragglers_of
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


def full_account(phased: bool = True) -> Account:
    """Two epochs, EP ranks, uncovered and absent layers, drops, a count beyond 32 bits; one with phases."""
    made = Account(max_epochs=3)
    who = producer(ep_size=2)
    common = {"who": who, "placement": halves(4, 2), "drops": {"sends_failed": 3}}
    made.post(frame({1: [2**40, 0, 2, 0], 3: [2, 0, 0, 0]}, rows=[2**39 + 1, 1], steps=7, **common))
    uncovered = [wire.UncoveredLayer(7, "monolithic")]
    absent = {"absent": [wire.UncoveredLayer(8, "not found")], "absent_unnamed": "others neither"}
    common |= {"uncovered": uncovered, "unavailable": {"traces": "no Triton"}, **absent}
    made.post(frame({1: [0, 0, 1, 1], 3: [1, 0, 1, 0]}, epoch=EPOCH + 9, **common))
    if phased:
        decode = {1: [2, 0, 0, 0], 3: [0, 0, 2, 0]}
        steps = {"steps": 9, "decode_steps": 4, "mixed_steps": 2}
        made.post(frame(decode, epoch=EPOCH + 99, decode=decode, **steps, **common))
        loads = np.array([[[5, 1, 2], [0, 0, 0]], [[0, 2, 2], [2**31, 1, 0]]])
        layout = Layout([wire.MoeLayer(1, 4, 2), wire.MoeLayer(3, 4, 2)])
        assert made.add_stragglers(layout, stragglers_of(loads, joined=3, incomplete=2))
    return made
