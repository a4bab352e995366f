"""Slots by EP rank as workers count them, and what becomes of those of older workers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from moescope.capture import wire
from moescope.service.counts.account import Account
from moescope.service.counts.merging import merge_accounts
from moescope.service.counts.phase_split import Phase, of_phase
from moescope.service.counts.refusals import RefusedError
from moescope.service.counts.totals import Totals
from moescope.service.store.codec import decode_account, encode_account
from tests.service.frames import EPOCH, frame, pack, placement, producer

TWO = producer(dp_size=1, ep_size=2)
REPLICATED = placement([0, 1, 0, 1], [0, 0, 1, 0], 1)
"""Expert 0 is on both EP ranks, expert 1 twice on EP rank 0."""


def told(
    counts: Sequence[int],
    by_rank: Sequence[int] | None,
    seq: int,
    decode: Sequence[int] | None = None,
    decode_by_rank: Sequence[int] = (),
    **fields: Any,
) -> wire.Frame:
    """A frame of one layer of two experts, with the slots by EP rank that its worker counted, if it does."""
    if by_rank is not None:
        fields["ep_slots"] = pack([by_rank])
    if decode is not None and by_rank is not None:
        fields["decode_ep_slots"] = pack([decode_by_rank])
    fields = {"placement": REPLICATED, "who": TWO, **fields}
    return frame({3: counts}, seq=seq, decode=None if decode is None else {3: decode}, **fields)


def shown(totals: Totals) -> tuple[list[float], int, int]:
    """Slots by EP rank, those of unknown rank, and those that are an estimate."""
    slots = totals.ep_slots.floats()[0].tolist() if totals.ep_slots.ranks else []
    return slots, int(totals.unplaced[0]), int(totals.estimated[0])


def test_what_the_worker_counted_takes_the_place_of_the_split() -> None:
    account = Account(max_epochs=4)
    account.post(told([2, 2], [4, 0], 1))
    assert shown(account.totals) == ([4, 0], 0, 0)
    account.post(told([8, 4], [5, 7], 2, placement=None))
    assert shown(account.totals) == ([5, 7], 0, 0)
    account.post(told([2, 0], [0, 2], 1, epoch=EPOCH + 1), at=EPOCH / 1e9 + 90)
    assert shown(account.totals) == ([5, 9], 0, 0)


def test_each_phase_has_its_own() -> None:
    account = Account(max_epochs=4)
    account.post(told([2, 2], [3, 1], 1, [2, 0], [2, 0]))
    account.post(told([6, 4], [4, 6], 2, [4, 2], [3, 3]))
    assert shown(of_phase(account.totals, Phase.DECODE)) == ([3, 3], 0, 0)
    assert shown(of_phase(account.totals, Phase.PREFILL)) == ([1, 3], 0, 0)


def test_slots_that_the_map_gave_to_no_rank_are_unplaced() -> None:
    account = Account(max_epochs=4)
    account.post(told([4, 4], [4, 2], 1, [2, 2], [1, 1]))
    assert shown(account.totals) == ([4, 2], 2, 0)
    assert account.totals.decode is not None
    assert account.totals.decode.unplaced.tolist() == [2]


def test_the_split_of_older_workers_is_an_estimate_where_copies_are_on_several_ranks() -> None:
    account = Account(max_epochs=4)
    account.post(told([4, 2], None, 1))
    assert shown(account.totals) == ([4, 2], 0, 4)  # all of expert 1 is on EP rank 0, whichever copy
    exact = Account(max_epochs=4)
    exact.post(told([4, 2], None, 1, placement=placement([0, 1], [0, 1], 1)))
    assert shown(exact.totals) == ([4, 2], 0, 0)


def test_a_worker_that_stops_to_count_them_goes_on_with_the_split() -> None:
    """One that begins again to tell them is counted exactly from its next frame on."""
    account = Account(max_epochs=4)
    account.post(told([2, 2], [4, 0], 1))
    account.post(told([6, 2], None, 2))
    assert shown(account.totals) == ([6, 2], 0, 4)
    account.post(told([8, 4], [9, 3], 3))
    assert shown(account.totals) == ([6 + 1 + 2, 3], 0, 6)
    account.post(told([9, 5], [11, 3], 4))
    assert shown(account.totals) == ([11, 3], 0, 6)


def test_another_number_of_ranks_is_no_difference_of_ranks() -> None:
    account = Account(max_epochs=4)
    account.post(told([2, 2], [4, 0], 1))
    wider = producer(dp_size=1, ep_size=3)
    account.post(told([4, 2], [4, 1, 1], 2, who=wider, placement=None))
    assert shown(account.totals) == ([4, 0], 2, 0)
    account.post(told([6, 2], [4, 1, 3], 3, who=wider, placement=None))
    assert shown(account.totals) == ([4, 0, 2], 2, 0)


def test_a_service_that_starts_again_goes_on_exactly() -> None:
    account = Account(max_epochs=4)
    account.post(told([2, 2], [4, 0], 1, [1, 1], [2, 0]))
    account.post(told([4, 2], None, 1, epoch=EPOCH + 1), at=EPOCH / 1e9 + 90)
    again = Account.restored(decode_account(encode_account(account.state())), 4)
    assert shown(again.totals) == shown(account.totals) == ([8, 2], 0, 4)
    again.post(told([8, 4], [5, 7], 2, [3, 1], [2, 2]), at=EPOCH / 1e9 + 91)
    assert shown(again.totals) == ([9, 9], 0, 4)


def test_a_number_that_shrinks_is_refused() -> None:
    account = Account(max_epochs=4)
    account.post(told([4, 4], [4, 4], 1))
    with pytest.raises(RefusedError, match=r"ep_slots\[1\]: fell from 4 \(seq 1\) to 3"):
        account.post(told([4, 4], [5, 3], 2))
    phased = Account(max_epochs=4)
    phased.post(told([4, 4], [4, 4], 1, [2, 2], [2, 2]))
    with pytest.raises(RefusedError, match=r"ep_slots less decode_ep_slots\[0\]: fell from 2"):
        phased.post(told([6, 6], [6, 6], 2, [4, 4], [5, 3]))


def test_services_that_hear_different_frames_agree_on_slots_by_ep_rank() -> None:
    one, other = Account(max_epochs=4), Account(max_epochs=4)
    one.post(told([2, 2], [4, 0], 1), at=EPOCH / 1e9 + 1)
    other.post(told([8, 4], [5, 7], 2), at=EPOCH / 1e9 + 2)
    merged = merge_accounts(one.state(), other.state(), 4)
    assert shown(merged.totals) == ([5, 7], 0, 0)
    late = Account(max_epochs=4)
    late.post(told([9, 5], None, 3), at=EPOCH / 1e9 + 3)  # which tells them no more
    merged = merge_accounts(one.state(), late.state(), 4)
    assert shown(merged.totals)[1:] in {(0, 9), (10, 0)}
    assert int(merged.totals.counts.sum()) == 14


def test_counts_never_depend_on_what_is_told_of_ranks() -> None:
    rng = np.random.default_rng(1)
    account, truth = Account(max_epochs=4), np.zeros(2, np.int64)
    ranks, exact = np.zeros(2, np.int64), 0
    for seq in range(1, 40):
        new = rng.integers(0, 9, 2)
        truth += new
        ranks += rng.multinomial(new.sum(), [0.5, 0.5])
        account.post(told(truth.tolist(), ranks.tolist() if rng.random() < 0.7 else None, seq))
        totals = account.totals
        slots, unplaced, _ = shown(totals)
        assert sum(slots) + unplaced == truth.sum() == totals.counts.sum()
        exact += totals.estimated[0] == 0
    assert 0 < exact < 39


def test_slots_of_no_rank_do_not_become_fewer() -> None:
    account = Account(max_epochs=4)
    account.post(told([100, 100], [0, 0], 1))
    assert shown(account.totals) == ([0, 0], 200, 0)
    with pytest.raises(RefusedError, match=r"counts less ep_slots\[0\]: fell from 200 \(seq 1\) to 0"):
        account.post(told([100, 100], [100, 100], 2))
    account.post(told([150, 100], [30, 20], 2))
    assert shown(account.totals) == ([30, 20], 200, 0)
    decode = Account(max_epochs=4)
    decode.post(told([8, 8], [4, 4], 1, [4, 4], [0, 0]))
    with pytest.raises(RefusedError, match=r"decode_counts less decode_ep_slots\[0\]: fell from 8"):
        decode.post(told([16, 16], [8, 8], 2, [4, 4], [2, 2]))
    prefill = Account(max_epochs=4)
    prefill.post(told([8, 8], [4, 4], 1, [4, 4], [4, 4]))
    with pytest.raises(RefusedError, match=r"counts less ep_slots, less those of decode\[0\]: fell from 8"):
        prefill.post(told([16, 16], [8, 8], 2, [12, 12], [4, 4]))
    assert [shown(made.totals)[0] for made in (decode, prefill)] == [[4, 4]] * 2


def test_what_is_estimated_is_of_the_phase_that_it_was_computed_for() -> None:
    account = Account(max_epochs=4)
    account.post(told([100, 40], None, 1, decode=[60, 20]))
    account.post(told([200, 80], None, 2, decode=[80, 60]))
    parts = [shown(of_phase(account.totals, phase)) for phase in Phase]
    assert parts == [([80, 60], 0, 120), ([100, 40], 0, 80)]
