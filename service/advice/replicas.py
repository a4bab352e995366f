"""A search for better numbers of copies, where the greedy choice of :mod:`distinct` packs badly.

The greedy choice makes the largest load of a copy as small as it can be. On few ranks with little room that
may leave copies that fit together badly, when no rank may have two of one expert.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from moescope.capture.wire import Int64Array
from moescope.service.advice.packing import exchange
from moescope.service.measures.arrays import FloatArray

_ROUNDS: Final = 16
"""Most changes of one layer."""
_MAX_LOADS: Final = 1 << 16
"""Most loads of ranks that are computed at once; with more of them, numbers of copies stay as they are."""


def busiest_load(placed: Int64Array, weights: FloatArray, sets: int) -> float:
    """The busiest rank's load in one layer.

    Args:
        placed: the expert in each place, int64 [G, room], beyond ``sets`` whole sets on each rank.
        weights: slots of each expert, [E].
    """
    return float(_loads(placed, weights, _copies(placed, len(weights), sets), sets).max())


def without_doubles(placed: Int64Array, weights: FloatArray) -> Int64Array:
    """A copy of a layer's placement in which further copies on a rank became ones of experts it lacks.

    Each becomes one of the expert whose copies carry most. No rank has room for more copies than there are
    experts; arguments are those of :func:`busiest_load`.
    """
    mended = placed.copy()
    for rank in mended:
        _, first = np.unique(rank, return_index=True)
        for place in np.setdiff1d(np.arange(len(rank)), first).tolist():
            per_copy = weights / _copies(mended, len(weights), 0)
            per_copy[rank] = -1.0
            rank[place] = np.argmax(per_copy)
    return mended


def search(placed: Int64Array, weights: FloatArray, sets: int, aim: float) -> None:
    """Lower the busiest rank's load in one layer step by step, until it is ``aim`` or no change helps.

    A change exchanges two copies, or turns a copy of one expert into one of another.

    Args:
        placed: see :func:`busiest_load`; no rank has an expert twice in it, and none will; changed.
        weights: slots of each expert, [E].
    """
    for _ in range(_ROUNDS):
        copies = _copies(placed, len(weights), sets)
        if _loads(placed, weights, copies, sets).max() <= aim:
            return
        per_copy = (weights / copies)[np.newaxis]
        if len(exchange(placed[np.newaxis], per_copy, np.zeros(1, dtype=np.int64))):
            continue
        if not _turn_one(placed, weights, copies, sets):
            return


def _turn_one(placed: Int64Array, weights: FloatArray, copies: Int64Array, sets: int) -> bool:
    """Turn the copy of which it helps most into one of another expert; whether any does.

    Only what can help is tried: a copy on the busiest rank goes, or an expert of it gets one elsewhere.
    """
    ranks, experts = len(placed), len(weights)
    loads = _loads(placed, weights, copies, sets)
    busiest = int(np.argmax(loads))
    held = np.full((ranks, experts), sets, dtype=np.int64)
    held[np.arange(ranks)[:, np.newaxis], placed] += 1
    rank, place, into = _candidates(placed, held, busiest, sets)
    out = placed[rank, place]
    fits = copies[out] > 1
    rank, place, into, out = rank[fits], place[fits], into[fits], out[fits]
    if not len(rank) or len(rank) * ranks > _MAX_LOADS:
        return False
    fewer, more = weights / np.maximum(copies - 1, 1), weights / (copies + 1)
    change = (fewer - weights / copies)[out][:, np.newaxis] * held[:, out].T
    change += (more - weights / copies)[into][:, np.newaxis] * held[:, into].T
    after = loads + change
    after[np.arange(len(rank)), rank] += more[into] - fewer[out]
    most = after.max(axis=1)
    best = int(np.argmin(most))
    if most[best] >= loads[busiest] * (1 - 1e-9):
        return False
    placed[rank[best], place[best]] = into[best]
    return True


def _candidates(
    placed: Int64Array, held: Int64Array, busiest: int, sets: int
) -> tuple[Int64Array, Int64Array, Int64Array]:
    """Ranks, their places, and the experts that these places may get."""
    room = placed.shape[1]
    there = placed[busiest]
    elsewhere = np.argwhere(np.repeat(held[:, there] == sets, room, axis=0))
    spot, which = elsewhere.T
    lacking = np.flatnonzero(held[busiest] == sets)
    rank = np.concatenate([spot // room, np.full(room * len(lacking), busiest)])
    place = np.concatenate([spot % room, np.repeat(np.arange(room), len(lacking))])
    into = np.concatenate([there[which], np.tile(lacking, room)])
    return rank, place, into


def _copies(placed: Int64Array, experts: int, sets: int) -> Int64Array:
    """Copies of each expert, int64 [E]."""
    return np.bincount(placed.reshape(-1), minlength=experts) + sets * len(placed)


def _loads(placed: Int64Array, weights: FloatArray, copies: Int64Array, sets: int) -> FloatArray:
    """What each rank carries, [G]."""
    per_copy = weights / copies
    return np.asarray(per_copy[placed].sum(axis=1) + sets * per_copy.sum(), dtype=np.float64)
