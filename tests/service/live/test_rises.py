"""What is taken of a span without its difference is what the difference says."""

from __future__ import annotations

import numpy as np
import pytest

from moescope.service.counts.account import Account
from moescope.service.counts.narrow import narrowed
from moescope.service.counts.rank_work import work_between, work_of
from moescope.service.counts.totals import Totals
from moescope.service.live.spans import Span
from tests.service.frames import EPOCH, frame


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


@pytest.mark.parametrize("first", [None, 1, 2])
@pytest.mark.parametrize("narrow", [False, True])
def test_a_rise_adds_up_to_the_difference(first: int | None, narrow: bool) -> None:
    last = _totals(2)
    before = None if first is None else last if first == 2 else _totals(first)
    if narrow and before is not None and first == 1:
        before, last = narrowed(before), narrowed(last)
    span = Span(before, last, 0.0, 0.0 if first == 2 else 1.0, truncated=False)
    rise, delta = span.rise, span.delta
    assert rise.rows.tolist() == delta.rows.tolist()
    assert (rise.tokens, rise.unphased_tokens) == (delta.tokens, delta.unphased_tokens)
    assert rise.layout == delta.layout
    for name in ("counts", "unplaced", "estimated"):
        found = np.zeros(len(getattr(delta, name)), np.int64)
        for totals, add in rise.terms:
            add(found, getattr(totals, name), out=found)
        assert found.tolist() == getattr(delta, name).tolist()


def test_a_rise_over_a_change_of_layers_is_the_difference() -> None:
    account = Account(max_epochs=2)
    account.post(frame({1: [1, 3]}, seq=1))
    before = account.totals
    account.post(frame({1: [2, 4], 2: [3, 3]}, seq=1, epoch=EPOCH + 1))
    rise = Span(before, account.totals, 0.0, 1.0, truncated=False).rise
    assert (rise.minus, rise.plus.counts.tolist(), rise.rows.tolist()) == (None, [2, 4, 3, 3], [3, 3])
