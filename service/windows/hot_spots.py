"""The busiest EP rank of a layer, and the expert that makes it so."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from moescope.capture.wire import Int64Array
from moescope.service.measures.arrays import FloatArray


@dataclass(frozen=True, slots=True)
class HotSpot:
    """Of one layer.

    Attributes:
        rank: the busiest EP rank; None: loads of EP ranks aren't known.
        expert: the busiest of the experts that only this rank holds; of all, where that isn't known.
        over_fair: its slots as a multiple of a fair share, the mean over experts.
        owned: whether it is known that only this rank holds it.
    """

    rank: int | None
    expert: int
    over_fair: float
    owned: bool


def hot_spot(
    counts: Int64Array, loads: FloatArray | Int64Array | None, owners: Sequence[int] | None
) -> HotSpot | None:
    """The hot spot of a layer; None: it has no slots.

    Args:
        counts: slots of each expert, [E].
        loads: slots of each EP rank, [R]; None: not known.
        owners: the EP rank that holds each expert, [E], as ``ep_ranks_of_experts`` tells it.
    """
    if not counts.any():
        return None
    rank = None if loads is None or not loads.any() else int(np.argmax(loads))
    mine = np.flatnonzero(np.asarray(owners) == rank) if owners is not None and rank is not None else ()
    owned = len(mine) > 0
    expert = int(mine[np.argmax(counts[mine])]) if owned else int(np.argmax(counts))
    return HotSpot(rank, expert, float(counts[expert] / counts.mean()), owned)
