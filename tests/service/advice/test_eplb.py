"""Placement by load: what can be proved of it, and hand-worked cases.

``tests/test_placements.py`` compares it with the policy of the installed vLLM.
"""

from __future__ import annotations

import math
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from moescope.service.advice.eplb import balanced_packing, place, replicate
from moescope.service.advice.placements import eplb

# (experts, redundant, groups, nodes, ranks) that fit together, hierarchical and global.
FITS = [
    (8, 0, 1, 1, 4),
    (8, 4, 2, 2, 4),
    (12, 4, 4, 2, 8),
    (16, 8, 8, 4, 8),
    (6, 2, 3, 2, 4),  # groups are no multiple of nodes: global
    (60, 4, 1, 1, 8),
    (9, 7, 3, 1, 4),
]


@st.composite
def problems(draw: st.DrawFn) -> tuple[np.ndarray, tuple[int, int, int, int, int]]:
    fit = draw(st.sampled_from(FITS))
    shape = st.tuples(st.integers(1, 3), st.just(fit[0]))
    return draw(arrays(np.int64, shape, elements=st.integers(0, 2**53 // 64))), fit


@given(problems())
def test_every_expert_is_placed_and_every_rank_is_full(
    problem: tuple[np.ndarray, tuple[int, int, int, int, int]],
) -> None:
    loads, (experts, redundant, groups, nodes, ranks) = problem
    placed = eplb(loads, redundant, groups, nodes, ranks)
    assert placed.logical.shape == (len(loads), experts + redundant)
    assert (placed.copies >= 1).all()
    assert (placed.copies.sum(axis=1) == experts + redundant).all()
    for row in placed.rank:
        assert set(np.bincount(row, minlength=ranks)) == {(experts + redundant) // ranks}
    assert placed.loads(loads).sum(axis=1) == pytest.approx(loads.sum(axis=1))


@given(problems())
def test_a_group_stays_on_one_node(problem: tuple[np.ndarray, tuple[int, int, int, int, int]]) -> None:
    loads, (experts, redundant, groups, nodes, ranks) = problem
    if groups % nodes:
        return
    placed = eplb(loads, redundant, groups, nodes, ranks)
    for logical, rank in zip(placed.logical, placed.rank, strict=True):
        pairs = set(
            zip((logical // (experts // groups)).tolist(), (rank // (ranks // nodes)).tolist(), strict=True)
        )
        assert len(pairs) == groups


@given(
    arrays(np.int64, st.tuples(st.integers(1, 3), st.integers(1, 8)), elements=st.integers(0, 1000)),
    st.integers(0, 8),
)
def test_no_choice_of_copies_has_a_smaller_largest_load(loads: np.ndarray, redundant: int) -> None:
    physical = loads.shape[1] + redundant
    logical, copies = replicate(loads, physical)
    assert logical.shape == (len(loads), physical)
    for row, mine, ids in zip(loads, copies, logical, strict=True):
        assert np.array_equal(np.bincount(ids, minlength=len(row)), mine)
        assert mine.sum() == physical
        largest = (row / mine).max()
        # Every load of a copy that could be the largest one, smaller than ours: it takes more copies.
        for bound in {w / c for w in row.tolist() for c in range(1, physical + 1)}:
            if bound < largest * (1 - 1e-12):
                needed = sum(max(1, math.ceil(w / bound - 1e-9)) if bound else math.inf for w in row if w)
                assert needed + (row == 0).sum() > physical


@given(arrays(np.int64, st.tuples(st.just(1), st.just(6)), elements=st.integers(1, 100)))
def test_two_items_a_pack_are_packed_as_well_as_can_be(loads: np.ndarray) -> None:
    pack, _ = balanced_packing(loads, 3)
    got = np.bincount(pack[0], weights=loads[0]).max()
    best = min(
        max(loads[0][list(order[i : i + 2])].sum() for i in (0, 2, 4)) for order in permutations(range(6))
    )
    assert got == best


def test_the_heaviest_first_each_to_the_lightest_open_pack() -> None:
    pack, place_in_pack = balanced_packing(np.array([[9, 8, 7, 1, 1, 1]]), 2)
    # 9 | 8; 7 joins 8; then 1 and 1 join 9, which is full; the last 1 goes where there is room.
    assert pack.tolist() == [[0, 1, 1, 0, 0, 1]]
    assert place_in_pack.tolist() == [[0, 0, 1, 1, 2, 2]]


def test_a_planted_hot_expert_gets_the_copies() -> None:
    loads = np.array([[50, 10, 10, 10, 10, 10, 10, 10]])
    placed = eplb(loads, 4, 1, 1, 4)
    assert placed.copies.tolist() == [[5, 1, 1, 1, 1, 1, 1, 1]]
    assert placed.loads(loads).tolist() == [[30.0] * 4]


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        ((8, 9, 1, 1, 4), "9 physical experts are no multiple of 4 ranks"),
        ((8, 8, 3, 1, 4), "8 experts are no multiple of 3 groups"),
        ((8, 8, 2, 2, 1), "1 ranks are no multiple of 2 nodes"),
        ((8, 4, 1, 1, 4), "4 physical experts are fewer than 8"),
    ],
)
def test_what_does_not_fit_is_said(numbers: tuple[int, int, int, int, int], words: str) -> None:
    experts, physical, groups, nodes, ranks = numbers
    with pytest.raises(ValueError, match=words):
        place(np.ones((1, experts)), physical, groups, nodes, ranks)


def test_the_first_case_of_vllms_own_tests() -> None:
    """With no two loads alike there is one answer; it is what vLLM's tests of its policy expect."""
    loads = np.array(
        [
            [90, 132, 40, 61, 104, 165, 39, 4, 73, 56, 183, 86],
            [20, 107, 104, 64, 19, 197, 187, 157, 172, 86, 16, 27],
        ]
    )
    assert place(loads, 16, 4, 2, 8).tolist() == [
        [5, 6, 5, 7, 8, 4, 3, 4, 10, 9, 10, 2, 0, 1, 11, 1],
        [7, 10, 6, 8, 6, 11, 8, 9, 2, 4, 5, 1, 5, 0, 3, 1],
    ]
