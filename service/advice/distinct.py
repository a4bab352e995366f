"""Our own placement of experts by load: no rank has two copies of an expert while there is room elsewhere.

A second copy on the same rank takes memory and no load off that rank. vLLM's policy
(:mod:`moescope.service.advice.eplb`) makes such copies, since it packs copies without asking whose they are.
Names and numbers are those of that module.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from moescope.capture.wire import Int64Array
from moescope.service.advice.eplb import place_by_node, place_node
from moescope.service.advice.packing import even_out, pack_apart
from moescope.service.advice.replicas import busiest_load, search, without_doubles
from moescope.service.measures.arrays import FloatArray
from moescope.service.measures.loads import Loads

TOLERANCE: Final = 1e-3
"""A layer whose busiest rank carries more than with vLLM's policy, by a larger share, is searched further."""


def place_distinct(loads: Loads, physical: int, groups: int, nodes: int, ranks: int) -> Int64Array:
    """Which logical expert each physical one is a copy of.

    With ``groups`` a multiple of ``nodes`` the experts of a group stay on one node, so "elsewhere" means the
    other ranks of that node. Where a rank has room for more copies than its node has experts, copies on the
    same rank can't be avoided: then each rank has each expert equally often, give or take one.

    Arguments, result and errors are those of :func:`moescope.service.advice.eplb.place`.
    """
    return place_by_node(loads, physical, groups, nodes, ranks, _place_node)


def _place_node(weights: FloatArray, physical: int, ranks: int) -> Int64Array:
    """Fill the ranks of a node: see :data:`moescope.service.advice.eplb.NodePolicy`."""
    rows, experts = weights.shape
    sets, rest = divmod(physical // ranks, experts)
    whole = _whole_sets(rows, ranks, sets, experts)
    if not rest:
        return whole.reshape(rows, physical)
    copies = copies_of(weights, ranks, sets, rest)
    per_copy = weights / copies
    packed = pack_apart(per_copy, copies - sets * ranks, ranks, rest)
    even_out(packed, per_copy)
    _compare(packed, weights, sets)
    return np.asarray(np.concatenate([whole, packed], axis=2).reshape(rows, physical))


def _whole_sets(rows: int, ranks: int, sets: int, experts: int) -> Int64Array:
    """All experts on each rank, so many times, int64 [X, G, sets * E]; nothing is repeated to be dropped."""
    of_rank = np.tile(np.arange(experts, dtype=np.int64), sets)
    return np.broadcast_to(of_rank, (rows, ranks, len(of_rank)))


def copies_of(weights: FloatArray, ranks: int, sets: int, rest: int) -> Int64Array:
    """How many copies each expert gets, int64 [X, E], ``ranks * rest`` beyond whole ``sets``.

    One after the other goes to the expert whose copies carry most, of those the one with fewest copies, as
    long as there is a rank without one. ``weights`` is [X, E].
    """
    rows, experts = weights.shape
    copies = np.full((rows, experts), max(1, sets * ranks), dtype=np.int64)
    per_copy, row = weights / copies, np.arange(rows)
    per_copy[copies == (sets + 1) * ranks] = -1.0
    for _ in range(ranks * rest - (0 if sets else experts)):
        heaviest = per_copy == per_copy.max(axis=1, keepdims=True)
        chosen = np.where(heaviest, copies, np.iinfo(np.int64).max).argmin(axis=1)
        copies[row, chosen] += 1
        full = copies[row, chosen] == (sets + 1) * ranks
        per_copy[row, chosen] = np.where(full, -1.0, weights[row, chosen] / copies[row, chosen])
    return copies


def _compare(packed: Int64Array, weights: FloatArray, sets: int) -> None:
    """Better the rows that vLLM's policy balances better: as it does if that has no doubles, or by search.

    Args:
        packed: the expert in each place, int64 [X, ranks, rest], beyond ``sets`` whole sets on each rank;
            changed.
        weights: [X, E].
    """
    rows, ranks, rest = packed.shape
    experts = weights.shape[1]
    theirs = place_node(weights, ranks * (rest + sets * experts), ranks).reshape(rows, ranks, -1)
    for mine, other, loads in zip(packed, theirs, weights, strict=True):
        aim, most = busiest_load(other, loads, 0), busiest_load(mine, loads, sets)
        if most <= aim:
            continue
        falling = np.sort(other, axis=1)
        if not sets and not (falling[:, 1:] == falling[:, :-1]).any():
            mine[:] = other
        elif most > aim * (1 + TOLERANCE):
            search(mine, loads, sets, aim)
            if not sets:
                mended = without_doubles(other, loads)
                search(mended, loads, sets, aim)
                if busiest_load(mended, loads, 0) < busiest_load(mine, loads, 0):
                    mine[:] = mended
