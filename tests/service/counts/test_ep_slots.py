"""Slots by EP rank."""

from __future__ import annotations

import tracemalloc
from fractions import Fraction

import numpy as np
import pytest

from moescope.capture import wire
from moescope.capture.wire import Placement
from moescope.service.counts.ep_slots import PARTS, ep_slots_of, no_ep_slots, of_floats
from moescope.service.counts.layers import Layout
from moescope.service.measures.arrays import FloatArray
from tests.service.frames import frame, halves, placement


def slots_of(counts: dict[int, list[int]], placed: Placement, ep_size: int) -> FloatArray:
    made = frame(counts)
    counts = wire.unpack_counts(made.counts)
    one, twice = ep_slots_of(np.stack([counts, 2 * counts]), Layout(made.layers), placed, ep_size)
    assert (twice.floats() == 2 * one.floats()).all()
    return one.floats()


def test_each_rank_gets_the_slots_of_its_experts() -> None:
    slots = slots_of({0: [1, 2, 3, 4], 1: [8, 0, 0, 0]}, halves(4, 2), 2)
    assert slots.tolist() == [[3, 7], [8, 0]]


def test_a_replicated_experts_slots_are_split_evenly_over_its_copies() -> None:
    # Expert 0 has three copies: two on rank 0, one on rank 1.
    slots = slots_of({0: [9, 3]}, placement([0, 0, 0, 1], [0, 0, 1, 1], layers=1), 3)
    assert slots.tolist() == [[6, 6, 0]]


def test_layers_may_be_placed_differently() -> None:
    tables = [*halves(2, 1).tables, *placement([1, 0], [0, 1], layers=1).tables]
    both = Placement(version=1, tables=tables, table_of_layer=[0, 1])
    assert slots_of({0: [5, 1], 1: [5, 1]}, both, 2).tolist() == [[5, 1], [1, 5]]


def test_layers_of_several_shapes() -> None:
    tables = [*halves(2, 1).tables, *placement([0, 1, 2, 0], [0, 0, 1, 1], layers=1).tables]
    mixed = Placement(version=1, tables=tables, table_of_layer=[1, 0, 1])
    slots = slots_of({0: [4, 1, 1], 1: [5, 1], 2: [2, 0, 4]}, mixed, 2)
    assert slots.tolist() == [[3, 3], [5, 1], [1, 5]]


def test_nothing_is_lost_to_rounding() -> None:
    rng = np.random.default_rng(1)
    counts = rng.integers(0, 2**40, 8).tolist()
    copies = [*range(8), 0, 0, 3, 5]
    slots = slots_of({0: counts}, placement(copies, [p % 5 for p in range(12)], 1), 5)
    assert abs(slots.sum() - sum(counts)) < 1e-3


@pytest.mark.parametrize("copies", [*range(1, 41), 64, 320])
def test_copies_get_equal_parts_and_their_sum_is_whole(copies: int) -> None:
    placed = placement([*[0] * copies, 1], [*range(copies), 0], 1)
    layout = Layout(frame({0: [1, 1]}).layers)
    for slots in (1, 7, copies - 1, 2**40 + 1, 2**53 - 1):
        [found] = ep_slots_of(np.array([[slots, 0]]), layout, placed, copies)
        parts = np.zeros_like(found.whole) if found.parts is None else found.parts
        assert int(found.whole.sum()) * PARTS + int(parts.sum()) == slots * PARTS
        exact = [int(whole) * PARTS + int(part) for whole, part in zip(found.whole[0], parts[0], strict=True)]
        assert max(exact) - min(exact) <= (copies > 30)


def test_sums_and_differences_of_parts_are_exact() -> None:
    placed = placement([0, 0, 0, 1, 1, 2], [0, 1, 2, 0, 1, 2], 1)
    layout = Layout(frame({0: [1, 1, 1]}).layers)
    rng = np.random.default_rng(5)
    total, counts = no_ep_slots(1, 3), np.zeros(3, dtype=np.int64)
    seen = []
    for _ in range(200):
        new = rng.integers(0, 2**44, 3)
        counts = counts + new
        [slots] = ep_slots_of(new[np.newaxis], layout, placed, 3)
        total = total.plus(slots)
        seen.append(slots)
    [at_once] = ep_slots_of(counts[np.newaxis], layout, placed, 3)
    assert not total.minus(at_once).any()
    for slots in seen:
        total = total.minus(slots)
    assert (total.any(), total.floats().tolist()) == (False, [[0, 0, 0]])


def test_slots_that_were_kept_as_floats_come_back_exactly() -> None:
    placed = placement([0, 0, 0, 1], [0, 1, 2, 0], 1)
    layout = Layout(frame({0: [1, 1]}).layers)
    kept = np.zeros((1, 3))
    for _ in range(1000):
        [slots] = ep_slots_of(np.array([[123_457, 3]]), layout, placed, 3)
        kept += slots.floats()
    [exact] = ep_slots_of(np.array([[123_457_000, 3_000]]), layout, placed, 3)
    assert not of_floats(kept).minus(exact).any()
    with pytest.raises(ValueError, match="far too large"):
        of_floats(np.array([[np.nan]]))


def test_copies_that_are_interleaved_over_ranks_get_what_fractions_say() -> None:
    rng = np.random.default_rng(3)
    experts, ranks = 5, 4
    copies = [*range(experts), *rng.integers(0, experts, 60).tolist()]
    where = rng.integers(0, ranks, len(copies)).tolist()
    counts = rng.integers(0, 2**40, experts).tolist()
    expected = [Fraction(0)] * ranks
    for expert, rank in zip(copies, where, strict=True):
        expected[rank] += Fraction(counts[expert], copies.count(expert))
    slots = slots_of({0: counts}, placement(copies, where, 1), ranks)
    assert slots.tolist() == [pytest.approx([float(value) for value in expected], rel=1e-15)]


def test_memory_follows_the_ranks_and_not_the_copies() -> None:
    """Layers x copies would be 128 MiB an array here, and copies listed twice 256."""
    experts, ranks, layers = 64, 512, 256
    physical = np.arange(2 * experts * ranks)
    placed = placement((physical % experts).tolist(), (physical // experts % ranks).tolist(), layers)
    counts = np.ones((2, layers * experts), dtype=np.int64)
    layout = Layout(frame({layer: [1] * experts for layer in range(layers)}).layers)
    tracemalloc.start()
    one, _ = ep_slots_of(counts, layout, placed, ranks)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert one.floats() == pytest.approx(experts / ranks)
    assert peak < 64 << 20, peak
