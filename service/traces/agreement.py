"""Whether two traces are of one prompt, as far as their rows tell.

The experts of a token depend on it and on all tokens before it. So two computations of one prompt take the
same experts, but for near ties that come out otherwise in another batch or on other kernels.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np

from moescope.capture.wire import Int64Array
from moescope.service.traces.routing import ExpertRows, Routing
from moescope.service.traces.spans import inside

MOST_POSITIONS: Final = 512
"""How many positions are compared, at most: the last that both computed."""
_BYTES: Final = 1 << 20  # of rows that are compared at once, of each of the two
_BLOCK_SLOTS: Final = 64  # fewer slots may differ by chance
_CELLS: Final = 1 << 20  # slots that are compared with each other at once


class Compared(NamedTuple):
    """What a comparison found.

    Attributes:
        positions, slots: how many were compared.
        equal: in how many of the slots both took the same expert, in whatever order.
        differs_at: the first position of a block of slots of which less than half are equal; None: in none.
    """

    positions: int
    slots: int
    equal: int
    differs_at: int | None


def compare(one: Routing, other: Routing, shared: Int64Array) -> Compared:
    """Compare the rows of two traces at the last of the positions ``shared``, which both computed.

    Blocks of 64 slots at least, or all that there are, are looked at one by one: so the end of two prompts
    that begin alike can't be outvoted by their beginning.
    """
    places = {layer: at for at, layer in enumerate(other.layers)}
    pairs = [(at, places[layer]) for at, layer in enumerate(one.layers) if layer in places]
    if not len(shared) or not pairs:
        return Compared(0, 0, 0, None)
    width = max(1, 2 * max(one.shape[1] * one.shape[2], other.shape[1] * other.shape[2]))
    end = int(shared[-1, 1])
    start = max(int(shared[0, 0]), end - min(MOST_POSITIONS, max(1, _BYTES // width)))
    positions = np.arange(start, end)
    wanted = inside(shared, positions)
    mine, theirs = one.rows(start, end).experts[wanted], other.rows(start, end).experts[wanted]
    slots, equal = np.zeros(len(mine), np.int64), np.zeros(len(mine), np.int64)
    for here, there in pairs:
        slots += (mine[:, here] >= 0).sum(axis=1)
        equal += _taken_by_both(mine[:, here], theirs[:, there])
    return Compared(
        len(mine), int(slots.sum()), int(equal.sum()), _differs_at(positions[wanted], slots, equal)
    )


def _taken_by_both(mine: ExpertRows, theirs: ExpertRows) -> Int64Array:
    """For each of n tokens how many of its experts [n, K] are among those of the other [n, M]."""
    found = np.zeros(len(mine), np.int64)
    at_once = max(1, _CELLS // max(1, mine.shape[1] * theirs.shape[1]))
    for start in range(0, len(mine), at_once):
        a, b = mine[start : start + at_once, :, np.newaxis], theirs[start : start + at_once, np.newaxis, :]
        found[start : start + at_once] = ((a == b) & (a >= 0)).any(axis=2).sum(axis=1)
    return found


def _differs_at(positions: Int64Array, slots: Int64Array, equal: Int64Array) -> int | None:
    """See :attr:`Compared.differs_at`; blocks are counted from the last position on backwards."""
    of_block = of_block_equal = 0
    enough = min(_BLOCK_SLOTS, int(slots.sum()))
    differs: int | None = None
    for position, total, same in zip(
        positions[::-1].tolist(), slots[::-1].tolist(), equal[::-1].tolist(), strict=True
    ):
        of_block, of_block_equal = of_block + total, of_block_equal + same
        if of_block and of_block >= enough:
            if 2 * of_block_equal < of_block:
                differs = position
            of_block = of_block_equal = 0
    return differs
