"""Totals and accounts survive being bytes."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
import pytest

from moescope.capture import wire
from moescope.service.ledger import Account
from moescope.service.store.codec import decode_account, decode_totals, encode_account, encode_totals
from moescope.service.totals import Layout, Totals, no_totals
from tests.service.frames import EPOCH, frame, halves, producer


def assert_same(a: Totals, b: Totals) -> None:
    assert a.layout == b.layout
    for name in ("counts", "rows", "ep_slots", "unplaced"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
        assert getattr(a, name).shape == getattr(b, name).shape
    assert (a.tokens, a.steps, a.idle_steps, a.drops) == (b.tokens, b.steps, b.idle_steps, b.drops)


def account() -> Account:
    """Two epochs, EP ranks, an uncovered layer, drops, and a count beyond 32 bits."""
    made = Account(max_epochs=2)
    who = producer(ep_size=2)
    fields = {"who": who, "placement": halves(4, 2), "drops": {"sends_failed": 3}}
    made.post(frame({1: [2**40, 0, 2, 0], 3: [2, 0, 0, 0]}, rows=[2**39 + 1, 1], **fields))
    uncovered = [wire.UncoveredLayer(7, "monolithic")]
    made.post(frame({1: [0, 0, 1, 1], 3: [1, 0, 1, 0]}, epoch=EPOCH + 9, uncovered=uncovered, **fields))
    return made


def test_totals_come_back() -> None:
    totals = account().totals
    assert_same(decode_totals(encode_totals(totals)), totals)


def test_totals_without_layers_come_back() -> None:
    nothing = no_totals(Layout(()))
    assert_same(decode_totals(encode_totals(nothing)), nothing)


def test_an_account_comes_back_and_goes_on() -> None:
    original = account()
    restored = Account.restored(decode_account(encode_account(original.state())), max_epochs=2)
    assert_same(restored.totals, original.totals)
    assert restored.restarts == original.restarts == 1
    assert restored.latest is not None
    assert original.latest is not None
    mine, theirs = asdict(restored.latest), asdict(original.latest)
    assert_same(restored.latest.counted, original.latest.counted)
    assert {**mine, "counted": None} == {**theirs, "counted": None}
    late = frame(
        {1: [2**40, 0, 4, 2], 3: [4, 2, 0, 0]},
        rows=[2**39 + 3, 3],
        seq=2,
        who=producer(ep_size=2),
        drops={"sends_failed": 4},
    )
    for posted in (restored, original):
        posted.post(late)
    assert_same(restored.totals, original.totals)


def test_another_version_is_refused() -> None:
    blob = encode_totals(account().totals)
    with pytest.raises(ValueError, match="upgrade"):
        decode_totals(b"\x63" + blob[1:])


def test_damage_is_refused() -> None:
    blob = encode_totals(account().totals)
    with pytest.raises(ValueError, match="damaged"):
        decode_totals(blob[:1] + b"\0" * 20)
