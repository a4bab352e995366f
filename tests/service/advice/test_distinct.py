"""Our own placement by load: no two copies of one expert on a rank, and a balance no worse for it."""

from __future__ import annotations

import tracemalloc
from itertools import combinations, combinations_with_replacement

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from moescope.service.advice.distinct import place_distinct
from moescope.service.advice.eplb import place
from moescope.service.advice.placements import PlacementArrays, distinct, eplb

Fit = tuple[int, int, int, int, int]
"""Experts, redundant ones, groups, nodes, ranks."""

REPORTED = [100, 6000, 400, 100, 100, 400, 2600, 100, 100, 6000, 100, 100, 100, 6000, 1400, 700]


@st.composite
def problems(draw: st.DrawFn) -> tuple[np.ndarray, Fit]:
    nodes = draw(st.sampled_from([1, 1, 2, 3]))
    groups = nodes * draw(st.integers(1, 2))
    experts = groups * draw(st.integers(1, 6))
    ranks = nodes * draw(st.integers(1, 5))
    rooms = draw(st.integers(0, 2 * experts // nodes + 2))  # up to more than each rank can use
    redundant = -experts % ranks + ranks * rooms
    if (experts + redundant) // nodes < experts // nodes:
        redundant += ranks
    kind = draw(st.sampled_from(["any", "zero", "one", "few", "skewed"]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    loads = {
        "any": lambda: rng.integers(0, 2**40, (2, experts)),
        "zero": lambda: np.zeros((2, experts)),
        "one": lambda: np.eye(experts)[rng.integers(0, experts, 2)] * 1000,
        "few": lambda: rng.integers(0, 3, (2, experts)),
        "skewed": lambda: rng.pareto(0.8, (2, experts)),
    }[kind]()
    return loads, (experts, redundant, groups, nodes, ranks)


def _held(placed: PlacementArrays) -> np.ndarray:
    """Copies by layer, rank and expert."""
    held = np.zeros((len(placed.logical), placed.ranks, placed.experts), dtype=np.int64)
    for layer, (logical, rank) in enumerate(zip(placed.logical, placed.rank, strict=True)):
        np.add.at(held[layer], (rank, logical), 1)
    return held


@given(problems())
@example((np.array([REPORTED]), (16, 8, 1, 1, 4)))
@example((np.zeros((1, 3)), (3, 1, 1, 1, 4)))  # fewer experts than ranks
@example((np.array([[5, 5, 5]]), (3, 15, 1, 1, 1)))  # one rank: doubles can't be avoided
@example((np.array([[9, 0, 0, 0]]), (4, 28, 1, 1, 4)))  # eight copies of each
def test_no_rank_has_more_copies_of_an_expert_than_it_must(problem: tuple[np.ndarray, Fit]) -> None:
    loads, (experts, redundant, groups, nodes, ranks) = problem
    placed = distinct(loads, redundant, groups, nodes, ranks)
    held = _held(placed)
    assert (held.sum(axis=2) == (experts + redundant) // ranks).all()
    assert (held.sum(axis=1) >= 1).all()
    node_of = np.arange(ranks) * nodes // ranks
    for layer in held:
        homes = [set(node_of[layer[:, expert] > 0].tolist()) for expert in range(experts)]
        assert all(len(home) == 1 for home in homes)
        assert all(
            home == homes[e // (experts // groups) * (experts // groups)] for e, home in enumerate(homes)
        )
        for rank, row in enumerate(layer):
            # Whole groups are on one node, so a rank can have the experts of its node only.
            mine = [count for count, home in zip(row.tolist(), homes, strict=True) if node_of[rank] in home]
            assert max(mine) <= -(-sum(mine) // len(mine))
            assert max(mine) - min(mine) <= 1


def test_the_case_that_was_reported() -> None:
    loads = np.array([REPORTED])
    assert eplb(loads, 8, 1, 1, 4).in_vain == 4
    placed = distinct(loads, 8, 1, 1, 4)
    assert (placed.in_vain, placed.doubles()) == (0, [])
    ours, theirs = placed.loads(loads).max(), eplb(loads, 8, 1, 1, 4).loads(loads).max()
    assert ours <= theirs


def test_doubles_are_named() -> None:
    [double, *_] = eplb(np.array([REPORTED]), 8, 1, 1, 4).doubles()
    assert (double.row, double.rank, double.expert, double.copies) == (0, 0, 9, 2)


def test_hot_experts_are_on_every_rank_and_idle_ones_get_copies_evenly() -> None:
    one = distinct(np.array([[800, 0, 0, 0, 0, 0, 0, 0]]), 8, 1, 1, 4)
    assert one.copies.tolist() == [[4, 2, 2, 2, 2, 2, 1, 1]]
    assert one.loads(np.array([[800] + [0] * 7])).tolist() == [[200.0] * 4]
    idle = distinct(np.zeros((1, 8)), 8, 1, 1, 4)
    assert idle.copies.tolist() == [[2] * 8]


def test_ranks_with_room_for_all_experts_have_all_of_them_equally_often() -> None:
    placed = distinct(np.array([[7, 1, 1]]), 9, 1, 1, 3)  # four places, three experts
    held = _held(placed)[0]
    assert (held.min(), held.max()) == (1, 2)
    # Expert 0 has one of the four places more on each rank.
    assert held[:, 0].tolist() == [2, 2, 2]


def _busiest(logical: np.ndarray, loads: np.ndarray, ranks: int) -> np.ndarray:
    placed = PlacementArrays(
        logical,
        np.tile(np.arange(logical.shape[1]) * ranks // logical.shape[1], (len(loads), 1)),
        loads.shape[1],
        ranks,
    )
    return placed.loads(loads).max(axis=1)


def test_ranks_with_room_for_few_take_no_memory_for_all_experts_on_each() -> None:
    """256 experts on each of 4,096 ranks were made in 58 layers, 486 MB, and then not used."""
    loads = np.random.default_rng(1).integers(0, 1000, (8, 64))
    tracemalloc.start()
    placed = place_distinct(loads, 2048, 1, 1, 2048)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert sorted(set(placed[0].tolist())) == list(range(64))
    assert peak < 20 * placed.nbytes < 8 * loads.size * 2048


@pytest.mark.parametrize("shape", [(64, 16, 8), (128, 16, 16), (256, 32, 32), (256, 64, 64), (60, 36, 8)])
@pytest.mark.parametrize("skew", [0.0, 1.0, 1.5])
def test_skewed_layers_are_balanced_as_well_as_by_vllms_policy(
    shape: tuple[int, int, int], skew: float
) -> None:
    experts, redundant, ranks = shape
    rng = np.random.default_rng(0)
    loads = rng.pareto(skew, (8, experts)) * 1000 if skew else rng.poisson(500, (8, experts)).astype(float)
    ours = _busiest(place_distinct(loads, experts + redundant, 1, 1, ranks), loads, ranks)
    theirs = _busiest(place(loads, experts + redundant, 1, 1, ranks), loads, ranks)
    assert (ours <= 1.01 * theirs).all()
    assert ours.sum() <= 1.005 * theirs.sum()


def _best(loads: np.ndarray, ranks: int, room: int) -> float:
    """The busiest rank's load by the best of all placements without doubles."""
    experts = loads.shape[1]
    choices = combinations_with_replacement(combinations(range(experts), room), ranks)
    placed = (sum(choice, ()) for choice in choices)
    return min(
        float(_busiest(np.array([found]), loads, ranks)[0]) for found in placed if len(set(found)) == experts
    )


@pytest.mark.parametrize(
    ("loads", "redundant", "best"),
    [([10, 20, 30, 40], 2, 55), ([200, 150, 100, 50, 25, 12], 4, 275), ([12, 25, 50, 100, 150, 200], 4, 275)],
)
def test_where_vllms_policy_is_better_there_is_no_better_one_without_doubles(
    loads: list[int], redundant: int, best: int
) -> None:
    """Inputs of vLLM's own tests: experts on two ranks, on which doubles even out what is odd."""
    given_loads = np.array([loads])
    physical = len(loads) + redundant
    ours = _busiest(place_distinct(given_loads, physical, 1, 1, 2), given_loads, 2)[0]
    theirs = _busiest(place(given_loads, physical, 1, 1, 2), given_loads, 2)[0]
    assert ours == pytest.approx(best)
    assert _best(given_loads, 2, physical // 2) == pytest.approx(best)
    assert theirs < ours


def test_small_layers_are_balanced_nearly_as_well_as_can_be() -> None:
    """Against all placements without doubles, and vLLM's."""
    rng = np.random.default_rng(3)
    of_best, of_theirs = [], []
    for number in range(60):
        ranks, experts, redundant = [(3, 4, 2), (3, 5, 4), (3, 6, 3), (4, 4, 4)][number % 4]
        loads = (rng.integers(1, 1000, (1, experts)), rng.pareto(1.1, (1, experts)) * 100)[number % 2]
        room = (experts + redundant) // ranks
        ours = _busiest(place_distinct(loads, experts + redundant, 1, 1, ranks), loads, ranks)[0]
        theirs = _busiest(place(loads, experts + redundant, 1, 1, ranks), loads, ranks)[0]
        best = _best(loads, ranks, room)
        of_best.append(ours / best)
        of_theirs.append(ours / theirs)
    assert min(of_best) >= 1 - 1e-9
    assert np.mean(of_theirs) < 1
    assert max(of_theirs) < 1.2
    assert np.mean(of_best) < 1.05
