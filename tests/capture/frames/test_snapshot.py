"""A snapshot's way to the host: what is copied, and what the reader gets of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from moescope.capture.counting.load_ring import LoadRing
from moescope.capture.frames.snapshot import Transfer
from moescope.capture.step.totals import Totals

CPU = torch.device("cpu")


class Eplb:
    """A placement, and the versions that it says to have, one after the other."""

    def __init__(self, *versions: int | None) -> None:
        self.map = torch.tensor([[0, 1], [1, 0]])
        self._versions = list(versions)

    @property
    def version(self) -> int | None:
        return self._versions.pop(0)


def copied(eplb: Any) -> Transfer:
    transfer = Transfer(torch.zeros(2, dtype=torch.int64), None, eplb)
    transfer.copy(0)
    return transfer


def test_a_snapshot_is_the_readers_own_copy() -> None:
    flat = torch.tensor([1, 2])
    transfer = Transfer(flat, None, None)
    transfer.copy(0)
    transfer.totals, transfer.captured_at_ns = Totals(tokens=3), 17
    first = transfer.snapshot()
    flat += 5
    transfer.copy(0)
    assert (first.flat.tolist(), first.totals.tokens, first.captured_at_ns) == ([1, 2], 3, 17)
    assert transfer.snapshot().flat.tolist() == [6, 7]
    assert first.placement is None
    assert transfer.ring_part() is None
    assert transfer.arrived  # without a device at once


def test_the_steps_of_the_ring_that_nobody_has_read_are_copied() -> None:
    ring = LoadRing(np.zeros((1, 2), np.int32), 2, 0, CPU)
    for number in (0, 2, 3):
        ring.loads[ring.begin_step(number)] = number
    transfer = Transfer(torch.zeros(2, dtype=torch.int64), ring, None)
    transfer.copy(ring_read=1)
    transfer.totals = Totals(steps=3, idle_steps=1)
    part = transfer.ring_part()
    assert part is not None
    ring.loads.zero_()
    assert (part.first, part.numbers.tolist(), part.end) == (1, [2, 3], 4)
    assert part.loads.tolist() == [[[[2, 2]]], [[[3, 3]]]]


def test_a_settled_placement_comes_with_its_version() -> None:
    found = copied(Eplb(3, 3)).snapshot().placement
    assert found is not None
    assert (found.version, found.map.tolist()) == (3, [[0, 1], [1, 0]])


def test_a_placement_that_moves_while_it_is_copied_is_left_out() -> None:
    assert copied(Eplb(3, 4)).snapshot().placement is None
    assert copied(Eplb(3, None)).snapshot().placement is None
    assert copied(Eplb(None, None)).snapshot().placement is None
