"""From slots per logical expert to slots per EP rank."""

from __future__ import annotations

import numpy as np

from moescope.capture.wire import Int64Array, Placement, PlacementTable, unpack_ids
from moescope.service.counts.layers import Layout
from moescope.service.measures.arrays import FloatArray


def ep_slots_of(counts: Int64Array, layout: Layout, placement: Placement, ep_size: int) -> FloatArray:
    """Slots that each EP rank got in each layer.

    Args:
        counts: M arrays of slots per (layer, logical expert) counted while ``placement`` held, int64
            [M, sum of experts].
        layout: of ``counts``.
        placement: where the experts are; ``table_of_layer`` runs parallel to ``layout.layers``.
        ep_size: R, the number of EP ranks.

    Returns:
        float64 [M, L, R]; a layer's row sums to its slots.
    """
    slots = np.zeros((len(counts), len(layout.layers), ep_size))
    by_table: dict[int, list[int]] = {}
    for i, table in enumerate(placement.table_of_layer):
        by_table.setdefault(table, []).append(i)
    alone: dict[tuple[int, int], list[int]] = {}
    for table, members in by_table.items():
        experts = layout.layers[members[0]].num_experts
        if len(members) > 1:
            _spread_alike(slots, _counts_of(counts, layout, members), members, placement.tables[table])
        else:
            copies = len(placement.tables[table].physical_to_logical)
            alone.setdefault((experts, copies), []).extend(members)
    for members in alone.values():
        tables = [placement.tables[placement.table_of_layer[i]] for i in members]
        slots[:, members] = _spread(_counts_of(counts, layout, members), tables, ep_size)
    return slots


def _counts_of(counts: Int64Array, layout: Layout, members: list[int]) -> Int64Array:
    """The counts of N layers with E experts each, int64 [M, N, E]."""
    experts, start = layout.layers[members[0]].num_experts, int(layout.offsets[members[0]])
    end = int(layout.offsets[members[-1] + 1])
    if end - start == len(members) * experts:  # side by side
        return counts[:, start:end].reshape(len(counts), -1, experts)
    return np.asarray(counts[:, layout.offsets[members][:, np.newaxis] + np.arange(experts)])


def _spread_alike(slots: FloatArray, counts: Int64Array, members: list[int], table: PlacementTable) -> None:
    """Add the counts [M, N, E] of layers that share a table to their rows of ``slots``.

    Each of an expert's c copies gets 1 / c of its slots.
    """
    logical = unpack_ids(table.physical_to_logical).astype(np.int64)
    ep_ranks = unpack_ids(table.physical_to_ep_rank)
    copies = np.bincount(logical, minlength=counts.shape[2])
    per_copy = counts / copies if len(logical) > len(copies) else counts
    order = np.argsort(ep_ranks, kind="stable")
    present, starts = np.unique(ep_ranks[order], return_index=True)
    sums = np.add.reduceat(np.take(per_copy, logical[order], axis=2), starts, axis=2)
    if len(present) == slots.shape[2]:
        slots[:, members] = sums
    else:
        slots[:, np.array(members)[:, np.newaxis], present] = sums


def _spread(counts: Int64Array, tables: list[PlacementTable], ep_size: int) -> FloatArray:
    """Slots [M, N, R] from the counts [M, N, E] of N layers, each of which has a table of its own."""
    times, layers, experts = counts.shape
    logical = unpack_ids(b"".join(table.physical_to_logical for table in tables)).reshape(layers, -1)
    ep_ranks = unpack_ids(b"".join(table.physical_to_ep_rank for table in tables)).reshape(layers, -1)
    row = np.arange(layers)[:, np.newaxis]
    expert = (row * experts + logical).ravel()
    copies = np.bincount(expert, minlength=layers * experts)
    per_copy = counts.reshape(times, -1) / copies
    rank = (row * ep_size + ep_ranks).ravel()
    slots = [np.bincount(rank, part[expert], layers * ep_size) for part in per_copy]
    return np.asarray(slots, dtype=np.float64).reshape(times, layers, ep_size)
