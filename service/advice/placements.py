"""Placements of experts as arrays: the loads of ranks under one, and the moves from one to another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from moescope.capture.wire import Int64Array, PlacementTable, unpack_ids
from moescope.service.advice.distinct import place_distinct
from moescope.service.advice.eplb import place
from moescope.service.measures.arrays import FloatArray
from moescope.service.measures.loads import Loads


@dataclass(frozen=True, slots=True)
class Double:
    """Several copies of one expert on one rank: row of the layer, EP rank, logical expert, copies there."""

    row: int
    rank: int
    expert: int
    copies: int


@dataclass(frozen=True, slots=True, eq=False)
class PlacementArrays:
    """A placement: where the copies of the experts of L layers are.

    Attributes:
        logical: logical expert of each physical one, int64 [L, P].
        rank: EP rank that holds it, int64 [L, P].
        experts: E.
        ranks: G.
    """

    logical: Int64Array
    rank: Int64Array
    experts: int
    ranks: int

    @property
    def copies(self) -> Int64Array:
        """Copies of each logical expert, int64 [L, E]."""
        return _count(self.logical, self.experts)

    def loads(self, counts: Loads) -> FloatArray:
        """Slots that each rank would get, float64 [L, G]; an expert's are split evenly over its copies.

        ``counts`` is [L, E], slots per logical expert.
        """
        per_copy = np.asarray(counts, dtype=np.float64) / np.maximum(self.copies, 1)
        carried = np.take_along_axis(per_copy, self.logical, axis=1)
        at = self.rank + self.ranks * np.arange(len(self.rank))[:, np.newaxis]
        sums = np.bincount(at.reshape(-1), carried.reshape(-1), len(self.rank) * self.ranks)
        return np.asarray(sums.reshape(len(self.rank), self.ranks), dtype=np.float64)

    def held(self) -> Int64Array:
        """The (layer, rank, expert) with at least one copy, each as one number, int64, rising."""
        return np.unique(self._places())

    def doubles(self) -> list[Double]:
        """Where a rank has several copies of one expert, by layer, rank and expert."""
        places, copies = np.unique(self._places(), return_counts=True)
        several = copies > 1
        row, place = np.divmod(places[several], self.ranks * self.experts)
        rank, expert = np.divmod(place, self.experts)
        found = zip(row.tolist(), rank.tolist(), expert.tolist(), copies[several].tolist(), strict=True)
        return [Double(*one) for one in found]

    @property
    def in_vain(self) -> int:
        """Copies, over all layers, on a rank that has another one of the same expert: memory for nothing."""
        return self.logical.size - len(self.held())

    def _places(self) -> Int64Array:
        layer = np.arange(len(self.rank))[:, np.newaxis]
        return np.asarray((layer * self.ranks + self.rank) * self.experts + self.logical)


def linear(layers: int, experts: int, ranks: int) -> PlacementArrays:
    """Contiguous spans; the first E mod G ranks have one more, as vLLM's ``determine_expert_map`` has it."""
    sizes = experts // ranks + (np.arange(ranks) < experts % ranks)
    return _alike(layers, np.repeat(np.arange(ranks), sizes), experts, ranks)


def round_robin(layers: int, experts: int, ranks: int) -> PlacementArrays:
    """Expert e on rank e mod G, as vLLM's ``--expert-placement-strategy round_robin``."""
    return _alike(layers, np.arange(experts) % ranks, experts, ranks)


def eplb(fitted: Loads, redundant: int, groups: int, nodes: int, ranks: int) -> PlacementArrays:
    """What vLLM's default policy would make, with R redundant copies; it may put two of one expert on a rank.

    Args:
        fitted: slots per (layer, logical expert) that it is fitted on, [L, E].
        redundant: R; E + R is a multiple of ``ranks``.
        groups, nodes, ranks: see :func:`moescope.service.advice.eplb.place`.
    """
    return _by_load(place(fitted, _physical(fitted, redundant), groups, nodes, ranks), fitted, ranks)


def distinct(fitted: Loads, redundant: int, groups: int, nodes: int, ranks: int) -> PlacementArrays:
    """Our own placement by load: no rank has two copies of one expert while there is room elsewhere.

    See :func:`moescope.service.advice.distinct.place_distinct`; arguments are those of :func:`eplb`.
    """
    logical = place_distinct(fitted, _physical(fitted, redundant), groups, nodes, ranks)
    return _by_load(logical, fitted, ranks)


def from_tables(tables: Sequence[PlacementTable], experts: int, ranks: int) -> PlacementArrays | None:
    """What workers reported, a table for each layer.

    None where the layers have unlike numbers of copies, or a rank is not below ``ranks``.
    """
    logical = [unpack_ids(table.physical_to_logical).astype(np.int64) for table in tables]
    rank = [unpack_ids(table.physical_to_ep_rank).astype(np.int64) for table in tables]
    if len({len(row) for row in logical}) != 1 or max(int(row.max()) for row in rank) >= ranks:
        return None
    return PlacementArrays(np.stack(logical), np.stack(rank), experts, ranks)


def moves(before: PlacementArrays, after: PlacementArrays) -> Int64Array:
    """Expert copies that have to be sent to a rank which has none of that expert yet, int64 [L].

    Both have the same layers, experts and ranks.
    """
    new = np.setdiff1d(after.held(), before.held(), assume_unique=True)
    return np.bincount(new // (after.ranks * after.experts), minlength=len(after.rank))


def _physical(fitted: Loads, redundant: int) -> int:
    return int(np.asarray(fitted).shape[1]) + redundant


def _by_load(logical: Int64Array, fitted: Loads, ranks: int) -> PlacementArrays:
    layers, physical = logical.shape
    rank = np.tile(np.arange(physical) // (physical // ranks), (layers, 1))
    return PlacementArrays(logical, rank, int(np.asarray(fitted).shape[1]), ranks)


def _alike(layers: int, rank: Int64Array, experts: int, ranks: int) -> PlacementArrays:
    logical = np.tile(np.arange(experts), (layers, 1))
    return PlacementArrays(logical, np.tile(rank, (layers, 1)), experts, ranks)


def _count(logical: Int64Array, experts: int) -> Int64Array:
    at = logical + experts * np.arange(len(logical))[:, np.newaxis]
    counts = np.bincount(at.reshape(-1), minlength=len(logical) * experts)
    return counts.reshape(len(logical), experts)
