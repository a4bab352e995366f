"""Every store: what can't be read is left out and told, and everything else goes on."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any, Final

import msgspec
import numpy as np
import pytest
import zstandard

from moescope.capture.wire.traces import Run
from moescope.service.live.state import LiveState
from moescope.service.settings import Settings
from moescope.service.store.blobs import compress
from moescope.service.store.codec import decode_posting, encode_account
from moescope.service.store.damage import TRIES
from moescope.service.store.interface import Store
from moescope.service.store.open import open_store
from moescope.service.store.records import ArrivedPart, Document, StoreError, TraceQuery
from tests.service.conftest import Service
from tests.service.frames import frame, halves, producer
from tests.service.store.accounts import BORN, key, posting
from tests.service.store.rewriting import rewrite
from tests.service.trace_parts import part


@pytest.fixture
def store(store_setting: str) -> Iterator[Store]:
    with closing(open_store(Settings(store=store_setting))) as opened:
        yield opened


def repacked(change: Callable[[list[object]], None]) -> Callable[[bytes], bytes]:
    """A blob whose message is another, with a right checksum: what no checksum notices."""

    def changed(blob: bytes) -> bytes:
        message = msgspec.msgpack.decode(zstandard.ZstdDecompressor().decompress(blob[1:]))
        change(message)
        packed = zstandard.ZstdCompressor(write_checksum=True).compress(msgspec.msgpack.encode(message))
        return blob[:1] + packed

    return changed


def _fewer_counts(totals: list[object]) -> None:
    counts = totals[1]
    assert isinstance(counts, bytes)
    totals[1] = counts[:-8]


def _of_account(change: Callable[[list[object]], None]) -> Callable[[list[object]], None]:
    def changed(account: list[object]) -> None:
        assert isinstance(account[0], list)
        change(account[0])

    return changed


def _no_epoch(account: list[object]) -> None:
    account[1] = []


def _layers_twice(totals: list[object]) -> None:
    assert isinstance(totals[0], list)
    totals[0] = totals[0][:1] * 2


def flipped(blob: bytes) -> bytes:
    middle = len(blob) // 2
    return blob[:middle] + bytes([blob[middle] ^ 16]) + blob[middle + 1 :]


def of_a_huge_size(blob: bytes) -> bytes:
    """One bit, by which the frame says that it unpacks to more than there is memory."""
    assert zstandard.frame_content_size(blob[1:]) < 1 << 16
    found = blob[:5] + bytes([blob[5] | 0xC0]) + blob[6:]  # the size takes 8 bytes
    assert zstandard.frame_content_size(found[1:]) > 1 << 40
    return found


CHANGES = {
    "truncated": (lambda blob: blob[: len(blob) // 2], "a damaged blob"),
    "empty": (lambda _: b"", "a blob of version b''"),
    "flipped": (flipped, "a damaged blob"),
    "of a huge size": (of_a_huge_size, "a damaged blob: its size can't be true"),
    "of a newer version": (lambda blob: b"\x02" + blob[1:], r"version b'\x02', this moescope reads b'\x01'"),
    "of too few counts": (repacked(_of_account(_fewer_counts)), "a damaged blob: an array of 56 bytes"),
    "of layers that don't rise": (repacked(_of_account(_layers_twice)), "a damaged blob: its layers [1, 1]"),
    "without an epoch": (repacked(_no_epoch), "a damaged blob: an account without a frame"),
    "no account": (repacked(list.clear), "a damaged blob: Expected `array` of at least length"),
    "another's": (
        lambda _: encode_account(posting([8, 8, 8, 8], 5, dp_rank=0).account),
        "its account is that of ('prod', 'tiny', 0, 0, 0)",
    ),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_an_account_that_cannot_be_read_costs_that_account_only(
    store: Store, log: pytest.LogCaptureFixture, kind: str
) -> None:
    change, reason = CHANGES[kind]
    store.save([posting([2, 0, 0, 0], 5), posting([4, 0, 0, 0], 5, dp_rank=1)])
    rewrite(store, "account", "account", "dp_rank = 1", change)
    assert [item.key for item in store.accounts()] == [key(0)]
    [line] = [record.getMessage() for record in log.records]
    assert "the account of ('prod', 'tiny', 1, 0, 0) can't be read and is left out" in line
    assert reason in line
    assert "comes back with its next frame" in line
    store.save([posting([6, 0, 0, 0], 6, dp_rank=1)])
    assert sorted(item.key for item in store.accounts()) == [key(0), key(1)]


def test_a_service_starts_without_what_cannot_be_read(
    start_service: Callable[..., Service], store_setting: str, log: pytest.LogCaptureFixture
) -> None:
    """An account and a baseline are damaged, and the document that says how far history has aged."""
    kept = [
        posting([4, 2, 1, 1], 5),
        posting([4, 2, 1, 1], 5, dp_rank=1),
        Document("baseline", "pinned", b"\xff"),
        Document("aged", "aged", b"\xff"),
    ]
    with closing(open_store(Settings(store=store_setting))) as store:
        store.save(kept)
        rewrite(store, "account", "account", "dp_rank = 1", flipped)
    service = start_service(store=store_setting, min_tokens=1)
    assert _dp_ranks(service) == [0]
    assert service.get("/v1/baselines")["baselines"] == []
    who = producer(dp_rank=1, dp_size=2, ep_rank=1, ep_size=2)
    placed, counts = halves(4, layers=2), [4, 2, 1, 1]
    answer = service.push(frame({1: counts, 3: counts}, who=who, seq=9000, placement=placed, after_s=9))
    assert answer.json()["result"] == "accepted"
    assert _dp_ranks(service) == [0, 1]
    for told in ("account of ('prod', 'tiny', 1, 0, 0)", "baseline pinned", "how far the history"):
        assert told in log.text


def _dp_ranks(service: Service) -> list[int]:
    [deployment] = service.get("/v1/ranks")["deployments"]
    return [rank["dp_rank"] for rank in deployment["dp_ranks"]]


def test_totals_that_cannot_be_read_are_passed_over(store: Store, log: pytest.LogCaptureFixture) -> None:
    seconds = range(2, 42, 2)
    store.save([posting([2 * n, 0, 0, 0], n) for n in seconds])
    changes = (lambda blob: blob[:20], flipped, lambda blob: b"\x02" + blob[1:], repacked(_fewer_counts))
    lost = [2, 10, 12, 20]
    for second, change in zip(lost, changes, strict=True):
        rewrite(store, "snapshot", "totals", f"at_ms = {round((BORN + second) * 1000)}", change)

    asked = [1, 3, 5, 10, 11, 13, 15, 20, 60]
    found = store.totals_at(key(), [BORN + second for second in asked])
    assert [item and round(item.at - BORN) for item in found] == [None, None, 4, 8, 8, 8, 14, 18, 40]
    assert [item and int(item.totals.counts[0]) for item in found] == [None, None, 8, 16, 16, 16, 28, 36, 80]
    oldest = store.oldest(key())
    assert oldest is not None
    assert oldest.at == BORN + 4
    [line] = [record.getMessage() for record in log.records]
    assert "totals of ('prod', 'tiny', 0, 0, 0) can't be read" in line


def test_a_boundary_that_only_totals_long_before_it_can_answer(store: Store) -> None:
    """Snapshots are two minutes apart: more than ClickHouse's store looks back for the newest frame."""
    seconds = [120 * n for n in range(1, TRIES + 3)]
    store.save([posting([2 * n, 0, 0, 0], n) for n in seconds])
    for second in seconds[1:TRIES]:
        rewrite(store, "snapshot", "totals", f"at_ms = {round((BORN + second) * 1000)}", flipped)
    [found] = store.totals_at(key(), [BORN + seconds[TRIES - 1]])
    assert found is not None
    assert found.at == BORN + seconds[0]
    rewrite(store, "snapshot", "totals", f"at_ms = {round((BORN + seconds[0]) * 1000)}", flipped)
    assert store.totals_at(key(), [BORN + seconds[TRIES - 1]]) == [None]
    assert store.oldest(key()) is None


RUNS = {
    "no runs": lambda _: b"\xc1",
    "truncated": lambda blob: blob[:-1],
    "of no token": lambda _: msgspec.msgpack.encode([]),
    "of more tokens than memory holds": lambda _: msgspec.msgpack.encode([Run(0, (1 << 31) - 1)] * 64),
}


@pytest.mark.parametrize("kind", RUNS)
def test_a_trace_whose_positions_cannot_be_read(store: Store, kind: str) -> None:
    store.save([ArrivedPart(part(1), BORN)])
    rewrite(store, "trace_part", "runs", "part = 0", RUNS[kind])
    store.save([ArrivedPart(part(2), BORN + 1)])
    other, broken = store.traced_requests(TraceQuery())
    with pytest.raises(StoreError, match=r"can't be read: a damaged (trace|blob)"):
        store.traces(broken.number, None)[0].runs.sum()
    [worker] = store.traces(other.number, None)
    np.testing.assert_array_equal(worker.positions, np.arange(part(2).tokens))


ODD: Final = (
    None,
    -1,
    1 << 62,
    -(1 << 63),
    (1 << 64) - 1,
    "x",
    b"",
    b"\xff" * 8,
    [],
    True,
    1.5,
    math.nan,
    math.inf,
)


def _places(message: object, at: tuple[int | str, ...] = ()) -> Iterator[tuple[int | str, ...]]:
    """Every place in a message."""
    if at:
        yield at
    if isinstance(message, list | dict):
        for name in range(len(message)) if isinstance(message, list) else message:
            yield from _places(message[name], (*at, name))


def _with(message: Any, at: tuple[int | str, ...], value: object) -> Any:
    """A copy of a message with another value in a place."""
    if not at:
        return value
    found = message.copy()
    found[at[0]] = _with(message[at[0]], at[1:], value)
    return found


def test_an_account_with_anything_in_any_place_is_refused_or_harms_nothing() -> None:
    """What no checksum notices: a row that a faulty program wrote. It kept services from starting."""
    state = posting([4, 2, 1, 1], 5).account
    message = msgspec.msgpack.decode(zstandard.ZstdDecompressor().decompress(encode_account(state)[1:]))
    born_ms, taken = round(BORN * 1000), 0
    for at in _places(message):
        for value in ODD:
            blob = compress(msgspec.msgpack.encode(_with(message, at, value)))
            try:
                found = decode_posting(key(0), born_ms, born_ms + 5000, blob)
            except ValueError:
                continue
            taken += 1
            live = LiveState(Settings(store="none"), lambda: BORN + 60)
            (live.restore if taken % 2 else live.adopt)([found])
            [member] = live.producers()
            assert live.spans(member.latest.producer.key[:2], None, None)
    assert taken > 100
