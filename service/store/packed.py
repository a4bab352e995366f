"""Totals as a message: the arrays are bytes, everything else is as it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple

import numpy as np
from msgspec import Struct

from moescope.capture.wire import Int64Array, MoeLayer
from moescope.service.counts.ep_slots import PARTS, EpSlots, of_floats
from moescope.service.counts.layers import Layout
from moescope.service.counts.reasons import known_drops
from moescope.service.counts.step_costs import Stragglers
from moescope.service.counts.totals import Decode, Totals
from moescope.service.counts.weights import WeightsTold
from moescope.service.store.blobs import floats, ints, packed_floats, packed_ints


class _PackedDecode(Struct, array_like=True, frozen=True):
    counts: bytes
    rows: bytes
    ep_slots: bytes
    unplaced: bytes
    tokens: int
    steps: int
    mixed_steps: int
    ep_parts: bytes | None = None
    estimated: bytes | None = None


class _PackedStragglers(Struct, array_like=True, frozen=True):
    max_slots: bytes
    mean_slots: bytes
    busy_steps: bytes
    hottest: bytes
    ep_ranks: int
    joined: int
    incomplete: int
    # Before it was counted it was not in the blob: it has nothing of those steps.
    caused: bytes | None = None


class PackedTotals(Struct, array_like=True, frozen=True):
    """Totals with their arrays as bytes; see :class:`moescope.service.counts.totals.Totals`."""

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
    # Parts of a slot, where there are any. Before they were kept the floats had all that was known.
    ep_parts: bytes | None = None
    switches: int = 0
    former_tokens: int = 0
    accepted_drafts: int = 0
    rejected_drafts: int = 0
    # No bytes: none are. Before they were counted they were not in the blob.
    estimated: bytes | None = None
    weights: tuple[int, str, float, int] = (0, "", 0.0, 0)


def pack(totals: Totals) -> PackedTotals:
    """Totals to what is kept of them."""
    return PackedTotals(
        layers=list(totals.layout.layers),
        counts=packed_ints(totals.counts),
        rows=packed_ints(totals.rows),
        ep_slots=packed_floats(totals.ep_slots.floats()),
        ep_ranks=totals.ep_slots.ranks,
        unplaced=packed_ints(totals.unplaced),
        tokens=totals.tokens,
        steps=totals.steps,
        idle_steps=totals.idle_steps,
        drops=dict(totals.drops),
        unphased_rows=packed_ints(totals.unphased_rows),
        unphased_tokens=totals.unphased_tokens,
        unphased_steps=totals.unphased_steps,
        decode=None if totals.decode is None else _pack_decode(totals.decode),
        stragglers=None if totals.stragglers is None else _pack_stragglers(totals.stragglers),
        dp_size=totals.dp_size,
        ep_size=totals.ep_size,
        ep_parts=_packed_parts(totals.ep_slots),
        switches=totals.switches,
        former_tokens=totals.former_tokens,
        accepted_drafts=totals.accepted_drafts,
        rejected_drafts=totals.rejected_drafts,
        estimated=_packed_estimated(totals.estimated),
        weights=astuple(totals.weights),
    )


def _pack_decode(decode: Decode) -> _PackedDecode:
    return _PackedDecode(
        counts=packed_ints(decode.counts),
        rows=packed_ints(decode.rows),
        ep_slots=packed_floats(decode.ep_slots.floats()),
        unplaced=packed_ints(decode.unplaced),
        tokens=decode.tokens,
        steps=decode.steps,
        mixed_steps=decode.mixed_steps,
        ep_parts=_packed_parts(decode.ep_slots),
        estimated=_packed_estimated(decode.estimated),
    )


def unpack(packed: PackedTotals) -> Totals:
    """What is kept of totals back to totals.

    Raises:
        ValueError: its arrays don't have the shapes that its layers say.
    """
    layout = _layout_of(packed.layers)
    size = len(layout.layers)
    rows = ints(packed.rows, size)
    told = packed.unphased_rows is not None
    estimated = _estimated(packed, packed.ep_ranks, layout)
    return Totals(
        layout=layout,
        counts=ints(packed.counts, int(layout.offsets[-1])),
        rows=rows,
        ep_slots=_ep_slots(packed, size, packed.ep_ranks),
        unplaced=ints(packed.unplaced, size),
        tokens=packed.tokens,
        steps=packed.steps,
        idle_steps=packed.idle_steps,
        drops=known_drops(packed.drops),
        unphased_rows=rows if packed.unphased_rows is None else ints(packed.unphased_rows, size),
        unphased_tokens=packed.unphased_tokens if told else packed.tokens,
        unphased_steps=packed.unphased_steps if told else packed.steps,
        decode=None
        if packed.decode is None
        else _unpack_decode(packed.decode, packed.ep_ranks, layout, estimated),
        stragglers=None if packed.stragglers is None else _unpack_stragglers(packed.stragglers, size),
        dp_size=packed.dp_size,
        ep_size=packed.ep_size,
        switches=packed.switches,
        former_tokens=packed.former_tokens,
        accepted_drafts=packed.accepted_drafts,
        rejected_drafts=packed.rejected_drafts,
        estimated=estimated,
        weights=WeightsTold(*packed.weights),
    )


def _packed_estimated(estimated: Int64Array) -> bytes:
    return packed_ints(estimated) if estimated.any() else b""


def _estimated(packed: PackedTotals | _PackedDecode, ranks: int, layout: Layout) -> Int64Array:
    """``Totals.estimated``; of a blob that is older than it the most that it can be: all that are placed."""
    size = len(layout.layers)
    if packed.estimated:
        return ints(packed.estimated, size)
    if packed.estimated is None and ranks:
        counts = ints(packed.counts, int(layout.offsets[-1]))
        return np.asarray(layout.sums(counts) - ints(packed.unplaced, size))
    return np.zeros(size, dtype=np.int64)


def _packed_parts(slots: EpSlots) -> bytes | None:
    return None if slots.parts is None else packed_ints(slots.parts.ravel())


def _ep_slots(packed: PackedTotals | _PackedDecode, layers: int, ranks: int) -> EpSlots:
    """Slots by EP rank: the floats are as they always were, so that older readers find what they know."""
    slots = floats(packed.ep_slots, layers, ranks)
    if packed.ep_parts is None:
        return of_floats(slots)
    parts = ints(packed.ep_parts, layers * ranks).reshape(layers, ranks)
    return EpSlots(np.rint(slots - parts / PARTS).astype(np.int64), parts)


def _layout_of(layers: Sequence[MoeLayer]) -> Layout:
    ids = [layer.layer for layer in layers]
    if ids != sorted(set(ids)):
        raise ValueError(f"a damaged blob: its layers {ids} don't rise")
    return Layout(layers)


def _unpack_decode(packed: _PackedDecode, ep_ranks: int, layout: Layout, most: Int64Array) -> Decode:
    """The decode part of totals of which ``most`` slots are estimated, int64 [L]."""
    size = len(layout.layers)
    return Decode(
        counts=ints(packed.counts, int(layout.offsets[-1])),
        rows=ints(packed.rows, size),
        ep_slots=_ep_slots(packed, size, ep_ranks),
        unplaced=ints(packed.unplaced, size),
        estimated=np.minimum(_estimated(packed, ep_ranks, layout), most),
        tokens=packed.tokens,
        steps=packed.steps,
        mixed_steps=packed.mixed_steps,
    )


def _pack_stragglers(stragglers: Stragglers) -> _PackedStragglers:
    return _PackedStragglers(
        max_slots=packed_ints(stragglers.max_slots),
        mean_slots=packed_floats(stragglers.mean_slots),
        busy_steps=packed_ints(stragglers.busy_steps),
        hottest=packed_floats(stragglers.hottest),
        ep_ranks=stragglers.hottest.shape[1],
        joined=stragglers.joined,
        incomplete=stragglers.incomplete,
        caused=packed_floats(stragglers.caused),
    )


def _unpack_stragglers(packed: _PackedStragglers, size: int) -> Stragglers:
    return Stragglers(
        max_slots=ints(packed.max_slots, size),
        mean_slots=floats(packed.mean_slots, size, 1)[:, 0],
        busy_steps=ints(packed.busy_steps, size),
        hottest=floats(packed.hottest, size, packed.ep_ranks),
        caused=np.zeros((size, packed.ep_ranks))
        if packed.caused is None
        else floats(packed.caused, size, packed.ep_ranks),
        joined=packed.joined,
        incomplete=packed.incomplete,
    )
