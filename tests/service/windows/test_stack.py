"""Stacked totals against a plain loop over ranks and layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pytest

from moescope.capture.wire import MoeLayer
from moescope.service.counts.ep_slots import PARTS, carried
from moescope.service.counts.layers import Layout
from moescope.service.counts.totals import Totals
from moescope.service.live.spans import rise_of
from moescope.service.windows.stack import Stacker

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
