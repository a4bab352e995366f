"""Windows of whole fleets against a plain loop over layers, DP ranks and producers."""

from __future__ import annotations

import numpy as np
import pytest

from moescope.capture import wire
from moescope.service.live.producers import ProducerSpan
from moescope.service.live.state import LiveState
from moescope.service.settings import Settings
from moescope.service.windows.layer_window import LayerWindow
from moescope.service.windows.window import merge_spans
from tests.service.frames import frame, producer

EXPERTS = {0: 4, 1: 6, 3: 4, 7: 5}
# Layers of each producer of a DP rank, as (pp_rank, tp_rank, layers); None: any, other ones on each rank.
KINDS: dict[str, list[tuple[int, int, tuple[int, ...]]] | None] = {
    "alike": [(0, 0, (0, 1, 3))],
    "tensor parallel": [(0, 0, (0, 1, 3)), (0, 1, (0, 1, 3))],
    "pipeline stages": [(0, 0, (0, 1)), (1, 0, (3, 7))],
    "mixed": None,
}


def _fleet(kind: str, seed: int) -> list[ProducerSpan]:
    """What a random fleet counted: some producers idle, some layers unseen, uncovered or unplaced."""
    rng = np.random.default_rng(seed)
    size = int(rng.integers(1, 6))
    ep_size = int(rng.choice([1, 2, size]))
    state = LiveState(Settings(), lambda: 1_700_000_100.0)
    for dp_rank in range(size):
        some = tuple(sorted(rng.choice(list(EXPERTS), int(rng.integers(1, 5)), replace=False).tolist()))
        for pp_rank, tp_rank, layers in KINDS[kind] or [(0, 0, some)]:
            idle, unseen, placed, partly = rng.random(4) < (0.15, 0.2, 0.8, 0.3)
            counts = {layer: 2 * rng.integers(0, 9, EXPERTS[layer]) * (not idle) for layer in layers}
            counts[layers[0]] *= not unseen
            who = producer(
                dp_rank=dp_rank,
                dp_size=size,
                ep_rank=min(dp_rank, ep_size - 1),
                ep_size=ep_size,
                pp_rank=pp_rank,
                pp_size=1 + (kind == "pipeline stages"),
                tp_rank=tp_rank,
                tp_size=1 + (kind == "tensor parallel"),
            )
            blind = [layer for layer in EXPERTS if layer not in layers] if partly else []
            state.ingest(
                frame(
                    {layer: row.tolist() for layer, row in counts.items()},
                    who=who,
                    placement=_placement(layers, ep_size) if placed and ep_size > 1 else None,
                    uncovered=[wire.UncoveredLayer(layer=at, reason=f"of {dp_rank}") for at in blind],
                )
            )
    return state.spans(("prod", "tiny"), None, None)


def _placement(layers: tuple[int, ...], ep_size: int) -> wire.Placement:
    tables = [
        wire.PlacementTable(
            wire.pack_ids(range(size)), wire.pack_ids([e * ep_size // size for e in range(size)])
        )
        for size in (EXPERTS[layer] for layer in layers)
    ]
    return wire.Placement(version=1, tables=tables, table_of_layer=list(range(len(layers))))


def _hold(layer: LayerWindow, spans: list[ProducerSpan], ep_size: int) -> None:
    at = layer.shape.layer
    shown, unseen, uncovered, unplaced = [], [], {}, 0
    ep_slots, counts = np.zeros(ep_size), np.zeros(EXPERTS[at], np.int64)
    for rank in sorted({item.producer.latest.producer.dp_rank for item in spans}):
        members = [item for item in spans if item.producer.latest.producer.dp_rank == rank]
        deltas = [item.span.delta for item in members]
        computed = max(delta.tokens for delta in deltas) > 0
        reasons = [e.reason for item in members for e in item.producer.latest.uncovered if e.layer == at]
        if reasons and computed:
            uncovered[rank] = reasons[0]
        parts = [(delta, delta.layout.index[at]) for delta in deltas if at in delta.layout.index]
        rows = sum(int(delta.rows[i]) for delta, i in parts)
        if computed and not rows and rank not in uncovered:
            unseen.append(rank)
        if not parts or (computed and not rows):
            continue
        mine = sum(delta.counts_of(i) for delta, i in parts)
        counts += mine
        shown.append((rank, rows, mine.sum()))
        for delta, i in parts:
            unplaced += int(delta.unplaced[i])
            ep_slots[: delta.ep_slots.ranks] += delta.ep_slots.floats()[i]
    assert list(zip(layer.dp_ranks, layer.rows.tolist(), layer.slots.tolist(), strict=True)) == shown
    assert layer.counts.tolist() == counts.tolist()
    assert (layer.unseen, layer.uncovered, layer.unplaced) == (tuple(unseen), uncovered, unplaced)
    assert layer.ep_slots.tolist() == ep_slots.tolist()
    assert (layer.ep_reason is None) == (ep_size > 1 and not unplaced)


@pytest.mark.parametrize("kind", KINDS)
def test_windows_are_those_of_a_loop(kind: str) -> None:
    met: set[str] = set()
    for seed in range(25):
        spans = _fleet(kind, seed)
        window = merge_spans(spans)
        ids = sorted({layer.layer for item in spans for layer in item.span.delta.layout.layers})
        assert [layer.shape.layer for layer in window.layers] == ids
        for layer in window.layers:
            _hold(layer, spans, window.ep_size)
            found = {"unseen": layer.unseen, "unplaced": layer.unplaced, "all": not layer.missing}
            met |= {name for name, yes in found.items() if yes}
    assert met == {"unseen", "unplaced", "all"}  # else the fleets prove too little


def test_bounds_are_those_of_the_producers_that_reported() -> None:
    clock = [1_700_000_000.0]
    state = LiveState(Settings(), lambda: clock[0])
    for second in range(600):
        for rank in (0, 1):
            if rank == 0 or second < 10:
                counts = {0: [2 * (second + 1)] * 4}
                who = producer(dp_rank=rank, dp_size=2)
                state.ingest(frame(counts, who=who, seq=second + 1, after_s=second))
        clock[0] += 1
    used = merge_spans(state.spans(("prod", "tiny"), clock[0] - 60, None)).used
    assert (used.start_earliest, used.start_latest) == (clock[0] - 60, clock[0] - 60)
    assert (used.end_earliest, used.end_latest) == (clock[0] - 1, clock[0] - 1)
    nobody = merge_spans(state.spans(("prod", "tiny"), clock[0] - 0.5, None)).used
    assert nobody.end_earliest < nobody.end_latest == clock[0] - 1


def test_a_layer_that_only_one_dp_rank_lacks_says_so_and_is_not_absent_in_the_whole() -> None:
    state = LiveState(Settings(), lambda: 1_700_000_100.0)
    state.ingest(frame({0: [4, 4], 1: [4, 4]}, who=producer(dp_size=2)))
    lacks = [wire.UncoveredLayer(1, "not found"), wire.UncoveredLayer(2, "nor that")]
    state.ingest(frame({0: [4, 4]}, who=producer(dp_rank=1, dp_size=2), absent=lacks))
    window = merge_spans(state.spans(("prod", "tiny"), None, None))
    layer = next(item for item in window.layers if item.shape.layer == 1)
    assert (layer.dp_ranks, layer.missing, layer.uncovered) == ((0,), (1,), {1: "not found"})
    assert window.absent == {2: "nor that"}
