"""Joining steps by number: equal to a direct computation, whatever comes when."""

from __future__ import annotations

import tracemalloc
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moescope.service.counts.step_costs import Stragglers, no_stragglers, stragglers_of
from moescope.service.live.step_join import MAX_WINDOW, StepJoin, window_of

LAYERS, RANKS = 2, 3


@dataclass(frozen=True)
class Range:
    """What one frame accounts for: steps ``[first, end)`` of a member."""

    member: int
    first: int
    end: int


@dataclass(frozen=True)
class Run:
    """The loads of all steps of all members, [M, S, P, L, R], P the microbatches of a step, and the ranges in
    the order in which they come. A step of which only the first microbatch has slots need not be split."""

    loads: np.ndarray
    ranges: list[Range]


def feed(join: StepJoin, run: Run, dtype: str = "<u1") -> Stragglers:
    """Everything that the join gave."""
    total = no_stragglers(LAYERS, RANKS)
    for item in run.ranges:
        loads = run.loads[item.member, item.first : item.end]
        busy, part = np.nonzero(loads.any(axis=(2, 3)))
        named = loads[busy, part].astype(dtype)
        found = join.add(item.member, item.first, item.end, busy + item.first, named, 0, part)
        total = total if found is None else total.plus(found)
    return total


def truth(run: Run) -> tuple[Stragglers, int]:
    """By definition: over the steps that every member accounts for; and how many others there are."""
    accounted = np.zeros(run.loads.shape[:2], dtype=bool)
    for item in run.ranges:
        accounted[item.member, item.first : item.end] = True
    joined = accounted.all(axis=0)
    some = np.flatnonzero(accounted.any(axis=0))
    span = int(some[-1] - some[0] + 1) if some.size else 0
    total = no_stragglers(LAYERS, RANKS)
    for parts in run.loads.sum(axis=0)[joined]:
        hottest, caused = np.zeros((LAYERS, RANKS)), np.zeros((LAYERS, RANKS))
        for layer in range(LAYERS):
            busy = [row for row in parts[:, layer] if row.max() > 0]
            for row in busy:
                best = np.flatnonzero(row == row.max())
                hottest[layer, best] += 1 / len(best) / len(busy)
                caused[layer, best] += (row.max() - row.mean()) / len(best)
        step = Stragglers(
            parts.max(axis=2).sum(axis=0),
            parts.sum(axis=(0, 2)) / RANKS,
            parts.any(axis=(0, 2)) * 1,
            hottest,
            caused,
            1,
        )
        total = total.plus(step)
    return total, span - int(joined.sum())


def assert_same(found: Stragglers, expected: Stragglers) -> None:
    assert found.joined == expected.joined
    assert found.max_slots.tolist() == expected.max_slots.tolist()
    assert found.busy_steps.tolist() == expected.busy_steps.tolist()
    np.testing.assert_allclose(found.mean_slots, expected.mean_slots)
    np.testing.assert_allclose(found.hottest, expected.hottest, atol=1e-12)
    np.testing.assert_allclose(found.caused, expected.caused, atol=1e-9)
    np.testing.assert_allclose(found.caused.sum(axis=1), found.max_slots - found.mean_slots, atol=1e-9)


@st.composite
def runs(draw: st.DrawFn) -> Run:
    """Frames that overlap, are lost, doubled and reordered; dummy steps, of one member or of all."""
    members, steps, parts = draw(st.integers(1, 4)), draw(st.integers(1, 24)), draw(st.integers(1, 3))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    loads = rng.integers(0, 5, (members, steps, parts, LAYERS, RANKS))
    loads *= rng.random((members, steps, parts, 1, 1)) < draw(st.sampled_from([0.2, 0.7, 1.0]))
    ranges = []
    for member in range(members):
        at = 0
        while at < steps:
            end = min(steps, at + draw(st.integers(1, 8)))
            ranges.append(Range(member, max(0, at - draw(st.integers(0, 3))), end))
            at = end
    lost = draw(st.sets(st.integers(0, len(ranges) - 1), max_size=3))
    kept = [item for i, item in enumerate(ranges) if i not in lost] or ranges[:1]
    again = draw(st.lists(st.sampled_from(kept), max_size=4))
    return Run(loads, draw(st.permutations([*kept, *again])))


@given(runs())
def test_the_joined_result_is_a_direct_computation_s_whatever_the_order(run: Run) -> None:
    join = StepJoin(len(run.loads), LAYERS, RANKS, window=96)
    found, (expected, others) = feed(join, run), truth(run)
    assert_same(found, expected)
    assert found.incomplete == 0
    assert join.pending == others
    assert join.close() == others
    assert join.pending == 0


@given(runs(), st.integers(1, 12))
def test_a_window_that_is_too_small_loses_steps_and_counts_them(run: Run, window: int) -> None:
    join = StepJoin(len(run.loads), LAYERS, RANKS, window)
    found, (expected, others) = feed(join, run), truth(run)
    assert found.joined <= expected.joined
    assert (found.max_slots <= expected.max_slots).all()
    settled = found.joined + found.incomplete + join.pending
    assert settled <= expected.joined + others
    assert join.pending <= window
    assert join.close() + found.incomplete + found.joined == settled


def in_order(members: int, steps: int, at_once: int) -> list[Range]:
    return [
        Range(member, at, min(steps, at + at_once))
        for at in range(0, steps, at_once)
        for member in range(members)
    ]


def test_steps_that_a_member_lost_are_given_up_when_the_window_moves_on() -> None:
    loads = np.random.default_rng(1).integers(0, 200, (3, 400, 1, LAYERS, RANKS))
    ranges = [item for item in in_order(3, 400, 10) if item != Range(1, 50, 60)]
    join = StepJoin(3, LAYERS, RANKS, window=64)
    run = Run(loads, ranges)
    found, (expected, others) = feed(join, run), truth(run)
    assert_same(found, expected)
    assert (found.incomplete, join.pending, others) == (10, 0, 10)


def test_a_member_that_vanishes_leaves_the_others_waiting_within_bounds() -> None:
    loads = np.ones((2, 5000, 1, LAYERS, RANKS), dtype=np.int64)
    ranges = [item for item in in_order(2, 5000, 50) if item.member == 0 or item.end <= 1000]
    join = StepJoin(2, LAYERS, RANKS, window=128)
    found = feed(join, Run(loads, ranges))
    assert found.joined == 1000
    assert (join.pending, found.incomplete) == (128, 4000 - 128)
    assert len(join._loads) <= 128


def test_a_service_that_starts_late_joins_from_there_on() -> None:
    loads = np.ones((2, 1000, 1, LAYERS, RANKS), dtype=np.int64)
    ranges = [item for item in in_order(2, 1000, 25) if item.first >= 700][1:]
    join = StepJoin(2, LAYERS, RANKS, window=64)
    found = feed(join, Run(loads, ranges))
    assert (found.joined, found.incomplete, join.pending) == (275, 25, 0)


@pytest.mark.parametrize("dtype", ["<u1", "<u2", "<u4"])
def test_loads_of_every_width_add_up(dtype: str) -> None:
    most = np.iinfo(dtype).max
    loads = np.full((3, 2, 1, LAYERS, RANKS), most, dtype=np.int64)
    found = feed(StepJoin(3, LAYERS, RANKS), Run(loads, in_order(3, 2, 1)), dtype)
    assert found.max_slots.tolist() == [6 * int(most)] * LAYERS


def test_memory_is_bounded_whatever_the_shape() -> None:
    assert window_of(2, 4, 2) == MAX_WINDOW
    assert window_of(256, 58, 256) == 1129
    assert window_of(4096, 1, 4096) * 4096 <= 1 << 24
    assert window_of(1, 1024, 1024) == 16


def test_many_microbatches_take_no_more_memory_than_steps_do() -> None:
    """The window is of both: more microbatches of a step leave room for fewer steps."""
    join = StepJoin(2, LAYERS, RANKS, window=32)
    split, whole = np.arange(8), np.zeros(8, np.int64)
    ones = np.ones((8, LAYERS, RANKS), "<u1")
    assert join.add(0, 0, 8, np.arange(8), ones, 0, whole) is None
    for step in range(8, 40):
        join.add(0, step, step + 1, np.full(8, step), ones, 0, split)
        assert len(join._loads) <= 32
    assert join.pending == 4
    found = join.add(1, 36, 40, np.repeat(np.arange(36, 40), 2), ones, 0, np.tile([0, 1], 4))
    assert found is not None
    assert (found.joined, join.pending) == (4, 0)
    # Of 8 microbatches two have both members' slots.
    assert found.max_slots.tolist() == [4 * (2 + 2 + 6)] * LAYERS


def test_a_step_of_more_microbatches_than_the_window_has_room_for() -> None:
    join, parts = StepJoin(1, LAYERS, RANKS, window=4), np.arange(256)
    for step in range(3):
        found = join.add(
            0, step, step + 1, np.full(256, step), np.ones((256, LAYERS, RANKS), "<u1"), 0, parts
        )
        assert found is not None
        assert (found.joined, found.max_slots.tolist()) == (1, [256] * LAYERS)


def test_microbatches_are_waited_for_apart() -> None:
    """Rank 0 is hot in one of them and rank 1 in the other: over the step as a whole nobody would wait."""
    join = StepJoin(1, 1, 2)
    loads = np.array([[[6, 2]], [[2, 6]]], "<u1")
    found = join.add(0, 0, 2, np.array([0, 0]), loads, 0, np.array([0, 1]))
    assert found is not None
    assert (found.max_slots.tolist(), found.mean_slots.tolist(), found.joined) == ([12], [8.0], 2)
    assert (found.busy_steps.tolist(), found.hottest.tolist()) == ([1], [[0.5, 0.5]])


def test_a_tie_is_shared() -> None:
    found = stragglers_of(np.array([[[2, 2, 0]], [[1, 0, 0]], [[0, 0, 0]]]), joined=5)
    assert found.hottest.tolist() == [[1.5, 0.5, 0]]
    assert (found.busy_steps.tolist(), found.joined) == ([2], 5)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
def test_a_step_whose_members_knew_different_placements_is_not_joined(order: tuple[int, ...]) -> None:
    """The rearrangement came after step 1; member 2 still maps step 2 by the placement of before."""
    join, loads = StepJoin(3, LAYERS, RANKS, window=8), np.ones((2, LAYERS, RANKS), dtype="<u1")
    total = no_stragglers(LAYERS, RANKS)
    for member in order:
        for first, end, version in ((0, 2, 1), (2, 4, 1 if member == 2 else 2), (4, 6, 2)):
            found = join.add(member, first, end, np.arange(first, end), loads, version)
            total = total if found is None else total.plus(found)
    assert (total.joined, join.pending) == (4, 2)
    assert join.close() == 2


def test_a_microbatch_takes_no_memory_for_those_before_it() -> None:
    """A frame of 300 bytes took 8 MiB, and 4 MiB of it stayed: each deployment could have that."""
    join = StepJoin(2, 1, 1)
    before = join.nbytes
    tracemalloc.start()
    entry = (np.array([5]), np.ones((1, 1, 1), "<u1"), 0, np.array([255]))
    assert join.add(0, 5, 6, *entry) is None
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert join.nbytes - before < 20_000 + MAX_WINDOW * 4
    assert peak < 1 << 20
    found = join.add(1, 5, 6, *entry)
    assert found is not None
    assert found.max_slots.tolist() == [2]
    assert join.close() == 0
