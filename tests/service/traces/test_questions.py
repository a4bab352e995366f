"""Ranking many requests: what the measures of single requests say, in order."""

from __future__ import annotations

import numpy as np
import pytest

from moescope.capture.wire import MoeLayer, PlacementTable, pack_ids
from moescope.service.measures.requests import Surprises, expected_bits, own_bits
from moescope.service.store.slots import RequestSlots, begins_of
from moescope.service.traces.concentrated import concentrated
from moescope.service.traces.similar import similar
from moescope.service.traces.slot_table import Group
from moescope.service.traces.unusual import SurpriseName, unusual

WIDE = (MoeLayer(0, 8, 2), MoeLayer(2, 6, 2))
FIRST = WIDE[:1]


def groups_of(seed: int, many: int = 300) -> tuple[list[Group], dict[int, np.ndarray]]:
    """Requests of two kinds of layers, and the counts of those that have both layers."""
    rng = np.random.default_rng(seed)
    counts = rng.poisson(np.linspace(1, 9, 14), (many, 14)).astype(np.int32)
    made = [RequestSlots(number, WIDE, counts[number]) for number in range(many)]
    others = [RequestSlots(1000 + number, FIRST, counts[number, :8]) for number in range(20)]
    groups = [Group.of(WIDE, made[:200]), Group.of(WIDE, made[200:]), Group.of(FIRST, others)]
    return groups, {number: counts[number] for number in range(many)}


@pytest.mark.parametrize("by", ["surprise_score", "divergence_bits", "surprise_bits"])
@pytest.mark.parametrize("layers", [None, [2]])
def test_unusual_is_the_order_of_the_measure(by: SurpriseName, layers: list[int] | None) -> None:
    groups, counts = groups_of(1)
    begins = begins_of(WIDE)
    window = sum(counts.values()).astype(np.int64)
    window[:8] += sum(counts[number][:8] for number in range(20))
    chosen = np.array([layers is None, True])
    bits = np.where(np.repeat(chosen, (8, 6)), expected_bits(window, begins), 0)
    wanted = {}
    for number, of in counts.items():
        slots, own = np.add.reduceat(of, begins) * chosen, own_bits(of, begins) * chosen
        wanted[number] = float(getattr(Surprises.of(of, slots, own, bits, [8, 6]), by))
    found = [item for item in unusual(groups, by, layers, 1000) if item.number in wanted]
    # Requests without the layer have no measure.
    assert len(unusual(groups, by, layers, 1000)) == len(counts) + (20 if layers is None else 0)
    assert [item.number for item in found] == sorted(wanted, key=lambda number: (-wanted[number], -number))
    for item in found:
        assert getattr(item, by) == pytest.approx(wanted[item.number])
    telling = found[0].telling
    assert [one.bits for one in telling] == sorted((one.bits for one in telling), reverse=True)
    assert all(one.share > one.usual_share and (layers is None or one.layer in layers) for one in telling)


def test_concentration_shares_out_the_slots_of_copies() -> None:
    """Layer 0: expert 0 has a copy on both ranks. Layer 2 is not placed. Rank 2 has no expert."""
    table = PlacementTable(pack_ids([0, 1, 2, 3, 0, 4, 5, 6, 7]), pack_ids([0, 0, 0, 0, 1, 1, 1, 1, 1]))
    counts = np.array([[6, 1, 1, 0, 1, 0, 0, 1, *[50] * 6], [0, 0, 0, 0, 9, 0, 0, 1, *[1] * 6]], np.int32)
    group = Group.of(WIDE, [RequestSlots(number, WIDE, row) for number, row in enumerate(counts)])
    first, second = concentrated([group], {WIDE[0]: table}, 3, 5)
    assert (first.number, first.busiest_ep_rank, first.busiest_ep_rank_share, first.slots) == (1, 1, 1, 10)
    # 3 + 1 + 1 on rank 0, 3 + 1 + 1 on rank 1: the lower one is named.
    assert (second.number, second.busiest_ep_rank, second.busiest_ep_rank_share) == (0, 0, 0.5)
    unplaced = Group.of(WIDE[1:], [RequestSlots(7, WIDE[1:], np.ones(6, np.int32))])
    assert concentrated([unplaced], {WIDE[0]: table}, 3, 5) == []


def test_similar_compares_the_layers_that_both_have() -> None:
    groups, counts = groups_of(2)
    to = RequestSlots(17, WIDE, counts[17])
    found = similar(groups, to, None, 400)
    alike = {item.number: item for item in found}
    assert 17 not in alike
    assert (alike[1017].layers, alike[18].layers) == (1, 2)
    assert alike[1017].similarity == pytest.approx(1)
    assert found[0].number == 1017
    p, q = (counts[number][:8] / counts[number][:8].sum() for number in (17, 30))
    r, s = (counts[number][8:] / counts[number][8:].sum() for number in (17, 30))
    wanted = (np.sqrt(p * q).sum() + np.sqrt(r * s).sum()) / 2
    assert alike[30].similarity == pytest.approx(wanted)
    [only] = [item for item in similar(groups, to, [0], 400) if item.number == 30]
    assert (only.similarity, only.layers) == (pytest.approx(np.sqrt(p * q).sum()), 1)
    values = [item.similarity for item in found]
    assert values == sorted(values, reverse=True)


def test_equals_are_in_the_order_of_their_coming_newest_first() -> None:
    rows = [RequestSlots(number, FIRST, np.full(8, 3, np.int32)) for number in range(10)]
    groups = [Group.of(FIRST, rows[:5]), Group.of(FIRST, rows[5:])]
    assert [item.number for item in unusual(groups, "surprise_score", None, 4)] == [9, 8, 7, 6]
    assert [item.number for item in similar(groups, rows[8], None, 3)] == [9, 7, 6]
    assert unusual([], "surprise_score", None, 3) == []
