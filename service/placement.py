"""From slots per logical expert to slots per EP rank."""

from __future__ import annotations

import numpy as np

from moescope.capture.wire import Int64Array, Placement, PlacementTable, unpack_ids
from moescope.service.layout import FloatArray, Layout


def ep_slots_of(counts: Int64Array, layout: Layout, placement: Placement, ep_size: int) -> FloatArray:
    """Slots that each EP rank got in each layer.

    Args:
        counts: slots per (layer, logical expert) counted while ``placement`` held, int64 [sum of experts].
        layout: of ``counts``.
        placement: where the experts are; ``table_of_layer`` runs parallel to ``layout.layers``.
        ep_size: R, the number of EP ranks.

    Returns:
        float64 [L, R]; a layer's row sums to its slots.
    """
    slots = np.zeros((len(layout.layers), ep_size))
    by_shape: dict[tuple[int, int], list[int]] = {}
    for i, (layer, table) in enumerate(zip(layout.layers, placement.table_of_layer, strict=True)):
        copies = len(placement.tables[table].physical_to_logical)
        by_shape.setdefault((layer.num_experts, copies), []).append(i)
    for (experts, _), members in by_shape.items():
        at = layout.offsets[members][:, np.newaxis] + np.arange(experts)
        tables = [placement.tables[placement.table_of_layer[i]] for i in members]
        slots[members] = _spread(counts[at], tables, ep_size)
    return slots


def _spread(counts: Int64Array, tables: list[PlacementTable], ep_size: int) -> FloatArray:
    """N layers of one shape, [N, E] to [N, R]; an expert with c copies gives each 1 / c of its slots."""
    layers, experts = counts.shape
    logical = unpack_ids(b"".join(table.physical_to_logical for table in tables)).reshape(layers, -1)
    ep_ranks = unpack_ids(b"".join(table.physical_to_ep_rank for table in tables)).reshape(layers, -1)
    row = np.arange(layers)[:, np.newaxis]
    expert = (row * experts + logical).ravel()
    copies = np.bincount(expert, minlength=layers * experts)
    per_copy = counts.ravel() / copies
    rank = (row * ep_size + ep_ranks).ravel()
    slots = np.bincount(rank, weights=per_copy[expert], minlength=layers * ep_size)
    return np.asarray(slots, dtype=np.float64).reshape(layers, ep_size)
