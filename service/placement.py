"""From slots per logical expert to slots per EP rank."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from moescope.capture.wire import Placement, PlacementTable, unpack_ids
from moescope.service.totals import Totals

FloatArray = npt.NDArray[np.float64]


def ep_slots_of(delta: Totals, placement: Placement, ep_size: int) -> FloatArray:
    """Slots that each EP rank got in each layer.

    Args:
        delta: slots per (layer, logical expert) counted while ``placement`` held.
        placement: where the experts are; ``table_of_layer`` runs parallel to ``delta.layout.layers``.
        ep_size: R, the number of EP ranks.

    Returns:
        float64 [L, R]; a layer's row sums to its slots.
    """
    slots = np.zeros((len(delta.layout.layers), ep_size))
    for i, table in enumerate(placement.table_of_layer):
        slots[i] = _spread(delta.counts_of(i), placement.tables[table], ep_size)
    return slots


def _spread(counts: npt.NDArray[np.int64], table: PlacementTable, ep_size: int) -> FloatArray:
    """One layer: [num_experts] slots to [R]; an expert with c copies gives each 1 / c of its slots."""
    logical = unpack_ids(table.physical_to_logical).astype(np.int64)
    ep_ranks = unpack_ids(table.physical_to_ep_rank).astype(np.int64)
    copies = np.bincount(logical, minlength=len(counts))
    per_copy = counts / copies
    return np.asarray(np.bincount(ep_ranks, weights=per_copy[logical], minlength=ep_size), dtype=np.float64)
