"""What is taken of a span without its difference is what the difference says."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest

from moescope.service.counts.account import Account
from moescope.service.counts.rank_work import work_between, work_of
from moescope.service.counts.totals import Totals
from moescope.service.live.spans import Span
from tests.service.frames import frame


def _totals(steps: int) -> Totals:
    account = Account(max_epochs=2)
    for seq in range(1, steps + 1):
        counts, decode = {1: [2 * seq, seq + 2, 1, seq]}, {1: [seq, 1, 0, 1]}
        drops = {"sends_failed": seq} | ({"traces_full": 2} if seq > 1 else {})
        account.post(
            frame(
                counts,
                seq=seq,
                decode=decode,
                rows=[2 * seq + 1],
                steps=2 * seq,
                decode_steps=seq,
                drops=drops,
            )
        )
    return account.totals


@pytest.mark.parametrize("first", [None, 1, 2])
def test_work_and_drops_are_those_of_the_difference(first: int | None) -> None:
    last = _totals(2)
    before = None if first is None else last if first == 2 else _totals(first)
    span = Span(before, last, 0.0, 0.0 if first == 2 else 1.0, truncated=False)
    assert work_between([(span.first, span.last)]) == work_of([span.delta])
    assert span.drops == span.delta.drops
    assert span.delta.decode is not None


def test_without_its_phases_it_is_the_same_difference() -> None:
    span = Span(_totals(1), _totals(2), 0.0, 1.0, truncated=False)
    whole, undivided = span.delta, span.undivided
    assert undivided.decode is None
    for item in fields(Totals):
        if item.name not in ("decode", "layout", "ep_slots"):
            np.testing.assert_array_equal(getattr(whole, item.name), getattr(undivided, item.name))
    assert undivided.ep_slots == whole.ep_slots
