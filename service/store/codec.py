"""Totals and accounts as bytes: msgpack of byte-shuffled arrays, zstd at level 1.

The bytes of an array are regrouped by significance before compression (all lowest bytes first), since the
high bytes of counts are nearly all zero. Each blob begins with a version byte.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import msgspec
import numpy as np
import zstandard
from msgspec import Struct

from moescope.capture.wire import Int64Array, MoeLayer, Producer, UncoveredLayer
from moescope.service.counts.account import AccountState, EpochState, Latest
from moescope.service.counts.layers import Layout
from moescope.service.counts.step_costs import Stragglers
from moescope.service.counts.totals import Decode, Totals
from moescope.service.measures.arrays import FloatArray

_VERSION: Final = b"\x01"
_LEVEL: Final = 1
_MAX_BLOB: Final = 1 << 30


class _PackedDecode(Struct, array_like=True, frozen=True):
    counts: bytes
    rows: bytes
    ep_slots: bytes
    unplaced: bytes
    tokens: int
    steps: int
    mixed_steps: int


class _PackedStragglers(Struct, array_like=True, frozen=True):
    max_slots: bytes
    mean_slots: bytes
    busy_steps: bytes
    hottest: bytes
    ep_ranks: int
    joined: int
    incomplete: int


class _PackedTotals(Struct, array_like=True, frozen=True):
    layers: list[MoeLayer]
    counts: bytes
    rows: bytes
    ep_slots: bytes
    ep_ranks: int
    unplaced: bytes
    tokens: int
    steps: int
    idle_steps: int
    drops: dict[str, int]
    # Before phases were counted blobs ended here: then all of it is unphased.
    unphased_rows: bytes | None = None
    unphased_tokens: int = 0
    unphased_steps: int = 0
    decode: _PackedDecode | None = None
    stragglers: _PackedStragglers | None = None
    dp_size: int = 0
    ep_size: int = 0


class _PackedEpoch(Struct, array_like=True, frozen=True):
    epoch: int
    seq: int
    counted: _PackedTotals


class _PackedAccount(Struct, array_like=True, frozen=True):
    totals: _PackedTotals
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
    traces: dict[str, int] = {}
    strategy: str = ""
    forgotten: tuple[int, ...] = ()


_encoder = msgspec.msgpack.Encoder()
_totals_decoder = msgspec.msgpack.Decoder(_PackedTotals)
_account_decoder = msgspec.msgpack.Decoder(_PackedAccount)


def encode_totals(totals: Totals) -> bytes:
    """Totals as a blob."""
    return _compress(_encoder.encode(_pack(totals)))


def decode_totals(blob: bytes) -> Totals:
    """A blob back to totals.

    Raises:
        ValueError: it isn't one, or of a newer version.
    """
    return _unpack(_totals_decoder.decode(_decompress(blob)))


def encode_account(account: AccountState) -> bytes:
    """An account as a blob."""
    latest = account.latest
    packed = _PackedAccount(
        totals=_pack(account.totals),
        epochs=[_PackedEpoch(item.epoch, item.seq, _pack(item.counted)) for item in account.epochs],
        forgotten_up_to=account.forgotten[-1],
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
    )
    return _compress(_encoder.encode(packed))


def decode_account(blob: bytes) -> AccountState:
    """A blob back to an account.

    Raises:
        ValueError: it isn't one, or of a newer version.
    """
    packed = _account_decoder.decode(_decompress(blob))
    epochs = tuple(EpochState(item.epoch, item.seq, _unpack(item.counted)) for item in packed.epochs)
    newest = max(epochs, key=lambda item: item.epoch)
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
        traces=packed.traces,
        strategy=packed.strategy,
    )
    who = packed.producer  # older blobs lack the sizes in their totals
    totals = replace(_unpack(packed.totals), dp_size=who.dp_size, ep_size=who.ep_size)
    forgotten = packed.forgotten or (packed.forgotten_up_to,)
    return AccountState(totals, epochs, forgotten, packed.epochs_seen, latest)


def _pack(totals: Totals) -> _PackedTotals:
    return _PackedTotals(
        layers=list(totals.layout.layers),
        counts=_packed_ints(totals.counts),
        rows=_packed_ints(totals.rows),
        ep_slots=_packed_floats(totals.ep_slots),
        ep_ranks=totals.ep_slots.shape[1],
        unplaced=_packed_ints(totals.unplaced),
        tokens=totals.tokens,
        steps=totals.steps,
        idle_steps=totals.idle_steps,
        drops=dict(totals.drops),
        unphased_rows=_packed_ints(totals.unphased_rows),
        unphased_tokens=totals.unphased_tokens,
        unphased_steps=totals.unphased_steps,
        decode=None if totals.decode is None else _pack_decode(totals.decode),
        stragglers=None if totals.stragglers is None else _pack_stragglers(totals.stragglers),
        dp_size=totals.dp_size,
        ep_size=totals.ep_size,
    )


def _pack_decode(decode: Decode) -> _PackedDecode:
    return _PackedDecode(
        counts=_packed_ints(decode.counts),
        rows=_packed_ints(decode.rows),
        ep_slots=_packed_floats(decode.ep_slots),
        unplaced=_packed_ints(decode.unplaced),
        tokens=decode.tokens,
        steps=decode.steps,
        mixed_steps=decode.mixed_steps,
    )


def _unpack(packed: _PackedTotals) -> Totals:
    layout, rows = Layout(packed.layers), _ints(packed.rows)
    told = packed.unphased_rows is not None
    return Totals(
        layout=layout,
        counts=_ints(packed.counts),
        rows=rows,
        ep_slots=_floats(packed.ep_slots, packed.ep_ranks, layout),
        unplaced=_ints(packed.unplaced),
        tokens=packed.tokens,
        steps=packed.steps,
        idle_steps=packed.idle_steps,
        drops=packed.drops,
        unphased_rows=rows if packed.unphased_rows is None else _ints(packed.unphased_rows),
        unphased_tokens=packed.unphased_tokens if told else packed.tokens,
        unphased_steps=packed.unphased_steps if told else packed.steps,
        decode=None if packed.decode is None else _unpack_decode(packed.decode, packed.ep_ranks, layout),
        stragglers=None if packed.stragglers is None else _unpack_stragglers(packed.stragglers, layout),
        dp_size=packed.dp_size,
        ep_size=packed.ep_size,
    )


def _unpack_decode(packed: _PackedDecode, ep_ranks: int, layout: Layout) -> Decode:
    return Decode(
        counts=_ints(packed.counts),
        rows=_ints(packed.rows),
        ep_slots=_floats(packed.ep_slots, ep_ranks, layout),
        unplaced=_ints(packed.unplaced),
        tokens=packed.tokens,
        steps=packed.steps,
        mixed_steps=packed.mixed_steps,
    )


def _pack_stragglers(stragglers: Stragglers) -> _PackedStragglers:
    return _PackedStragglers(
        max_slots=_packed_ints(stragglers.max_slots),
        mean_slots=_packed_floats(stragglers.mean_slots),
        busy_steps=_packed_ints(stragglers.busy_steps),
        hottest=_packed_floats(stragglers.hottest),
        ep_ranks=stragglers.hottest.shape[1],
        joined=stragglers.joined,
        incomplete=stragglers.incomplete,
    )


def _unpack_stragglers(packed: _PackedStragglers, layout: Layout) -> Stragglers:
    return Stragglers(
        max_slots=_ints(packed.max_slots),
        mean_slots=_floats(packed.mean_slots, 1, layout)[:, 0],
        busy_steps=_ints(packed.busy_steps),
        hottest=_floats(packed.hottest, packed.ep_ranks, layout),
        joined=packed.joined,
        incomplete=packed.incomplete,
    )


def _packed_ints(values: Int64Array) -> bytes:
    return _shuffle(values.astype("<i8", copy=False))


def _packed_floats(values: FloatArray) -> bytes:
    return _shuffle(values.astype("<f8", copy=False))


def _ints(data: bytes) -> Int64Array:
    return _unshuffle(data, "<i8").astype(np.int64)


def _floats(data: bytes, ep_ranks: int, layout: Layout) -> FloatArray:
    return _unshuffle(data, "<f8").astype(np.float64).reshape(len(layout.layers), ep_ranks)


def _shuffle(values: np.ndarray) -> bytes:
    """Values of 8 bytes to planes of their bytes, lowest first; shifts are quicker than a transposed copy."""
    words = np.ascontiguousarray(values).reshape(-1).view("<u8")
    used = (int(words.max(initial=0)).bit_length() + 7) // 8
    planes = [(words >> np.uint64(8 * plane)).astype(np.uint8).tobytes() for plane in range(used)]
    return b"".join(planes) + bytes((8 - used) * len(words))


def _unshuffle(data: bytes, dtype: str) -> np.ndarray:
    planes = np.frombuffer(data, np.uint8).reshape(8, -1)
    words = np.zeros(planes.shape[1], dtype="<u8")
    for number, plane in enumerate(planes):
        if plane.any():
            words |= plane.astype(np.uint64) << np.uint64(8 * number)
    return words.view(dtype)


def _compress(data: bytes) -> bytes:
    return _VERSION + zstandard.ZstdCompressor(level=_LEVEL, write_checksum=True).compress(data)


def _decompress(blob: bytes) -> bytes:
    if blob[:1] != _VERSION:
        raise ValueError(f"a blob of version {blob[:1]!r}, this moescope reads {_VERSION!r}: upgrade it")
    try:
        return zstandard.ZstdDecompressor().decompress(blob[1:], max_output_size=_MAX_BLOB)
    except zstandard.ZstdError as error:
        raise ValueError(f"a damaged blob: {error}") from error
