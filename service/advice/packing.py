"""Packing copies of experts onto ranks so that no rank has two of one expert.

In all of it X is the number of layers, E of experts, G of ranks; a rank has room for as many copies as any
other. Loads are slots.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from moescope.capture.wire import Int64Array
from moescope.service.measures.arrays import FloatArray

_ROUNDS: Final = 16
"""Most exchanges of two copies that even out one layer."""
_MAX_PAIRS: Final = 1 << 21
"""Most pairs of copies that are compared at once; with more of them in a layer, nothing is exchanged."""
_GAIN: Final = 1e-3
"""Least share of the busiest rank's load that an exchange must take off it."""


def pack_apart(per_copy: FloatArray, copies: Int64Array, ranks: int, room: int) -> Int64Array:
    """Deal the copies out, the heaviest first, each to the lightest rank with room and without that expert.

    Args:
        per_copy: load of a copy of each expert, [X, E].
        copies: of each expert, int64 [X, E], at most ``ranks``; they sum to ``ranks * room``.

    Returns:
        The expert in each place, int64 [X, ranks, room].
    """
    rows = len(per_copy)
    order = np.argsort(-per_copy, axis=1, kind="stable")
    times = np.take_along_axis(copies, order, axis=1)
    turns = np.repeat(order.reshape(-1), times.reshape(-1)).reshape(rows, ranks * room)
    if room == 1:  # any order is equally good
        return turns[:, :, np.newaxis]
    placed = np.full((rows, ranks, room), -1, dtype=np.int64)
    carried, held = np.zeros((rows, ranks)), np.zeros((rows, ranks), dtype=np.int64)
    taken = np.zeros((rows, ranks), dtype=np.bool_)
    row, before = np.arange(rows), np.full(rows, -1, dtype=np.int64)
    for expert in turns.T:
        taken[expert != before] = False
        before = expert
        open_to = np.where(taken | (held == room), np.inf, carried)
        rank = np.argmin(open_to, axis=1)
        for stuck in np.flatnonzero(np.isinf(open_to[row, rank])).tolist():
            rank[stuck] = _make_room(placed[stuck], carried[stuck], per_copy[stuck], int(expert[stuck]))
            held[stuck] = (placed[stuck] >= 0).sum(axis=1)
        placed[row, rank, held[row, rank]] = expert
        carried[row, rank] += per_copy[row, expert]
        held[row, rank] += 1
        taken[row, rank] = True
    return placed


def _make_room(placed: Int64Array, carried: FloatArray, per_copy: FloatArray, expert: int) -> int:
    """Make room for a copy where all ranks with room have one: move another expert's copy to such a rank.

    There is always one to move. A full rank without the expert has more experts that a rank with room lacks
    than that rank has places.

    Args:
        placed: the experts of one layer, int64 [G, room], -1 where a place is empty; changed.
        carried: load of each rank, [G]; changed.
        per_copy: load of a copy of each expert, [E].

    Returns:
        The rank that has room now; its last place is the empty one.
    """
    has = (placed == expert).any(axis=1)
    full = (placed >= 0).all(axis=1)
    lightest = int(np.argmin(np.where(full, np.inf, carried)))
    source = int(np.argmin(np.where(has, np.inf, carried)))
    movable = placed[source][~np.isin(placed[source], placed[lightest])]
    moved = int(movable[np.argmin(per_copy[movable])])
    placed[lightest, np.flatnonzero(placed[lightest] < 0)[0]] = moved
    kept = placed[source][placed[source] != moved]
    placed[source] = np.append(kept, -1)
    carried[lightest] += per_copy[moved]
    carried[source] -= per_copy[moved]
    return source


def even_out(placed: Int64Array, per_copy: FloatArray) -> None:
    """Exchange copies of the busiest rank for lighter ones of another, in place, while that helps.

    Args:
        placed: the expert in each place, int64 [X, ranks, room].
        per_copy: load of a copy of each expert, [X, E].
    """
    rows, ranks, room = placed.shape
    at_once = _MAX_PAIRS // (ranks * room * room)
    if not at_once or room == 1:
        return
    for first in range(0, rows, at_once):
        active = np.arange(first, min(first + at_once, rows))
        for _ in range(_ROUNDS):
            active = active[exchange(placed, per_copy, active)]
            if not len(active):
                break


def exchange(placed: Int64Array, per_copy: FloatArray, at: Int64Array) -> Int64Array:
    """Make the best exchange of two copies in some rows, as :func:`even_out` does.

    Args:
        placed, per_copy: see :func:`even_out`.
        at: indices of rows.

    Returns:
        Indices into ``at`` of the rows in which an exchange helped.
    """
    found = placed[at]
    rows, ranks, room = found.shape
    flat = found.reshape(rows, ranks * room)
    weight = np.take_along_axis(per_copy[at], flat, axis=1)
    loads = weight.reshape(rows, ranks, room).sum(axis=2)
    row, busiest = np.arange(rows), np.argmax(loads, axis=1)
    mine, most = found[row, busiest], loads[row, busiest]
    lighter = np.take_along_axis(per_copy[at], mine, axis=1)[:, :, np.newaxis] - weight[:, np.newaxis]
    theirs = np.repeat(loads, room, axis=1)[:, np.newaxis]
    after = np.maximum(most[:, np.newaxis, np.newaxis] - lighter, theirs + lighter)
    same = mine[:, :, np.newaxis] == flat[:, np.newaxis]
    has_mine = np.repeat(same.reshape(rows, room, ranks, room).any(axis=3), room, axis=2)
    after[has_mine | same.any(axis=1)[:, np.newaxis]] = np.inf
    after = after.reshape(rows, -1)
    best = np.argmin(after, axis=1)
    helped = np.flatnonzero(after[row, best] < most * (1 - _GAIN))
    place, other = np.divmod(best[helped], ranks * room)
    rank, there = np.divmod(other, room)
    placed[at[helped], rank, there] = mine[helped, place]
    placed[at[helped], busiest[helped], place] = flat[helped, other]
    return helped
