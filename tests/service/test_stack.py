"""Stacked totals against a plain loop over ranks and layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pytest

from moescope.capture.wire import MoeLayer
from moescope.service.layout import Layout
from moescope.service.stack import stacked
from moescope.service.totals import Totals

EXPERTS = {3: 5, 4: 8, 5: 5, 9: 6}


def _totals(rng: np.random.Generator, layers: Sequence[int], ranks: int) -> Totals:
    layout = Layout(MoeLayer(layer=layer, num_experts=EXPERTS[layer], top_k=2) for layer in layers)
    return Totals(
        layout=layout,
        counts=rng.integers(0, 50, int(layout.offsets[-1])),
        rows=rng.integers(0, 3, len(layers)),
        ep_slots=rng.integers(0, 50, (len(layers), ranks)).astype(np.float64),
        unplaced=rng.integers(0, 2, len(layers)),
        unphased_rows=np.zeros(len(layers), dtype=np.int64),
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
    stack = stacked(by_rank)
    of = np.asarray(rng.integers(0, 2, stack.present.shape), dtype=np.bool_)
    of[0] = True
    ep_slots, unplaced = stack.placed(of, 4)
    layers = [layer.layer for layer in stack.layout.layers]
    assert layers == sorted({layer for shapes in fleet.values() for found, _ in shapes for layer in found})
    for i, layer in enumerate(layers):
        placed, lost = np.zeros(8), 0
        for d, producers in enumerate(by_rank.values()):
            counts, rows, present = np.zeros(EXPERTS[layer], dtype=np.int64), 0, False
            for totals in producers:
                at = totals.layout.index.get(layer)
                if at is None:
                    continue
                counts, rows, present = counts + totals.counts_of(at), rows + totals.rows[at], True
                if of[d, i]:
                    placed[: totals.ep_slots.shape[1]] += totals.ep_slots[at]
                    lost += int(totals.unplaced[at])
            start, end = stack.layout.offsets[i : i + 2]
            assert stack.counts[d, start:end].tolist() == counts.tolist()
            assert (stack.rows[d, i], stack.present[d, i]) == (rows, present)
        assert unplaced[i] == lost
        assert len(ep_slots[i]) == max(4, int(np.flatnonzero(placed).max(initial=-1)) + 1)
        assert ep_slots[i].tolist() == placed[: len(ep_slots[i])].tolist()
