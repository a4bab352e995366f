"""From slots per logical expert to slots per EP rank, exactly.

A replicated expert's slots are split evenly over its copies. Sums and differences of such parts must be
exact: what cancels is 0, not some 1e-11. So slots and parts of a slot are integers until they are shown.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from moescope.capture.wire import Int64Array, Placement, PlacementTable, unpack_ids
from moescope.service.counts.layers import Layout
from moescope.service.measures.arrays import FloatArray

PARTS: Final = 2_329_089_562_800
"""Parts of a slot: the least common multiple of 1 .. 30.

Up to 30 copies of an expert get exactly equal parts, more copies (31, 32, 34, ...) up to 1 / PARTS.
65,535 parts of a slot, the most that one table can give to a rank, are far below 2**63.
"""
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
        whole = self.whole + sign * other.whole
        if self.parts is None and other.parts is None:
            return EpSlots(whole)
        mine = np.zeros_like(self.whole) if self.parts is None else self.parts
        return carried(whole, mine if other.parts is None else mine + sign * other.parts)

    def minus(self, other: EpSlots) -> EpSlots:
        """What is here and not in ``other``, of one shape."""
        return self.plus(other, -1)

    def at(self, layers: npt.NDArray[np.bool_] | Int64Array | list[int]) -> EpSlots:
        """Those of some layers: [L, R] to [n, R]."""
        return EpSlots(self.whole[layers], None if self.parts is None else self.parts[layers])

    def over_layers(self) -> EpSlots:
        """Their sum over layers: [L, R] to [R]."""
        whole = self.whole.sum(axis=0)
        return EpSlots(whole) if self.parts is None else carried(whole, self.parts.sum(axis=0))

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
    logical = unpack_ids(b"".join(table.physical_to_logical for table in tables)).astype(np.int64)
    ep_ranks = unpack_ids(b"".join(table.physical_to_ep_rank for table in tables)).astype(np.int64)
    row = np.arange(len(tables)).repeat(len(logical) // len(tables))
    expert, rank = row * experts + logical, row * ep_size + ep_ranks
    if len(tables) > 1 or layers == 1:
        counts = counts.reshape(times, -1)
    order = np.argsort(rank, kind="stable")
    present, starts = np.unique(rank[order], return_index=True)

    def by_rank(of_copies: Int64Array) -> Int64Array:
        """Sums over the copies of each rank."""
        found = np.zeros((*of_copies.shape[:-1], len(tables) * ep_size), dtype=np.int64)
        found[..., present] = np.add.reduceat(of_copies[..., order], starts, axis=-1)
        return found.reshape(times, layers, ep_size)

    if len(logical) == len(tables) * experts:  # no replicas: each expert appears once
        return EpSlots(by_rank(counts[..., expert]))
    copies = np.bincount(expert, minlength=len(tables) * experts)
    whole, rest = np.divmod(counts, copies)
    parts, left = np.divmod(rest * PARTS, copies)
    of_copies = parts[..., expert] + (_number_of_copy(expert) < left[..., expert])
    return EpSlots(by_rank(whole[..., expert]), by_rank(of_copies))


def _number_of_copy(expert: Int64Array) -> Int64Array:
    """Which copy of its expert each physical expert is, from 0: int64 [P]."""
    order = np.argsort(expert, kind="stable")
    ordered = expert[order]
    first = np.searchsorted(ordered, ordered)
    numbers = np.empty_like(expert)
    numbers[order] = np.arange(len(expert)) - first
    return numbers
