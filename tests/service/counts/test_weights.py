"""What an account knows of a producer's weights: since when it has them, and what was counted before."""

from __future__ import annotations

from typing import Any

import msgspec

from moescope.capture.wire import Frame
from moescope.service.counts.account import Account
from moescope.service.counts.merging import merge_accounts
from moescope.service.counts.weights import WeightsTold
from moescope.service.store.codec import decode_account, encode_account
from tests.service.frames import EPOCH, frame

BORN = EPOCH / 1e9


def told(seq: int, tokens: int, version: int, label: str = "", **fields: Any) -> Frame:
    return frame(
        {1: [2 * tokens, 0]}, seq=seq, weights_version=version, weights_label=label, after_s=seq, **fields
    )


def account_of(*frames: Frame) -> Account:
    made = Account(max_epochs=4)
    for number, item in enumerate(frames):
        made.post(item, at=BORN + 10 * (number + 1))
    return made


def test_weights_that_never_changed_are_of_all_tokens() -> None:
    assert account_of(told(1, 5, 0), told(2, 9, 0)).totals.weights == WeightsTold()


def test_what_a_worker_counted_before_it_was_heard_may_be_of_former_weights() -> None:
    assert account_of(told(1, 5, 3, "step-3")).totals.weights == WeightsTold(3, "step-3", BORN + 10, 5)


def test_a_change_is_dated_and_what_was_counted_by_then_is_of_the_former_weights() -> None:
    made = account_of(told(1, 5, 0), told(2, 9, 1, "a"), told(3, 20, 1, "a"))
    assert made.totals.weights == WeightsTold(1, "a", BORN + 20, 9)
    made.post(told(4, 30, 2, "b"), at=BORN + 50)
    assert made.totals.weights == WeightsTold(2, "b", BORN + 50, 30)


def test_a_late_frame_changes_nothing() -> None:
    made = account_of(told(1, 5, 0), told(3, 20, 1))
    made.post(told(2, 9, 0), at=BORN + 50)
    assert made.totals.weights == WeightsTold(1, "", BORN + 20, 20)


def test_a_worker_that_starts_again_loads_its_weights_anew() -> None:
    later = EPOCH + 10**11
    same = account_of(told(1, 5, 0), told(1, 3, 0, epoch=later))
    assert same.totals.weights == WeightsTold()
    back = account_of(told(1, 5, 2), told(1, 3, 0, epoch=later))
    assert (back.totals.weights.at, back.totals.weights.tokens) == (BORN + 20, 5)
    unknown = account_of(told(1, 5, 2), told(1, 3, 2, epoch=later))
    assert (unknown.totals.weights.at, unknown.totals.weights.tokens) == (BORN + 20, 8)


def test_it_is_there_after_a_restart_of_the_service() -> None:
    made = account_of(told(1, 5, 0), told(2, 9, 1, "a"))
    kept = Account.restored(decode_account(encode_account(made.state())), 4)
    assert kept.totals.weights == made.totals.weights
    kept.post(told(3, 12, 1, "a"), at=BORN + 90)
    assert kept.totals.weights == made.totals.weights


def test_two_services_know_the_newer_weights_and_all_that_may_be_of_older_ones() -> None:
    frames = [told(1, 5, 0), told(2, 9, 0), told(3, 20, 1)]
    one, other = account_of(*frames[:2]).state(), account_of(frames[0], frames[2]).state()
    merged = merge_accounts(one, other, 4)
    assert merged.totals.weights == WeightsTold(1, "", BORN + 20, 20)


def test_a_service_that_knows_only_the_restart_hears_of_the_change_before_it() -> None:
    later = EPOCH + 50 * 10**9
    before, after = [told(1, 100, 0), told(3, 2000, 1)], told(1, 10, 0, epoch=later)
    one, two = Account(4), Account(4)
    one.post(before[0], at=BORN + 10)
    one.post(before[1], at=BORN + 20)
    two.post(after, at=BORN + 100)
    merged = [
        merge_accounts(*pair, max_epochs=4)
        for pair in ((one.state(), two.state()), (two.state(), one.state()))
    ]
    one.post(after, at=BORN + 100)
    assert one.totals.weights == WeightsTold(0, "", BORN + 100, 2000)
    assert [state.totals.weights for state in merged] == [one.totals.weights] * 2
    again = merge_accounts(merged[0], two.state(), max_epochs=4)
    assert again.totals.weights == one.totals.weights


def test_a_merge_takes_all_of_former_lives_for_former_weights() -> None:
    later = EPOCH + 50 * 10**9
    one = account_of(told(1, 5, 1), told(2, 2000, 1))
    two = account_of(told(1, 5, 1), told(1, 3, 0, epoch=later), told(2, 9, 0, epoch=later))
    assert two.totals.weights.tokens == 5
    for pair in ((one.state(), two.state()), (two.state(), one.state())):
        merged = merge_accounts(*pair, max_epochs=4).totals
        assert (merged.tokens, merged.weights.at, merged.weights.tokens) == (2009, BORN + 20, 2000)


def test_a_merge_of_lives_whose_weights_never_changed_says_so() -> None:
    later = EPOCH + 50 * 10**9
    one, two = account_of(told(1, 5, 0)), account_of(told(1, 3, 0, epoch=later))
    assert merge_accounts(one.state(), two.state(), 4).totals.weights == WeightsTold()


def test_late_frames_of_a_former_life_are_not_of_the_new_weights() -> None:
    later = EPOCH + 50 * 10**9
    made = account_of(told(1, 100, 0), told(1, 10, 1, epoch=later))
    assert made.totals.weights == WeightsTold(1, "", BORN + 20, 110)
    made.post(told(2, 2100, 0), at=BORN + 21)
    assert made.totals.weights == WeightsTold(1, "", BORN + 20, 2110)
    # The former life changed its weights when the new one had begun.
    back = account_of(told(1, 100, 0), told(1, 10, 0, epoch=later))
    assert back.totals.weights == WeightsTold()
    back.post(told(2, 120, 0), at=BORN + 30)
    assert back.totals.weights == WeightsTold()
    back.post(told(3, 200, 1, "a"), at=BORN + 40)
    assert back.totals.weights == WeightsTold(0, "", BORN + 40, 210)


def test_a_frame_of_an_older_worker_says_nothing_of_weights() -> None:
    old = msgspec.structs.replace(told(1, 5, 0), wire=(1, 5))
    assert account_of(old, told(2, 6, 0)).totals.weights == WeightsTold()
