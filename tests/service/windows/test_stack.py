"""Stacked totals against a plain loop over ranks and layers."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence

import numpy as np
import pytest

from moescope.capture.wire import MoeLayer
from moescope.service.counts.ep_slots import PARTS, carried
from moescope.service.counts.layers import Layout
from moescope.service.counts.totals import Totals
from moescope.service.live.spans import Rise, rise_of
from moescope.service.windows import shared_sums
from moescope.service.windows.shared_sums import SharedSums
from moescope.service.windows.stack import Stack, Stacker

EXPERTS = {3: 5, 4: 8, 5: 5, 9: 6}


def _totals(rng: np.random.Generator, layers: Sequence[int], ranks: int) -> Totals:
    layout = Layout(MoeLayer(layer=layer, num_experts=EXPERTS[layer], top_k=2) for layer in layers)
    return Totals(
        layout=layout,
        counts=rng.integers(0, 50, int(layout.offsets[-1])),
        rows=rng.integers(0, 3, len(layers)),
        ep_slots=carried(
            rng.integers(0, 50, (len(layers), ranks)), rng.integers(0, 5, (len(layers), ranks)) * (PARTS // 4)
        ),
        unplaced=rng.integers(0, 2, len(layers)),
        unphased_rows=np.zeros(len(layers), dtype=np.int64),
        estimated=rng.integers(0, 2, len(layers)),
    )


# (layers, EP ranks) of each producer, by DP rank: alike, tensor parallel, pipeline stages, unlike ones.
FLEETS: list[Mapping[int, list[tuple[tuple[int, ...], int]]]] = [
    {rank: [((3, 4, 5), 4)] for rank in range(6)},
    {rank: [((3, 4, 5), 4)] * 2 for rank in range(3)},
    {rank: [((3, 4), 4), ((5, 9), 4)] for rank in range(3)},
    {0: [((3, 4, 5, 9), 4)], 2: [((3, 9), 0)], 7: [((4,), 6)]},
]


@pytest.mark.parametrize("fleet", FLEETS)
def test_stacks_are_the_sums_of_a_loop(fleet: Mapping[int, list[tuple[tuple[int, ...], int]]]) -> None:
    rng = np.random.default_rng(7)
    by_rank = {rank: [_totals(rng, *shape) for shape in shapes] for rank, shapes in fleet.items()}
    computed = [bool(rng.integers(0, 2)) for _ in by_rank]
    layouts = [totals.layout for producers in by_rank.values() for totals in producers]
    stacker = Stacker(layouts, len(by_rank), 4)
    for producers, any_token in zip(by_rank.values(), computed, strict=True):
        stacker.add(list(map(rise_of, producers)), any_token)
    stack = stacker.stack()
    layers = [layer.layer for layer in stack.layout.layers]
    assert layers == sorted({layer for shapes in fleet.values() for found, _ in shapes for layer in found})
    for i, layer in enumerate(layers):
        placed, unplaced, estimated = np.zeros(8), 0, 0
        everywhere = np.zeros(EXPERTS[layer], dtype=np.int64)
        for d, producers in enumerate(by_rank.values()):
            counts, rows, present = np.zeros(EXPERTS[layer], dtype=np.int64), 0, False
            having = [
                (totals, at) for totals in producers if (at := totals.layout.index.get(layer)) is not None
            ]
            for totals, at in having:
                counts, rows, present = counts + totals.counts_of(at), rows + totals.rows[at], True
            unseen = computed[d] and not rows
            for totals, at in having if not unseen else ():
                placed[: totals.ep_slots.ranks] += totals.ep_slots.floats()[at]
                unplaced += int(totals.unplaced[at])
                estimated += int(totals.estimated[at])
            everywhere += counts if not unseen else 0
            assert stack.slots[d, i] == counts.sum()
            assert (stack.rows[d, i], stack.present[d, i], stack.lost[d, i]) == (rows, present, unseen)
        start, end = stack.layout.offsets[i : i + 2]
        assert stack.counts[start:end].tolist() == everywhere.tolist()
        assert (stack.unplaced[i], stack.estimated[i]) == (unplaced, estimated)
        assert len(stack.ep_slots[i]) == max(4, int(np.flatnonzero(placed).max(initial=-1)) + 1)
        assert stack.ep_slots[i].tolist() == placed[: len(stack.ep_slots[i])].tolist()


def _stacked(
    by_rank: Sequence[list[Rise]],
    computed: Sequence[bool],
    sums: SharedSums | None = None,
    experts: bool = True,
    begins_again: bool = False,
) -> Stack:
    layouts = [rise.layout for rises in by_rank for rise in rises]
    stacker = Stacker(layouts, len(by_rank), 4, sums, experts, begins_again)
    for rises, any_token in zip(by_rank, computed, strict=True):
        stacker.add(rises, any_token)
    return stacker.stack()


def _arrays(stack: Stack, experts: bool) -> list[object]:
    rest = [stack.slots, stack.rows, stack.present, stack.lost, stack.partial, *stack.ep_slots]
    told = [array.tolist() for array in rest]
    return [*told, stack.unplaced, stack.estimated, stack.counts.tolist() if experts else None]


@pytest.mark.parametrize("experts", [True, False])
@pytest.mark.parametrize("fleet", FLEETS)
def test_stacks_with_one_end_share_its_sum_and_are_what_they_are_alone(
    fleet: Mapping[int, list[tuple[tuple[int, ...], int]]], experts: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(8)
    ends = [[_totals(rng, *shape) for shape in shapes] for shapes in fleet.values()]
    made: list[int] = []
    real = shared_sums._sum

    def noted(totals: Sequence[Totals], *, experts: bool) -> shared_sums.Sum:
        made.append(len(totals))
        return real(totals, experts=experts)

    monkeypatch.setattr(shared_sums, "_sum", noted)
    sums = SharedSums()
    computed = [False] * len(ends)  # so that no layer is lost of any
    for wants in (True, experts):  # as a scrape: counts by expert of the window, and of all perhaps not
        begins = [[_totals(rng, *shape) for shape in shapes] for shapes in fleet.values()]
        by_rank = [
            [
                Rise(last.layout, last.rows - first.rows, 1, 0, last, first)
                for first, last in zip(*pair, strict=True)
            ]
            for pair in zip(begins, ends, strict=True)
        ]
        alone, shared = _stacked(by_rank, computed), _stacked(by_rank, computed, sums, wants)
        assert _arrays(shared, wants) == _arrays(alone, wants)
        assert wants or not shared.counts.any()
    whole = [totals for producers in ends for totals in producers if len(totals.layout.layers) > 2]
    assert made == ([len(whole)] if fleet in FLEETS[:2] else made[:1])
    assert len(made) <= 1


def test_what_stacks_begin_with_again_is_summed_once_over_scrapes(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(10)
    begins, sums, made = [_totals(rng, (3, 4), 4) for _ in range(3)], SharedSums(), list[int]()
    real = shared_sums._sum
    monkeypatch.setattr(
        shared_sums, "_sum", lambda totals, experts: made.append(1) or real(totals, experts=experts)
    )
    for _ in range(3):
        ends = [_totals(rng, (3, 4), 6) for _ in begins]
        by_rank = [
            [Rise(last.layout, last.rows, 1, 0, last, first)]
            for first, last in zip(begins, ends, strict=True)
        ]
        shared = _stacked(by_rank, [False] * 3, sums, False, begins_again=True)
        assert _arrays(shared, False) == _arrays(_stacked(by_rank, [False] * 3), False)
        sums.drop_ends()
    assert len(made) == 3 + 1


def test_differences_that_were_made_are_not_held_until_all_are_there() -> None:
    rng = np.random.default_rng(11)
    totals, sums = _totals(rng, (3, 4), 4), SharedSums()
    kept = weakref.ref(totals)
    stacker = Stacker([totals.layout], 1, 4, sums)
    stacker.add([rise_of(totals)], False)
    del totals
    assert kept() is None


def test_a_sum_is_made_anew_of_other_totals_and_where_counts_are_wanted_for_the_first_time() -> None:
    rng = np.random.default_rng(9)
    one, other = _totals(rng, (3, 4), 4), _totals(rng, (3, 4), 6)
    sums = SharedSums()
    first = sums.of([one, other], experts=False)
    assert first.counts is None
    assert first.ep_slots.shape == (2, 6)
    assert sums.of([one, other], experts=False) is first
    counted = sums.of([one, other], experts=True).counts
    assert counted is not None
    assert counted.tolist() == (one.counts + other.counts).tolist()
    alone = sums.of([one], experts=True).counts
    assert alone is not None
    assert alone.tolist() == one.counts.tolist()


def test_sums_by_layer_are_known_as_long_as_the_counts_are() -> None:
    layout = Layout([MoeLayer(3, 5, 2), MoeLayer(4, 8, 2)])
    counts = np.arange(13)
    assert layout.known_sums(counts) is layout.known_sums(counts)
    assert layout.known_sums(counts).tolist() == layout.sums(counts).tolist()
    assert layout.known_sums(counts + 1).tolist() == layout.sums(counts + 1).tolist()
    del counts
    assert not layout._summed
