"""Uploads through the ring: what is copied, and that no buffer is filled again which the device still reads.

Real events and pinned memory are tested in `tests/gpu/test_pinned_ring.py`.
"""

from __future__ import annotations

import pytest
import torch

from moescope.capture.counting import pinned_ring
from moescope.capture.counting.pinned_ring import BUFFERS, PinnedRing

CPU = torch.device("cpu")


class Reading:
    """In place of a host buffer of a device: the test says when the device has read it."""

    made: list[Reading]

    def __init__(self, target: torch.Tensor) -> None:
        self.host = torch.zeros(target.shape, dtype=target.dtype)
        self.values = self.host.numpy()
        self.is_read = True
        self.made.append(self)

    def enqueued(self) -> None:
        self.is_read = False


@pytest.fixture
def buffers(monkeypatch: pytest.MonkeyPatch) -> list[Reading]:
    Reading.made = []
    monkeypatch.setattr(pinned_ring, "_HostBuffer", Reading)
    return Reading.made


def upload(ring: PinnedRing, values: list[int]) -> None:
    ring.buffer()[: len(values)] = values
    ring.upload(len(values))


def test_only_the_first_entries_are_copied() -> None:
    target = torch.full((4,), 9, dtype=torch.uint8)
    ring = PinnedRing(target)
    upload(ring, [1, 2, 3])
    assert target.tolist() == [1, 2, 3, 9]
    upload(ring, [5])
    assert target.tolist() == [5, 2, 3, 9]


def test_rows_of_a_table() -> None:
    target = torch.zeros(3, 2, dtype=torch.int64)
    ring = PinnedRing(target)
    ring.buffer()[:] = [[1, 2], [3, 4], [5, 6]]
    ring.upload(2)
    assert target.tolist() == [[1, 2], [3, 4], [0, 0]]


def test_nothing_reaches_the_target_before_the_upload() -> None:
    target = torch.zeros(2, dtype=torch.int32)
    PinnedRing(target).buffer()[:] = 7
    assert target.tolist() == [0, 0]


def test_buffers_that_were_read_are_used_in_turn(buffers: list[Reading]) -> None:
    ring = PinnedRing(torch.zeros(1, dtype=torch.int64))
    for step in range(3 * BUFFERS):
        upload(ring, [step])
        buffers[step % BUFFERS].is_read = True
    assert [buffer.values.tolist() for buffer in buffers] == [[2 * BUFFERS + i] for i in range(BUFFERS)]


def test_a_buffer_that_the_device_still_reads_is_left_alone(buffers: list[Reading]) -> None:
    ring = PinnedRing(torch.zeros(1, dtype=torch.int64))
    for step in range(BUFFERS + 3):
        upload(ring, [step])
    assert [buffer.values.tolist() for buffer in buffers] == [[step] for step in range(BUFFERS + 3)]
    for buffer in buffers:
        buffer.is_read = True
    for step in range(100, 100 + len(buffers)):
        upload(ring, [step])
    assert len(buffers) == BUFFERS + 3  # the new ones have joined the ring
    assert sorted(buffer.values.tolist() for buffer in buffers) == [[step] for step in range(100, 107)]
