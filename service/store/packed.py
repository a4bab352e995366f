"""Totals as a message: the arrays are bytes, everything else is as it is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import astuple
from typing import TypeVar, cast

import numpy as np

from moescope.capture.wire import Int64Array, MoeLayer
from moescope.service.counts.ep_slots import PARTS, EpSlots, of_floats
from moescope.service.counts.layers import Layout
from moescope.service.counts.reasons import known_drops
from moescope.service.counts.step_costs import Stragglers
from moescope.service.counts.totals import Decode, Totals
from moescope.service.counts.weights import WeightsTold
from moescope.service.store.blobs import Planes, floats, ints, packed_floats, packed_ints
from moescope.service.store.message import Message, Packed

Made = TypeVar("Made")


class _PackedDecode(Message, frozen=True):
    counts: Packed
    rows: Packed
    ep_slots: Packed
    unplaced: Packed
    tokens: int
    steps: int
    mixed_steps: int
    ep_parts: Packed | None = None
    estimated: Packed | None = None


class _PackedStragglers(Message, frozen=True):
    max_slots: Packed
    mean_slots: Packed
    busy_steps: Packed
    hottest: Packed
    ep_ranks: int
    joined: int
    incomplete: int
    # Before it was counted it was not in the blob: it has nothing of those steps.
    caused: Packed | None = None


class PackedTotals(Message, frozen=True):
    """Totals with their arrays as bytes; see :class:`moescope.service.counts.totals.Totals`."""

    layers: list[MoeLayer]
    counts: Packed
    rows: Packed
    ep_slots: Packed
    ep_ranks: int
    unplaced: Packed
    tokens: int
    steps: int
    idle_steps: int
    drops: dict[str, int]
    # Before phases were counted blobs ended here: then all of it is unphased.
    unphased_rows: Packed | None = None
    unphased_tokens: int = 0
    unphased_steps: int = 0
    decode: _PackedDecode | None = None
    stragglers: _PackedStragglers | None = None
    dp_size: int = 0
    ep_size: int = 0
    # Parts of a slot, where there are any. Before they were kept the floats had all that was known.
    ep_parts: Packed | None = None
    switches: int = 0
    former_tokens: int = 0
    accepted_drafts: int = 0
    rejected_drafts: int = 0
    # No bytes: none are. Before they were counted they were not in the blob.
    estimated: Packed | None = None
    weights: tuple[int, str, float, int] = (0, "", 0.0, 0)


class Once:
    """What was packed already, so that arrays which several totals share are packed once."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[object, Planes]] = {}

    def ints(self, values: Int64Array) -> Planes:
        """Integers of any shape as bytes."""
        return self._of(values, lambda: packed_ints(values))

    def slots(self, slots: EpSlots) -> Planes:
        """Slots by EP rank, as floats."""
        return self._of(slots, lambda: packed_floats(slots.floats()))

    def _of(self, what: object, packed: Callable[[], Planes]) -> Planes:
        found = self._known.get(id(what))  # which is its own for as long as it is held here
        if found is None:
            found = self._known[id(what)] = (what, packed())
        return found[1]


class OnceBack:
    """What was unpacked already: bytes that are there twice become one array, as they were before.

    An account's sum is what its only start counted, so that is half of most accounts.
    """

    def __init__(self) -> None:
        self._known: dict[int | str, list[tuple[object, object]]] = {}

    def ints(self, data: Packed, size: int) -> Int64Array:
        """Bytes back to int64 [size].

        Raises:
            ValueError: they are not of so many integers.
        """
        return self.same(size, data, lambda: ints(data, size))

    def same(self, kind: int | str, told: object, made: Callable[[], Made]) -> Made:
        """What is made of something that was told; of the same that was told before it is what was made then.

        Args:
            kind: what is made, for arrays their size; what is made of another kind is another one.
            told: equal to all of which the same is made, and to nothing else.
            made: makes it.
        """
        known = self._known.setdefault(kind, [])
        for before, found in known:
            if before == told:
                return cast("Made", found)
        known.append((told, found := made()))
        return found


def pack(totals: Totals, once: Once | None = None) -> PackedTotals:
    """Totals to what is kept of them; ``once`` knows what they may share with totals packed before."""
    once = once or Once()
    return PackedTotals(
        layers=list(totals.layout.layers),
        counts=once.ints(totals.counts),
        rows=once.ints(totals.rows),
        ep_slots=once.slots(totals.ep_slots),
        ep_ranks=totals.ep_slots.ranks,
        unplaced=packed_ints(totals.unplaced),
        tokens=totals.tokens,
        steps=totals.steps,
        idle_steps=totals.idle_steps,
        drops=dict(totals.drops),
        unphased_rows=packed_ints(totals.unphased_rows),
        unphased_tokens=totals.unphased_tokens,
        unphased_steps=totals.unphased_steps,
        decode=None if totals.decode is None else _pack_decode(totals.decode, once),
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


def _pack_decode(decode: Decode, once: Once) -> _PackedDecode:
    return _PackedDecode(
        counts=once.ints(decode.counts),
        rows=once.ints(decode.rows),
        ep_slots=once.slots(decode.ep_slots),
        unplaced=packed_ints(decode.unplaced),
        tokens=decode.tokens,
        steps=decode.steps,
        mixed_steps=decode.mixed_steps,
        ep_parts=_packed_parts(decode.ep_slots),
        estimated=_packed_estimated(decode.estimated),
    )


def unpack(packed: PackedTotals, once: OnceBack | None = None) -> Totals:
    """What is kept of totals back to totals; ``once`` knows what they may share with totals unpacked before.

    Raises:
        ValueError: its arrays don't have the shapes that its layers say.
    """
    once = once or OnceBack()
    layout = once.same("layout", packed.layers, lambda: _layout_of(packed.layers))
    size = len(layout.layers)
    rows = once.ints(packed.rows, size)
    told = packed.unphased_rows is not None
    estimated = _estimated(packed, packed.ep_ranks, layout)
    return Totals(
        layout=layout,
        counts=once.ints(packed.counts, int(layout.offsets[-1])),
        rows=rows,
        ep_slots=_ep_slots(packed, size, packed.ep_ranks, once),
        unplaced=once.ints(packed.unplaced, size),
        tokens=packed.tokens,
        steps=packed.steps,
        idle_steps=packed.idle_steps,
        drops=known_drops(packed.drops),
        unphased_rows=rows if packed.unphased_rows is None else once.ints(packed.unphased_rows, size),
        unphased_tokens=packed.unphased_tokens if told else packed.tokens,
        unphased_steps=packed.unphased_steps if told else packed.steps,
        decode=None
        if packed.decode is None
        else _unpack_decode(packed.decode, packed.ep_ranks, layout, estimated, once),
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


def _packed_estimated(estimated: Int64Array) -> Packed:
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


def _packed_parts(slots: EpSlots) -> Packed | None:
    return None if slots.parts is None else packed_ints(slots.parts.ravel())


def _ep_slots(packed: PackedTotals | _PackedDecode, layers: int, ranks: int, once: OnceBack) -> EpSlots:
    """Slots by EP rank: the floats are as they always were, so that older readers find what they know."""

    def made() -> EpSlots:
        slots = floats(packed.ep_slots, layers, ranks)
        if packed.ep_parts is None:
            return of_floats(slots)
        parts = ints(packed.ep_parts, layers * ranks).reshape(layers, ranks)
        return EpSlots(np.rint(slots - parts / PARTS).astype(np.int64), parts)

    return once.same("slots by rank", (packed.ep_slots, packed.ep_parts, layers, ranks), made)


def _layout_of(layers: Sequence[MoeLayer]) -> Layout:
    ids = [layer.layer for layer in layers]
    if ids != sorted(set(ids)):
        raise ValueError(f"a damaged blob: its layers {ids} don't rise")
    return Layout(layers)


def _unpack_decode(
    packed: _PackedDecode, ep_ranks: int, layout: Layout, most: Int64Array, once: OnceBack
) -> Decode:
    """The decode part of totals of which ``most`` slots are estimated, int64 [L]."""
    size = len(layout.layers)
    return Decode(
        counts=once.ints(packed.counts, int(layout.offsets[-1])),
        rows=once.ints(packed.rows, size),
        ep_slots=_ep_slots(packed, size, ep_ranks, once),
        unplaced=once.ints(packed.unplaced, size),
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
