"""When the places for the ids of a captured pass are held, and when the allocator gets them."""

from __future__ import annotations

import weakref

import torch

from moescope.capture.spare_places import SMALL, SparePlaces


def ids() -> torch.Tensor:
    return torch.zeros(8, 4, dtype=torch.int32)


def test_each_layer_frees_one_place_when_its_ids_are_dropped_though_an_alias_is_kept() -> None:
    places = SparePlaces()
    kept = []
    layer = ids()
    places.set_aside(layer, 3)
    blocks = [weakref.ref(block) for block in places._held]
    assert len(blocks) == 3
    for number in range(3):
        places.hand_over(layer)
        kept.append(layer.detach())
        assert [block() is None for block in blocks] == [index < number for index in range(3)]
        layer = ids()
        assert [block() is None for block in blocks] == [index <= number for index in range(3)]
    places.hand_over(layer)  # the last layer has none to hand over
    assert len(places) == 0


def test_places_have_the_size_of_the_ids_memory_and_rise() -> None:
    places = SparePlaces()
    places.set_aside(ids()[:3, 1:], 5)
    assert {block.numel() for block in places._held} == {8 * 4 * 4}
    addresses = [block.data_ptr() for block in places._held]
    assert addresses == sorted(addresses)


def test_the_end_of_a_pass_frees_all() -> None:
    places = SparePlaces()
    places.set_aside(ids(), 4)
    blocks = [weakref.ref(block) for block in places._held]
    places.clear()
    assert [block() for block in blocks] == [None] * 4


def test_large_ids_and_none_at_all_set_nothing_aside() -> None:
    places = SparePlaces()
    for rows in (0, SMALL // 16 + 1):
        large = torch.zeros(rows, 4, dtype=torch.int32)
        places.set_aside(large, 4)
        places.hand_over(large)
        assert len(places) == 0
