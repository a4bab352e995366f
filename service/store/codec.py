"""What every engine keeps as bytes, and back: totals, accounts, and the runs of a trace's tokens.

Totals and accounts are msgpack of :mod:`moescope.service.store.packed` in a blob of
:mod:`moescope.service.store.blobs`. What comes back is whole, or it is a :class:`ValueError`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, Final

import msgspec
import numpy as np

from moescope.capture.wire import Int64Array, Producer, UncoveredLayer
from moescope.capture.wire.traces import ExpertArray, Run
from moescope.service.counts.account_state import AccountState, Latest, left_out
from moescope.service.counts.epoch_state import EpochState
from moescope.service.counts.narrow import widened
from moescope.service.counts.reasons import known_traces
from moescope.service.counts.totals import Totals, no_totals
from moescope.service.store.blobs import compress_pieces, decompress
from moescope.service.store.message import Message, pieces_of
from moescope.service.store.packed import Once, OnceBack, PackedTotals, pack, unpack
from moescope.service.store.records import Key, Posting

_INT64: Final = 1 << 63


class _PackedEpoch(Message, frozen=True):
    epoch: int
    seq: int
    counted: PackedTotals
    # Before lives were ordered by the service's clock blobs ended here.
    producer: Producer | None = None
    began_at: float = 0.0
    started_at: float = 0.0
    came_at: float = 0.0
    heard_at: float = 0.0
    made_at: float = 0.0
    captured_at_ns: int = 0
    lag: float = 0.0
    overlaps: int = 0
    spoken_at: float = 0.0
    ended: bool = False
    # Before parts of lives were kept blobs ended here.
    added: PackedTotals | None = None
    stragglers: PackedTotals | None = None
    # Before it was kept how long lives went on blobs ended here.
    going_at: float | None = None


class _PackedBase(Message, frozen=True):
    totals: PackedTotals
    restarts: int
    at: float


class _PackedAccount(Message, frozen=True):
    totals: PackedTotals
    epochs: list[_PackedEpoch]
    forgotten_up_to: int
    epochs_seen: int
    producer: Producer
    seq: int
    captured_at_ns: int
    state: str
    state_reason: str
    uncovered: list[UncoveredLayer]
    placement_version: int | None
    traces: dict[str, int] = msgspec.field(default_factory=dict)
    strategy: str = ""
    forgotten: tuple[int, ...] = ()
    unavailable: dict[str, str] = msgspec.field(default_factory=dict)
    absent: list[UncoveredLayer] = msgspec.field(default_factory=list)
    absent_unnamed: str = ""
    current: int | None = None
    conflicts: list[tuple[float, float]] = msgspec.field(default_factory=list)
    ended: bool = False
    base: _PackedBase | None = None
    decoder_layers: int = 0


_totals_decoder = msgspec.msgpack.Decoder(PackedTotals)
_account_decoder = msgspec.msgpack.Decoder(_PackedAccount)
_runs_decoder = msgspec.msgpack.Decoder(list[Run])


def encode_totals(totals: Totals) -> bytes:
    """Totals as a blob."""
    return compress_pieces(list(pieces_of(pack(totals))))


def decode_totals(blob: object) -> Totals:
    """A blob back to totals; see :func:`moescope.service.store.blobs.decompress`.

    Raises:
        ValueError: the blob is damaged, or of a newer version.
    """
    return unpack(_decoded(_totals_decoder, decompress(blob)))


def encode_account(account: AccountState) -> bytes:
    """An account as a blob."""
    once = Once()
    return _encoded(account, pack(account.totals, once), once)


def encode_both(account: AccountState) -> tuple[bytes, bytes]:
    """An account and its totals, each as a blob; together they take little more than the account alone."""
    once = Once()
    totals = pack(account.totals, once)
    return _encoded(account, totals, once), compress_pieces(list(pieces_of(totals)))


def _encoded(account: AccountState, totals: PackedTotals, once: Once) -> bytes:
    latest, base = account.latest, account.base
    packed = _PackedAccount(
        totals=totals,
        epochs=[_pack_epoch(item, once) for item in account.epochs],
        forgotten_up_to=max(account.forgotten, default=0),
        epochs_seen=account.epochs_seen,
        producer=latest.producer,
        seq=latest.seq,
        captured_at_ns=latest.captured_at_ns,
        state=latest.state,
        state_reason=latest.state_reason,
        uncovered=list(latest.uncovered),
        placement_version=latest.placement_version,
        traces=dict(latest.traces),
        strategy=latest.strategy,
        forgotten=account.forgotten,
        unavailable=dict(latest.unavailable),
        absent=list(latest.absent),
        absent_unnamed=latest.absent_unnamed,
        current=latest.epoch,
        conflicts=list(account.conflicts),
        ended=latest.ended,
        base=None if base is None else _PackedBase(pack(widened(base.totals), once), base.restarts, base.at),
        decoder_layers=latest.decoder_layers,
    )
    return compress_pieces(list(pieces_of(packed)), repeats=True)


def decode_account(blob: object) -> AccountState:
    """A blob back to an account; see :func:`moescope.service.store.blobs.decompress`.

    Raises:
        ValueError: the blob is damaged, or of a newer version.
    """
    packed: _PackedAccount = _decoded(_account_decoder, decompress(blob))
    if not packed.epochs:
        raise ValueError("a damaged blob: an account without a frame")
    once = OnceBack()
    epochs = tuple(_unpack_epoch(item, once) for item in packed.epochs)
    newest = max(epochs, key=lambda item: item.epoch)  # as older blobs had it
    if packed.current is not None:
        found = next((item for item in epochs if item.epoch == packed.current), None)
        if found is None:
            raise ValueError(f"a damaged blob: its epoch {packed.current} isn't there")
        newest = found
    latest = Latest(
        producer=packed.producer,
        epoch=newest.epoch,
        seq=packed.seq,
        captured_at_ns=packed.captured_at_ns,
        state=packed.state,
        state_reason=packed.state_reason,
        uncovered=tuple(packed.uncovered),
        placement_version=packed.placement_version,
        counted=newest.counted,
        traces=known_traces(packed.traces),
        strategy=packed.strategy,
        unavailable=packed.unavailable,
        absent=tuple(packed.absent),
        absent_unnamed=packed.absent_unnamed,
        ended=packed.ended,
        decoder_layers=packed.decoder_layers,
    )
    who = packed.producer  # older blobs lack the sizes in their totals
    totals = unpack(packed.totals, once)
    # They also lack the switches of capture, of which a worker that is disabled had one at least.
    switches = totals.switches + (totals.switches % 2 != (packed.state == "disabled"))
    totals = replace(totals, dp_size=who.dp_size, ep_size=who.ep_size, switches=switches)
    # Older blobs have the last one only; no epoch is 0.
    forgotten = packed.forgotten or ((packed.forgotten_up_to,) if packed.forgotten_up_to else ())
    out = packed.base
    base = None if out is None else left_out(unpack(out.totals, once), out.restarts, out.at)
    return AccountState(totals, epochs, forgotten, packed.epochs_seen, latest, tuple(packed.conflicts), base)


def _pack_epoch(item: EpochState, once: Once) -> _PackedEpoch:
    return _PackedEpoch(
        epoch=item.epoch,
        seq=item.seq,
        counted=pack(item.counted, once),
        producer=item.producer,
        began_at=item.began_at,
        started_at=item.started_at,
        came_at=item.came_at,
        heard_at=item.heard_at,
        made_at=item.made_at,
        captured_at_ns=item.captured_at_ns,
        lag=item.lag,
        overlaps=item.overlaps,
        spoken_at=item.spoken_at,
        ended=item.ended,
        added=None if item.added is None else pack(item.added, once),
        stragglers=None if item.stragglers is None else pack(_only_stragglers(item)),
        going_at=item.going_at,
    )


def _only_stragglers(item: EpochState) -> Totals:
    """Totals of which nothing but the stragglers is told: their arrays have the layout of ``counted``."""
    return replace(no_totals(item.counted.layout), stragglers=item.stragglers)


def _unpack_epoch(item: _PackedEpoch, once: OnceBack) -> EpochState:
    return EpochState(
        epoch=item.epoch,
        seq=item.seq,
        counted=unpack(item.counted, once),
        producer=item.producer,
        began_at=item.began_at,
        started_at=item.started_at,
        came_at=item.came_at,
        heard_at=item.heard_at,
        made_at=item.made_at,
        captured_at_ns=item.captured_at_ns,
        lag=item.lag,
        overlaps=item.overlaps,
        spoken_at=item.spoken_at,
        ended=item.ended,
        added=None if item.added is None else unpack(item.added, once),
        stragglers=None if item.stragglers is None else unpack(item.stragglers, once).stragglers,
        going_at=item.going_at if item.going_at is not None else 0.0 if item.ended else item.made_at,
    )


def decode_posting(key: Key, birth_ms: object, at_ms: object, blob: object) -> Posting:
    """A row of accounts back to a posting.

    Args:
        key: whose row it is.
        birth_ms, at_ms: integers, milliseconds of Unix time. Damage may have made something else of them.
        blob: the account.

    Raises:
        ValueError: the account is damaged, of a newer version, or another producer's.
    """
    account = decode_account(blob)
    if account.latest.producer.key != key:
        raise ValueError(f"a damaged row: its account is that of {account.latest.producer.key}")
    if not isinstance(birth_ms, int) or not isinstance(at_ms, int):
        raise ValueError(f"a damaged row: from {birth_ms!r} to {at_ms!r} ms")
    return Posting(key, birth_ms / 1000, at_ms / 1000, account.dated(at_ms / 1000))


def runs_of(blobs: Iterable[bytes], tokens: int) -> Int64Array:
    """The runs of a trace's tokens, int64 [R, 2], from those of its parts in their order.

    Runs that go on where the one before ended are one. One part is decoded at a time.

    Raises:
        ValueError: the runs are damaged, or not of so many tokens.
    """
    found = [np.empty((0, 2), np.int64)]
    count = 0
    for blob in blobs:
        part: list[Run] = _decoded(_runs_decoder, blob)
        count += sum(run.count for run in part)
        numbers = (number for run in part for number in (run.first, run.count))
        found.append(np.fromiter(numbers, np.int64, 2 * len(part)).reshape(-1, 2))
    if not tokens or count != tokens:
        raise ValueError(f"a damaged trace: {tokens} of its {count} tokens are there")
    runs = np.concatenate(found)
    if len(runs) == 1:
        return runs
    begins = np.flatnonzero(np.append(True, runs[1:, 0] != runs[:-1].sum(axis=1)))
    return np.stack([runs[begins, 0], np.add.reduceat(runs[:, 1], begins)], axis=1)


def no_ids(id_bytes: int, top_k: int) -> ExpertArray:
    """The ids of no token, uint8 or uint16 [0, top_k]."""
    return np.empty((0, top_k), np.uint8) if id_bytes == 1 else np.empty((0, top_k), np.uint16)


def _decoded(decoder: msgspec.msgpack.Decoder[Any], data: bytes) -> Any:
    """What a message holds: integers of 64 bits and finite numbers, as its encoder had them.

    Raises:
        ValueError: it is damaged.
    """
    try:
        found = decoder.decode(data)
    except (msgspec.DecodeError, RecursionError) as error:
        raise ValueError(f"a damaged blob: {error}") from error
    _check_numbers(msgspec.to_builtins(found, builtin_types=(bytes,)))
    return found


def _check_numbers(found: object) -> None:
    left = [found]
    while left:  # one at a time: services read each other's accounts again and again
        item = left.pop()
        kind = type(item)
        if kind is int:
            if not -_INT64 <= item < _INT64:  # type: ignore[operator]
                raise ValueError("a damaged blob: an integer of more than 64 bits")
        elif kind is list or kind is tuple:
            left += item  # type: ignore[arg-type]
        elif kind is dict:
            left += item.values()  # type: ignore[attr-defined]
        elif kind is float and not math.isfinite(item):  # type: ignore[arg-type]
            raise ValueError(f"a damaged blob: a number that is {item}")
