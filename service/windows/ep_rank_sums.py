"""What each EP rank got, and how often it was the busiest, over layers: by sums of a window, not by steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from moescope.service.measures.arrays import FloatArray


@dataclass(frozen=True, eq=False, slots=True)
class EpRankSums:
    """Sums over layers, by EP rank.

    Attributes:
        slots: slots, float64 [R].
        caused: slots that the others waited for it: in each layer max - mean, for the busiest rank; ranks
            that tie share it. float64 [R].
        busiest: layers in which it was the busiest; ranks that tie share them. float64 [R].
        worst_layer: the id of the layer in which it caused most, R of them; None: it caused none.
    """

    slots: FloatArray
    caused: FloatArray
    busiest: FloatArray
    worst_layer: list[int | None]


def ep_rank_sums(layers: Sequence[tuple[int, FloatArray]]) -> EpRankSums:
    """Add up layers.

    Args:
        layers: ids, and slots by EP rank, float64 [R_i], of which some are not 0; R is the most R_i.
    """
    shape = len(layers), max((len(slots) for _, slots in layers), default=0)
    slots, caused, busiest = np.zeros((3, *shape))
    for i, (_, row) in enumerate(layers):
        slots[i, : len(row)] = row
        ties = row == row.max()
        busiest[i, : len(row)] = ties / ties.sum()
        caused[i] = busiest[i] * (row.max() - row.sum() / len(row))
    worst = caused.argmax(axis=0) if layers else np.zeros(0, dtype=np.int64)
    most = caused.max(axis=0, initial=0)
    return EpRankSums(
        slots=slots.sum(axis=0),
        caused=caused.sum(axis=0),
        busiest=busiest.sum(axis=0),
        worst_layer=[
            layers[i][0] if waited > 0 else None
            for i, waited in zip(worst.tolist(), most.tolist(), strict=True)
        ],
    )
