"""From slots per logical expert to slots per EP rank, exactly.

Where a worker doesn't count which copy a slot went to, a replicated expert's slots are split evenly over its
copies. Sums and differences of such parts must be
exact: what cancels is 0, not some 1e-11. So slots and parts of a slot are integers until they are shown.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np
import numpy.typing as npt

from moescope.capture.wire import Int64Array, Placement, PlacementTable, unpack_ids
from moescope.service.counts.layers import Layout
from moescope.service.measures.arrays import FloatArray

PARTS: Final = 2_329_089_562_800
"""Parts of a slot: the least common multiple of 1 .. 30.

Up to 30 copies of an expert get exactly equal parts, more copies (31, 32, 34, ...) up to 1 / PARTS.
2**20 whole slots in parts, as many as the wire lets copies be in a frame, are below 2**63.
"""
_AT_ONCE: Final = 1 << 18
"""Pairs of an EP rank and an expert, over layers, that are computed at once: 2 MiB an array."""
_REMEMBERED: Final = 1 << 15
"""Copies of a placement whose pairs are remembered, at most: 32 placements of some 2 MiB."""
_FEW: Final = 1 << 10
"""Copies of a table whose experts on several ranks are remembered, at most."""
_COARSE: Final = 720_720  # the least common multiple of 1 .. 16


@dataclass(frozen=True, eq=False, slots=True)
class EpSlots:
    """Slots that EP ranks got, or the difference of two such: ``whole + parts / PARTS``.

    Attributes:
        whole: int64 [..., R].
        parts: int64 [..., R], from 0 to PARTS - 1; None: all are 0, as without replicas.
    """

    whole: Int64Array
    parts: Int64Array | None = None

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, EpSlots)
            and self.whole.shape == other.whole.shape
            and not self.minus(other).any()
        )

    __hash__ = None  # type: ignore[assignment]

    @property
    def ranks(self) -> int:
        """R."""
        return int(self.whole.shape[-1])

    @property
    def nbytes(self) -> int:
        """Bytes that the arrays take."""
        return self.whole.nbytes + (0 if self.parts is None else self.parts.nbytes)

    def floats(self) -> FloatArray:
        """The slots, float64 [..., R]: each the nearest to the exact number up to 2**53."""
        found = self.whole.astype(np.float64)
        return found if self.parts is None else np.asarray(found + self.parts / PARTS)

    def any(self) -> bool:
        """Whether there is a slot, or a part of one."""
        return bool(self.whole.any()) or (self.parts is not None and bool(self.parts.any()))

    def plus(self, other: EpSlots, sign: int = 1) -> EpSlots:
        """Sum of both, of one shape; or the difference, for a sign of -1.

        It is ``self`` where there is nothing to add, so that snapshots share it.
        """
        if sign > 0 and not other.any():
            return self
        combine = np.add if sign > 0 else np.subtract
        whole = combine(self.whole, other.whole, dtype=np.int64)  # whichever of both is narrow
        if self.parts is None and other.parts is None:
            return EpSlots(whole)
        mine = np.zeros_like(whole) if self.parts is None else self.parts
        its = np.zeros_like(whole) if other.parts is None else other.parts
        return carried(whole, combine(mine, its, dtype=np.int64))

    def minus(self, other: EpSlots) -> EpSlots:
        """What is here and not in ``other``, of one shape."""
        return self.plus(other, -1)

    def at(self, layers: npt.NDArray[np.bool_] | Int64Array | list[int]) -> EpSlots:
        """Those of some layers: [L, R] to [n, R]."""
        return EpSlots(self.whole[layers], None if self.parts is None else self.parts[layers])

    def over_layers(self) -> EpSlots:
        """Their sum over layers: [L, R] to [R]."""
        whole = self.whole.sum(axis=0, dtype=np.int64)
        return (
            EpSlots(whole) if self.parts is None else carried(whole, self.parts.sum(axis=0, dtype=np.int64))
        )

    def widened(self, smaller: Layout, layout: Layout, ranks: int) -> EpSlots:
        """These of the layout ``smaller`` in the order of another that has all its layers, over R' ranks."""
        whole = layout.widened_ranks(smaller, self.whole, ranks)
        return EpSlots(
            whole, None if self.parts is None else layout.widened_ranks(smaller, self.parts, ranks)
        )


def no_ep_slots(layers: int, ranks: int = 0) -> EpSlots:
    """No slot, [L, R]."""
    return EpSlots(np.zeros((layers, ranks), dtype=np.int64))


def carried(whole: Int64Array, parts: Int64Array) -> EpSlots:
    """Slots of parts of whatever size and sign: each PARTS of them are a slot."""
    carry, rest = np.divmod(parts, PARTS)
    return EpSlots(np.asarray(whole + carry), rest if rest.any() else None)


def of_floats(slots: FloatArray) -> EpSlots:
    """From floats, as they were kept before parts were exact: each to the nearest 720,720th of a slot.

    That is exact for up to 16 copies of an expert, however the floats were rounded.

    Raises:
        ValueError: they can't be slots.
    """
    if not (np.abs(slots) < 2**62).all():
        raise ValueError("slots by EP rank that are no numbers, or far too large")
    whole = np.floor(slots)
    parts = np.rint((slots - whole) * _COARSE).astype(np.int64) * (PARTS // _COARSE)
    return carried(whole.astype(np.int64), parts)


def ep_slots_of(counts: Int64Array, layout: Layout, placement: Placement, ep_size: int) -> list[EpSlots]:
    """Slots that each EP rank got in each layer.

    Args:
        counts: M arrays of slots per (layer, logical expert) counted while ``placement`` held, int64
            [M, sum of experts].
        layout: of ``counts``.
        placement: where the experts are; ``table_of_layer`` runs parallel to ``layout.layers``.
        ep_size: R, the number of EP ranks.

    Returns:
        M times [L, R]; a layer's row sums to its slots.
    """
    shape = (len(counts), len(layout.layers), ep_size)
    whole, parts = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64)
    for members, tables in _groups(layout, placement):
        found = _spread(_counts_of(counts, layout, members), tables, ep_size)
        whole[:, members] = found.whole
        if found.parts is not None:
            parts[:, members] = found.parts
    return [carried(whole[i], parts[i]) for i in range(len(counts))]


def spread_slots(counts: Int64Array, layout: Layout, placement: Placement) -> Int64Array:
    """How many slots :func:`ep_slots_of` splits over several EP ranks, of each layer: int64 [L].

    Args:
        counts: slots per (layer, logical expert), int64 [sum of experts].
        layout, placement: as there.
    """
    spread = [_spread_experts(table) for table in placement.tables]
    found = np.zeros(len(layout.layers), dtype=np.int64)
    for i, table in enumerate(placement.table_of_layer):
        if spread[table] is not None:
            found[i] = counts[layout.offsets[i] : layout.offsets[i + 1]][spread[table]].sum()
    return found


def _spread_experts(table: PlacementTable) -> Int64Array | None:
    """The experts that have copies on several EP ranks, int64 [n]; None: there is none."""
    few = len(table.physical_to_logical) // 2 <= _FEW
    return _known_spread(table) if few else _spread_of(table)


@lru_cache(maxsize=1024)
def _known_spread(table: PlacementTable) -> Int64Array | None:
    """Those of a small table, which is in many frames: all that are remembered take 4 MiB at most."""
    return _spread_of(table)


def _spread_of(table: PlacementTable) -> Int64Array | None:
    logical, ep_ranks = unpack_ids(table.physical_to_logical), unpack_ids(table.physical_to_ep_rank)
    if not logical.size:
        return None
    one_of = np.zeros(int(logical.max()) + 1, dtype=ep_ranks.dtype)
    one_of[logical] = ep_ranks  # any of the ranks of an expert: one that has another too is on several
    several = np.zeros(one_of.size, dtype=bool)
    several[logical[ep_ranks != one_of[logical]]] = True
    found = np.flatnonzero(several)
    return found if found.size else None


def _groups(layout: Layout, placement: Placement) -> Iterable[tuple[list[int], list[PlacementTable]]]:
    """Layers that can be spread at once, with one table for all of them, or with one for each."""
    by_table: dict[int, list[int]] = {}
    for i, table in enumerate(placement.table_of_layer):
        by_table.setdefault(table, []).append(i)
    alone: dict[tuple[int, int], list[int]] = {}
    for at, members in by_table.items():
        if len(members) > 1:
            yield members, [placement.tables[at]]
        else:
            copies = len(placement.tables[at].physical_to_logical)
            alone.setdefault((layout.layers[members[0]].num_experts, copies), []).extend(members)
    for members in alone.values():
        yield members, [placement.tables[placement.table_of_layer[i]] for i in members]


def _counts_of(counts: Int64Array, layout: Layout, members: list[int]) -> Int64Array:
    """The counts of N layers with E experts each, int64 [M, N, E]."""
    experts, start = layout.layers[members[0]].num_experts, int(layout.offsets[members[0]])
    end = int(layout.offsets[members[-1] + 1])
    if end - start == len(members) * experts:  # side by side
        return counts[:, start:end].reshape(len(counts), -1, experts)
    return np.asarray(counts[:, layout.offsets[members][:, np.newaxis] + np.arange(experts)])


def _spread(counts: Int64Array, tables: Sequence[PlacementTable], ep_size: int) -> EpSlots:
    """Slots [M, N, R] from the counts [M, N, E] of N layers, by one table for all of them or one for each.

    Each of an expert's c copies gets 1 / c of its slots.
    """
    times, layers, experts = counts.shape
    copies = sum(len(table.physical_to_logical) // 2 for table in tables)
    found = _remembered if copies <= _REMEMBERED else _holders
    holders = found(tuple(tables), experts, ep_size)
    flat = counts.reshape(-1, len(holders.of_expert))
    shape = (len(flat), len(tables) * ep_size)
    whole, parts = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64)
    at_once = max(1, _AT_ONCE // len(holders.expert))
    for start in range(0, len(flat), at_once):
        some = slice(start, start + at_once)
        holders.give(flat[some], whole[some], parts[some])
    shown = (times, layers, ep_size)
    return EpSlots(whole.reshape(shown), parts.reshape(shown) if parts.any() else None)


@dataclass(frozen=True, eq=False, slots=True)
class _Holders:
    """The K pairs of an EP rank and an expert of which it holds copies, rising by rank.

    However many copies a table lists, there are no more pairs than experts x ranks. Ranks and experts of
    several tables are numbered one table after the other.

    Attributes:
        ranks: EP ranks that hold something, int64; the pairs of each begin at ``starts``, int64.
        expert: of each pair, int64 [K].
        copies: how many the rank holds, int64 [K].
        before: how many copies of the expert lower ranks hold, int64 [K].
        of_expert: copies of each expert on all ranks, int64 [E].
    """

    ranks: Int64Array
    starts: Int64Array
    expert: Int64Array
    copies: Int64Array
    before: Int64Array
    of_expert: Int64Array

    def give(self, counts: Int64Array, whole: Int64Array, parts: Int64Array) -> None:
        """Write what the ranks get of B counts [B, E] into ``whole`` and ``parts``, int64 [B, R]."""
        if int(self.of_expert.max()) == 1:
            whole[:, self.ranks] = self._sums(counts[:, self.expert])
            return
        quotient, rest = np.divmod(counts, self.of_expert)
        share, left = np.divmod(rest * PARTS, self.of_expert)
        whole[:, self.ranks] = self._sums(quotient[:, self.expert] * self.copies)
        # What is left over goes to the first copies, one each.
        more = np.clip(left[:, self.expert] - self.before, 0, self.copies)
        parts[:, self.ranks] = self._sums(share[:, self.expert] * self.copies + more)

    def _sums(self, of_pairs: Int64Array) -> Int64Array:
        return np.asarray(np.add.reduceat(of_pairs, self.starts, axis=1))


@lru_cache(maxsize=32)
def _remembered(tables: tuple[PlacementTable, ...], experts: int, ep_size: int) -> _Holders:
    """Those of a placement that is in many frames."""
    return _holders(tables, experts, ep_size)


def _holders(tables: Sequence[PlacementTable], experts: int, ep_size: int) -> _Holders:
    logical = unpack_ids(b"".join(table.physical_to_logical for table in tables)).astype(np.int64)
    ep_ranks = unpack_ids(b"".join(table.physical_to_ep_rank for table in tables)).astype(np.int64)
    table = np.arange(len(tables)).repeat(len(logical) // len(tables))
    pairs, copies = np.unique((table * ep_size + ep_ranks) * experts + logical, return_counts=True)
    rank, expert = np.divmod(pairs, experts)
    expert += rank // ep_size * experts
    ranks, starts = np.unique(rank, return_index=True)
    of_expert = np.bincount(table * experts + logical, minlength=len(tables) * experts)
    order = np.argsort(expert, kind="stable")  # by expert, then by rank
    in_order = copies[order]
    before = np.empty_like(copies)
    before[order] = np.cumsum(in_order) - in_order - (np.cumsum(of_expert) - of_expert)[expert[order]]
    return _Holders(ranks, starts, expert, copies, before, of_expert)
