"""Totals and accounts survive being bytes."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import zstandard

from moescope.service.counts.account import Account
from moescope.service.counts.layers import Layout
from moescope.service.counts.merging import merge_accounts
from moescope.service.counts.phase_split import Phase, of_phase
from moescope.service.counts.refusals import RefusedError
from moescope.service.counts.totals import Totals, no_totals
from moescope.service.store.blobs import compress, decompress, packed_ints
from moescope.service.store.codec import (
    decode_account,
    decode_posting,
    decode_totals,
    encode_account,
    encode_totals,
)
from moescope.service.store.packed import OnceBack, pack, unpack
from tests.service.frames import EPOCH, frame, halves, placement, producer
from tests.service.store.accounts import full_account

OLD = Path(__file__).parent / "sqlite" / "upgrade" / "schema3.sqlite"


def assert_same(a: Totals, b: Totals) -> None:
    assert a.layout == b.layout
    assert_same_fields(a, b, skip=("layout", "decode", "stragglers"))
    for mine, theirs in ((a.decode, b.decode), (a.stragglers, b.stragglers)):
        assert (mine is None) == (theirs is None)
        if mine is not None:
            assert_same_fields(mine, theirs)


def assert_same_fields(a: object, b: object, skip: tuple[str, ...] = ()) -> None:
    for name in [item.name for item in fields(a) if item.name not in skip]:  # type: ignore[arg-type]
        mine, theirs = getattr(a, name), getattr(b, name)
        np.testing.assert_array_equal(mine, theirs, err_msg=name)
        assert np.shape(mine) == np.shape(theirs)


def test_totals_come_back() -> None:
    totals = full_account().totals
    assert_same(decode_totals(encode_totals(totals)), totals)


def test_who_caused_waiting_is_nobody_in_totals_of_before_it_was_counted() -> None:
    packed = pack(full_account().totals)
    assert packed.stragglers is not None
    old = msgspec.structs.replace(packed.stragglers, caused=None)
    before = unpack(msgspec.structs.replace(packed, stragglers=old)).stragglers
    now = unpack(packed).stragglers
    assert before is not None
    assert now is not None
    assert now.caused.sum() > 0
    assert not before.caused.any()
    assert now.plus(before).caused.tolist() == now.caused.tolist()


def test_parts_of_slots_come_back_exactly() -> None:
    made, placed = Account(max_epochs=3), placement([0, 1, 0, 0], [0, 0, 1, 2], 1)
    for seq in range(1, 8):
        counts = {0: [2**40 * seq + 1, 2**40 * seq + 1]}
        made.post(frame(counts, decode={0: [seq] * 2}, who=producer(ep_size=3), seq=seq, placement=placed))
    made.post(frame({}, seq=1, epoch=EPOCH + 9, tokens=0, who=producer(ep_size=3), state="disabled"))
    found = decode_totals(encode_totals(made.totals))
    assert_same(found, made.totals)
    assert made.totals.ep_slots.parts is not None
    assert found.switches == 1
    assert of_phase(found, Phase.PREFILL).ep_slots == of_phase(made.totals, Phase.PREFILL).ep_slots


def test_drafts_come_back_and_do_not_shrink() -> None:
    made = Account(max_epochs=3)
    made.post(frame({0: [4, 4]}, seq=1, accepted_drafts=3, rejected_drafts=2))
    restored = Account.restored(decode_account(encode_account(made.state())), max_epochs=3)
    assert (restored.totals.accepted_drafts, restored.totals.rejected_drafts) == (3, 2)
    with pytest.raises(RefusedError, match="rejected_drafts: fell from 2"):
        restored.post(frame({0: [4, 4]}, seq=2, accepted_drafts=3, rejected_drafts=1))
    restored.post(frame({0: [1, 1]}, seq=1, epoch=EPOCH + 9, accepted_drafts=1))
    assert (restored.totals.accepted_drafts, restored.totals.rejected_drafts) == (4, 2)


def test_totals_without_layers_come_back() -> None:
    nothing = no_totals(Layout(()))
    assert_same(decode_totals(encode_totals(nothing)), nothing)


def test_an_account_comes_back_and_goes_on() -> None:
    original = full_account()
    restored = Account.restored(decode_account(encode_account(original.state())), max_epochs=3)
    assert_same(restored.totals, original.totals)
    assert restored.restarts == original.restarts == 2
    assert restored.latest is not None
    assert original.latest is not None
    mine, theirs = asdict(restored.latest), asdict(original.latest)
    assert_same(restored.latest.counted, original.latest.counted)
    assert {**mine, "counted": None} == {**theirs, "counted": None}
    late = frame(
        {1: [2**40, 0, 4, 2], 3: [4, 2, 0, 0]},
        rows=[2**39 + 3, 3],
        seq=2,
        steps=8,
        who=producer(ep_size=2),
        drops={"sends_failed": 4},
    )
    for posted in (restored, original):
        posted.post(late)
    assert_same(restored.totals, original.totals)


def test_a_blob_from_before_phases_is_unphased_and_goes_on() -> None:
    original = full_account(phased=False)
    blob = encode_account(original.state())
    packed = msgspec.msgpack.decode(zstandard.ZstdDecompressor().decompress(blob[1:]))
    for totals in (packed[0], *(epoch[2] for epoch in packed[1])):
        del totals[10:]  # where they ended then
    old = blob[:1] + zstandard.ZstdCompressor().compress(msgspec.msgpack.encode(packed))
    restored = Account.restored(decode_account(old), max_epochs=3)
    assert restored.totals.estimated.tolist() == [2**40 + 4, 4]  # nor did they tell what is an estimate
    assert_same(replace(restored.totals, estimated=original.totals.estimated), original.totals)
    assert restored.totals.unphased_rows.tolist() == restored.totals.rows.tolist() == [2**39 + 2, 2]
    decode = {1: [2, 0, 0, 0], 3: [0, 0, 2, 0]}
    restored.post(frame(decode, epoch=EPOCH + 99, decode=decode, who=producer(ep_size=2)))
    assert restored.totals.unphased_rows.tolist() == [2**39 + 2, 2]
    assert restored.totals.decode is not None
    assert restored.totals.decode.rows.tolist() == [1, 1]


def _as_before_estimates(blob: bytes) -> bytes:
    packed = msgspec.msgpack.decode(decompress(blob))
    del packed[13][8:], packed[22:]  # where decode and the whole ended then
    return compress(msgspec.msgpack.encode(packed))


def test_slots_by_ep_rank_of_a_blob_from_before_estimates_may_all_be_estimates() -> None:
    made, who = Account(max_epochs=3), producer(ep_size=2)
    made.post(frame({0: [6, 4]}, decode={0: [1, 1]}, who=who))
    made.post(frame({0: [106, 204]}, decode={0: [51, 1]}, who=who, seq=2, placement=halves(2, 1)))
    blob = encode_totals(made.totals)
    assert decode_totals(blob).estimated.tolist() == [0]
    old = decode_totals(_as_before_estimates(blob))
    assert old.estimated.tolist() == [300]
    assert [of_phase(old, phase).estimated.tolist() for phase in Phase] == [[250], [50]]
    assert decode_totals(encode_totals(old)).estimated.tolist() == [300]
    nowhere = Account(max_epochs=3)
    nowhere.post(frame({0: [6, 4]}, decode={0: [1, 1]}))
    assert decode_totals(_as_before_estimates(encode_totals(nowhere.totals))).estimated.tolist() == [0]


def test_estimates_come_back_by_phase() -> None:
    made = Account(max_epochs=3)
    where = placement([0, 1, 0], [0, 0, 1], 1)
    made.post(frame({0: [100, 10]}, decode={0: [80, 2]}, who=producer(ep_size=2), placement=where))
    found = decode_totals(encode_totals(made.totals))
    assert_same(found, made.totals)
    assert [of_phase(found, phase).estimated.tolist() for phase in Phase] == [[20], [80]]


def test_pool_and_role_come_back_and_older_accounts_have_none() -> None:
    made = Account(max_epochs=3)
    made.post(frame({0: [4, 2]}, who=producer(pool="chat", role="decode", start="x1")))
    blob = encode_account(made.state())
    found = decode_account(blob).latest.producer
    assert (found.pool, found.role, found.start) == ("chat", "decode", "x1")
    packed = msgspec.msgpack.decode(zstandard.ZstdDecompressor().decompress(blob[1:]))
    for name in ("pool", "role", "start"):  # before wire minor 5 a producer had none of them
        del packed[4][name]
    old = blob[:1] + zstandard.ZstdCompressor().compress(msgspec.msgpack.encode(packed))
    found = decode_account(old).latest.producer
    assert (found.pool, found.role, found.start) == ("", "", "")
    assert found.key == ("prod", "tiny", 0, 0, 0)


def test_decoder_layers_come_back_and_older_accounts_tell_none() -> None:
    made = Account(max_epochs=3)
    made.post(frame({1: [4, 2]}, decoder_layers=61))
    blob = encode_account(made.state())
    assert decode_account(blob).latest.decoder_layers == 61
    packed = msgspec.msgpack.decode(decompress(blob))
    assert packed.pop() == 61  # before wire minor 7 an account ended there
    assert decode_account(compress(msgspec.msgpack.encode(packed))).latest.decoder_layers == 0


def test_what_an_account_has_twice_comes_back_once() -> None:
    """The sum of a worker that started once is what its start counted, as it was before it was kept."""
    account = Account(max_epochs=2)
    account.post(frame({0: [3, 1], 4: [2, 2]}), at=0.0)
    found = decode_account(encode_account(account.state()))
    [life] = found.epochs
    assert found.totals.counts.tolist() == [3, 1, 2, 2]
    for name in ("counts", "layout", "ep_slots"):
        assert getattr(found.totals, name) is getattr(life.counted, name)
    assert found.totals.rows is not found.totals.unplaced


def test_arrays_of_one_size_are_each_their_own() -> None:
    once = OnceBack()
    one, other = np.arange(4), np.arange(1, 5)
    found = [once.ints(bytes(packed_ints(values)), 4) for values in (one, other, one)]
    assert [values.tolist() for values in found] == [one.tolist(), other.tolist(), one.tolist()]
    assert found[0] is found[2]
    with pytest.raises(ValueError, match="damaged"):
        once.ints(bytes(packed_ints(one)), 3)


def test_another_version_is_refused() -> None:
    blob = encode_totals(full_account().totals)
    with pytest.raises(ValueError, match="upgrade"):
        decode_totals(b"\x63" + blob[1:])


def test_damage_is_refused() -> None:
    blob = encode_totals(full_account().totals)
    with pytest.raises(ValueError, match="damaged"):
        decode_totals(blob[:1] + b"\0" * 20)


PLACED = [None, 0, -1, 2**31, 2**63 - 1, 2**64 - 1, b"", b"\xff" * 8, "", [], {}, [[0, 1, 1]], 0.5]


def _places(message: object, before: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where in a message something is, as the keys that lead there."""
    keys = range(len(message)) if isinstance(message, list) else message if isinstance(message, dict) else ()
    for key in keys:
        yield (*before, key)
        yield from _places(message[key], (*before, key))  # type: ignore[index]


@pytest.mark.parametrize("value", PLACED, ids=repr)
def test_whatever_is_in_one_place_of_an_account_it_comes_back_whole_or_not_at_all(value: object) -> None:
    """Damage that no checksum notices, and what a newer moescope may write."""
    original = full_account().state()
    message = msgspec.msgpack.decode(decompress(encode_account(original)))
    refused = 0
    for place in _places(message):
        changed = msgspec.msgpack.decode(msgspec.msgpack.encode(message))
        inner = changed
        for key in place[:-1]:
            inner = inner[key]
        inner[place[-1]] = value
        try:
            found = decode_account(compress(msgspec.msgpack.encode(changed)))
        except ValueError:
            refused += 1
        else:
            merge_accounts(found, original, 3)
            found.totals.minus(original.totals)
    assert refused > 20


def test_what_counters_leave_out_survives() -> None:
    account = Account(4)
    account.post(frame({1: [4, 0]}))
    account.leave_all_out(at=12.5)
    account.post(frame({1: [6, 2]}, seq=2))
    base = decode_account(encode_account(account.state())).base
    assert base is not None
    assert account.base is not None
    assert (base.at, base.restarts, base.totals.tokens) == (12.5, 0, 2)
    assert_same(base.totals, account.base.totals)


def test_lives_and_conflicts_survive_and_so_does_which_one_counts() -> None:
    made = Account(max_epochs=4)
    for n in range(1, 5):
        made.post(frame({0: [2 * n, 0]}, who=producer(host="a", pid=1), seq=n, after_s=n), at=100.0 + n)
        behind = frame(
            {0: [0, 2 * n]},
            who=producer(host="b", pid=2),
            epoch=EPOCH - 10**15,
            seq=n,
            after_s=n,
            uptime_ns=n,
            ended=n == 4,
        )
        made.post(behind, at=100.5 + n)
    state = made.state()
    again = decode_account(encode_account(state))
    assert again.latest.epoch == EPOCH - 10**15
    assert again.conflicts == state.conflicts != ()
    for mine, theirs in zip(again.epochs, state.epochs, strict=True):
        assert_same(mine.counted, theirs.counted)
        assert replace(mine, counted=theirs.counted) == theirs
    assert Account.restored(again, 4).conflict(105.0) is not None


def test_lives_that_were_kept_before_it_was_told_how_long_they_went_on_did_so_unless_they_ended() -> None:
    made = Account(max_epochs=4)
    made.post(frame({0: [2, 0]}), at=100.0)
    made.post(frame({0: [4, 0]}, seq=2, after_s=2, ended=True), at=101.0)
    made.post(frame({0: [2, 0]}, epoch=EPOCH + 10**12), at=102.0)
    packed = msgspec.msgpack.decode(decompress(encode_account(made.state())))
    assert [epoch.pop() for epoch in packed[1]] == [100.0, 102.0]
    again = decode_account(compress(msgspec.msgpack.encode(packed)))
    assert [life.going_at for life in again.epochs] == [0.0, 102.0]


def test_an_account_that_was_kept_before_lives_were_dated_goes_on() -> None:
    """The blob is of an account row that the code of commit 6ef10e3 wrote."""
    with closing(sqlite3.connect(f"file:{OLD}?mode=ro", uri=True)) as kept:
        row = kept.execute(
            "SELECT server, model, dp_rank, pp_rank, tp_rank, birth_ms, at_ms, account FROM producer"
        ).fetchone()
    *who, birth_ms, at_ms, blob = row
    posting = decode_posting((who[0], who[1], who[2], who[3], who[4]), birth_ms, at_ms, blob)
    [life] = posting.account.epochs
    assert (life.heard_at, life.producer) == (posting.at, posting.account.latest.producer)
    assert life.began_at == life.came_at == posting.at - posting.account.latest.age_at_capture
    tokens = posting.account.totals.tokens
    account = Account.restored(posting.account, 4)
    layers = {
        layer.layer: [layer.top_k, *[0] * (layer.num_experts - 1)] for layer in life.counted.layout.layers
    }
    top_k = life.counted.layout.layers[0].top_k
    new = frame(layers, top_k=top_k, who=posting.account.latest.producer, epoch=life.epoch - 10**15)
    account.post(new, at=posting.at + 30)
    assert account.latest is not None
    assert (account.latest.epoch, account.totals.tokens) == (new.epoch, tokens + 1)


def test_an_account_of_a_disabled_worker_that_was_kept_before_switches_were_has_one() -> None:
    made = Account(max_epochs=4)
    made.post(frame({0: [2, 0]}, state="disabled", state_reason="why"))
    state = made.state()
    old = replace(state, totals=replace(state.totals, switches=0))
    assert decode_account(encode_account(old)).totals.switches == 1
    assert decode_account(encode_account(state)).totals.switches == 1
