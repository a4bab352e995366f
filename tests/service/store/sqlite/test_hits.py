"""Maps of the experts that traces took."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from moescope.capture.wire import MoeLayer
from moescope.capture.wire.traces import NO_EXPERT
from moescope.service.store.sqlite.hits import (
    MAP_BYTES,
    MAX_LANES,
    lanes_hit,
    most_lanes,
    only_lanes,
    planes_of,
    write_hits,
)

LAYERS = [MoeLayer(1, 5, 2), MoeLayer(4, 300, 3), MoeLayer(7, 16, 2)]
TOKENS = [3, 1, 7, 2, 2, 1, 1, 1, 4, 1]  # ten lanes: two planes


def made() -> tuple[list[np.ndarray], bytes]:
    """Ids uint16 [tokens, top_k] of each layer, some masked, and their map."""
    rng = np.random.default_rng(3)
    experts = [rng.integers(0, layer.num_experts, (sum(TOKENS), layer.top_k), np.uint16) for layer in LAYERS]
    for ids in experts:
        ids[rng.random(ids.shape) < 0.2] = NO_EXPERT
    planes = planes_of([ids.astype("<u2").tobytes() for ids in experts], TOKENS, LAYERS, id_bytes=2)
    return experts, write_hits(planes)


def test_each_lane_has_the_experts_of_its_tokens() -> None:
    experts, blob = made()
    ends = np.cumsum(TOKENS)
    for ids, layer in zip(experts, LAYERS, strict=True):
        for expert in range(layer.num_experts):
            expected = [
                bool((ids[end - n : end] == expert).any()) for end, n in zip(ends, TOKENS, strict=True)
            ]
            found = lanes_hit(blob, LAYERS, layer.layer, expert)
            assert found[: len(TOKENS)].tolist() == expected
            assert not found[len(TOKENS) :].any()


def test_a_map_of_one_byte_ids() -> None:
    layers = [MoeLayer(0, 256, 2), MoeLayer(1, 4, 1)]
    experts = [bytes([255, 0, 7, 255]), bytes([3, 0])]
    blob = write_hits(planes_of(experts, [1, 1], layers, id_bytes=1))
    assert lanes_hit(blob, layers, 0, 255).tolist()[:2] == [True, True]
    assert lanes_hit(blob, layers, 0, 0).tolist()[:2] == [True, False]
    assert lanes_hit(blob, layers, 1, 3).tolist()[:2] == [True, False]


@pytest.mark.parametrize("num_experts", [1023, 1024, 1025, 65535])
def test_many_lanes_of_many_experts(num_experts: int) -> None:
    layers, lanes = [MoeLayer(0, num_experts, 1)], 64  # 1024 x 64 places are the first that need four bytes
    ids = (np.arange(lanes) * 977 % num_experts).astype("<u2")
    ids[-1] = num_experts - 1
    planes = planes_of([ids.tobytes()], [1] * lanes, layers, id_bytes=2)
    taken = np.unpackbits(planes, axis=0, bitorder="little")
    assert taken.sum() == lanes
    assert taken[np.arange(lanes), ids].all()


def test_what_is_no_expert_has_no_lane() -> None:
    _, blob = made()
    assert not lanes_hit(blob, LAYERS, 1, 5).size
    assert not lanes_hit(blob, LAYERS, 2, 0).size


def test_only_some_lanes_stay() -> None:
    _, blob = made()
    places = [(layer.layer, expert) for layer in LAYERS for expert in range(layer.num_experts)]
    for kept in ([0], [9], [2, 8], list(range(len(TOKENS)))):
        left = only_lanes(blob, LAYERS, kept)
        for place in places:
            before, after = lanes_hit(blob, LAYERS, *place), lanes_hit(left, LAYERS, *place)
            assert [after[lane] for lane in kept] == [before[lane] for lane in kept]
            assert not after[[lane for lane in range(len(after)) if lane not in kept]].any()
    assert any(lanes_hit(only_lanes(blob, LAYERS, [9]), LAYERS, *place)[9] for place in places)
    with pytest.raises(ValueError, match="damaged"):
        only_lanes(blob, LAYERS, [16])


def test_a_map_has_a_bound_however_many_experts_there_are() -> None:
    widest = [MoeLayer(i, 8192, 1) for i in range(1024)]
    assert [most_lanes(layers) for layers in (LAYERS, widest, widest[:128])] == [MAX_LANES, 8, MAX_LANES]
    for layers in (LAYERS, widest[:200], widest):
        width = sum(layer.num_experts for layer in layers)
        assert most_lanes(layers) // 8 * width <= MAP_BYTES


def test_a_map_is_made_within_its_bound() -> None:
    layers = [MoeLayer(i, 8192, 1) for i in range(256)]
    lanes = most_lanes(layers)
    experts = [(np.arange(lanes) * 7).astype("<u2").tobytes()] * len(layers)
    tracemalloc.start()
    blob = write_hits(planes_of(experts, [1] * lanes, layers, id_bytes=2))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert lanes_hit(blob, layers, 5, 7)[:2].tolist() == [False, True]
    assert peak < 2 * MAP_BYTES + (1 << 20)  # the map, and room for it compressed


@pytest.mark.parametrize("place", [0, 5, 20, -1])
def test_damage_is_noticed(place: int) -> None:
    blob = bytearray(made()[1])
    blob[place] ^= 0x55
    with pytest.raises(ValueError, match="damaged"):
        lanes_hit(bytes(blob), LAYERS, 1, 0)
