"""What a life has in its account's totals adds up, whoever heard which of its frames."""

from __future__ import annotations

from typing import Any

import pytest

from moescope.capture.wire import Frame
from moescope.service.counts.account import Account
from moescope.service.counts.merging import merge_accounts
from moescope.service.counts.parts import part_of
from moescope.service.counts.totals import Totals
from tests.service.frames import EPOCH, frame, halves, pack, producer

LATER = EPOCH + 10**9


def _frame(seq: int, epoch: int = EPOCH, **fields: Any) -> Frame:
    return frame({0: [4 * seq, 2 * seq]}, who=producer(ep_size=2), seq=seq, epoch=epoch, top_k=1, **fields)


def _tells_all(seq: int, epoch: int = EPOCH) -> Frame:
    return _frame(
        seq,
        epoch,
        decode={0: [seq, seq]},
        ep_slots=pack([[4 * seq, 2 * seq]]),
        decode_ep_slots=pack([[seq, seq]]),
    )


def _tells_a_placement(seq: int, epoch: int = EPOCH) -> Frame:
    return _frame(seq, epoch, placement=halves(2, 1))


def _numbers(totals: Totals) -> tuple[Any, ...]:
    decode = None if totals.decode is None else totals.decode.counts.tolist()
    places = totals.ep_slots.whole.tolist(), totals.unplaced.tolist(), totals.unphased_tokens
    return totals.tokens, totals.counts.tolist(), decode, places


@pytest.mark.parametrize("make", [_frame, _tells_all, _tells_a_placement])
def test_parts_add_up_to_the_totals(make: Any) -> None:
    account = Account(4)
    for made in (make(1), make(2), make(1, LATER), make(4), make(3, LATER)):
        account.post(made)
    first, second = (part_of(life) for life in account.state().epochs)
    assert _numbers(first.plus(second)) == _numbers(account.totals)


def test_phases_and_places_that_workers_tell_are_exact_in_merged_accounts() -> None:
    one, other, all_of_it = Account(4), Account(4), Account(4)
    for n, made in enumerate(
        (_tells_all(1), _tells_all(2), _tells_all(1, LATER), _tells_all(3), _tells_all(2, LATER))
    ):
        (one if n % 2 else other).post(made)
        all_of_it.post(made)
    for states in ((one.state(), other.state()), (other.state(), one.state())):
        assert _numbers(merge_accounts(*states, 4).totals) == _numbers(all_of_it.totals)
    assert all_of_it.totals.unphased_tokens == 0
    assert not all_of_it.totals.unplaced.any()


def test_who_knows_more_of_a_life_tells_its_part() -> None:
    """Both have its newest frame; one of them also had the earlier ones, and so their places."""
    knows, late = Account(4), Account(4)
    for seq in (1, 2):
        knows.post(_tells_a_placement(seq))
    late.post(_frame(1))
    late.post(_tells_a_placement(2))
    for states in ((knows.state(), late.state()), (late.state(), knows.state())):
        assert _numbers(merge_accounts(*states, 4).totals) == _numbers(knows.totals)
