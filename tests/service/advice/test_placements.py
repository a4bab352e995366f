"""Placements, and the loads and moves that follow from them."""

from __future__ import annotations

import numpy as np

from moescope.capture import wire
from moescope.service.advice.placements import PlacementArrays, eplb, from_tables, linear, moves


def _of(logical: list[int], rank: list[int], experts: int, ranks: int) -> PlacementArrays:
    return PlacementArrays(np.array([logical]), np.array([rank]), experts, ranks)


def test_an_experts_slots_are_split_evenly_over_its_copies() -> None:
    placed = _of([0, 1, 2, 0], [0, 0, 1, 1], 3, 2)
    assert placed.copies.tolist() == [[2, 1, 1]]
    assert placed.loads(np.array([[10, 3, 4]])).tolist() == [[8.0, 9.0]]


def test_what_a_rank_already_holds_does_not_move() -> None:
    before = linear(1, 4, 2)
    assert moves(before, before).tolist() == [0]
    # Rank 0 keeps 0 and gets 2 and 3; a second copy of 3 on the same rank is no second transfer.
    after = _of([0, 2, 3, 3, 1, 2], [0, 0, 0, 0, 1, 1], 4, 2)
    assert moves(before, after).tolist() == [2 + 1]


def test_tables_of_the_wire() -> None:
    table = wire.PlacementTable(wire.pack_ids([0, 1, 2, 0]), wire.pack_ids([0, 0, 1, 1]))
    placed = from_tables([table, table], 3, 2)
    assert placed is not None
    assert placed.loads(np.array([[10, 3, 4], [0, 0, 2]])).tolist() == [[8.0, 9.0], [0.0, 2.0]]
    other = wire.PlacementTable(wire.pack_ids([0, 1, 2]), wire.pack_ids([0, 0, 1]))
    assert from_tables([table, other], 3, 2) is None


def test_each_layer_is_placed_by_its_own_loads() -> None:
    loads = np.array([[9, 1, 1, 1], [1, 1, 1, 9]])
    placed = eplb(loads, 0, 1, 1, 2)
    assert placed.loads(loads).max(axis=1).tolist() == [10.0, 10.0]
    assert placed.loads(loads[::-1]).shape == (2, 2)
