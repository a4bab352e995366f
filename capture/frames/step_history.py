"""The loads of single steps on the host: read from snapshots, kept until a frame with them has arrived."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from typing import Final, NamedTuple

import numpy as np

from moescope.capture.counting.load_ring import Int32Array
from moescope.capture.wire import Int64Array, StepLoads, pack_step_loads
from moescope.capture.wire.checks import MAX_SPAN

MAX_WAITING: Final = 4096
"""Entries of all steps that wait together, at most: a step has one, or one for each of its microbatches."""
MAX_VALUES: Final = 1 << 20
"""Loads of all entries that wait together, at most: 4 MiB. In most frames a load takes a byte: 1 MiB.

One step stays however large it is.
"""


class RingPart(NamedTuple):
    """What a snapshot has of the ring.

    Attributes:
        first: how many steps had a place in the ring before the first one here.
        numbers: int64 [n], the steps' numbers.
        loads: int32 [n, M, L, R], by microbatch.
        end: the number of the next step when the snapshot was taken.
    """

    first: int
    numbers: Int64Array
    loads: Int32Array
    end: int


class _Step(NamedTuple):
    """A step that waits: its number, and the loads [L, R] of its microbatches that a frame has entries of."""

    number: int
    entries: list[tuple[int, Int32Array]]


class StepHistory:
    """Puts together what snapshots have of the ring, and says which steps a frame carries. For one thread.

    A frame has an entry for each step, and one for each further microbatch with any slot: a step that was not
    split has none, nor has a microbatch of nothing but padding. Only entries are kept, and take room. A frame
    accounts for all steps of a range. Where steps are missing, because the ring was overwritten or too many
    steps wait, all steps before them are given up as well.

    Attributes:
        lost: steps whose loads no frame carries or will carry.
    """

    def __init__(self, version: int) -> None:
        self.lost = 0
        self._version = version
        self._waiting: deque[_Step] = deque()
        self._entries = 0  # of the steps that wait
        self._taken = 0  # steps that had a place in the ring, waiting or gone
        self._from = 0
        self._end = 0
        self._sent = 0

    def add(self, part: RingPart) -> None:
        """Take those steps of a later snapshot that are not known yet."""
        skipped = part.first - self._taken
        if skipped > 0:
            self.lost += skipped + len(self._waiting)
            self._waiting.clear()
            self._entries = 0
            self._from = int(part.numbers[0]) if len(part.numbers) else part.end
            self._taken = part.first
        new = slice(self._taken - part.first, None)
        for step in _steps(part.numbers[new], part.loads[new]):
            self._waiting.append(step)
            self._entries += len(step.entries)
        self._taken = max(self._taken, part.first + len(part.numbers))
        self._end = part.end
        self._forget_oldest(max(1, math.prod(part.loads.shape[2:])))

    def pack(self) -> StepLoads:
        """The loads of all steps that wait, for the next frame."""
        self._sent = len(self._waiting)
        parts = [(step.number, *entry) for step in self._waiting for entry in step.entries]
        numbers = np.array([number for number, _, _ in parts], np.int64)
        microbatches = np.array([microbatch for _, microbatch, _ in parts], np.int64)
        loads = np.array([loads for _, _, loads in parts], np.int64)
        return pack_step_loads(self._from, self._end, numbers, loads, self._version, microbatches)

    def delivered(self) -> None:
        """The frame with what `pack` returned last has arrived."""
        for _ in range(self._sent):
            self._pop()
        self._from, self._sent = self._end, 0

    def _forget_oldest(self, entry_size: int) -> None:
        """Give up the oldest steps where too much waits, or where the range would be too long for a frame."""
        most, earliest = min(MAX_WAITING, MAX_VALUES // entry_size), self._end - MAX_SPAN
        while (self._entries > most and len(self._waiting) > 1) or (
            self._waiting and self._waiting[0].number < earliest
        ):
            self._from = self._pop().number + 1
            self.lost += 1
        self._from = max(self._from, earliest)

    def _pop(self) -> _Step:
        oldest = self._waiting.popleft()
        self._entries -= len(oldest.entries)
        return oldest


def _steps(numbers: Int64Array, loads: Int32Array) -> Iterator[_Step]:
    """Steps without the microbatches that they don't have; none of the memory of `loads` [n, M, L, R]."""
    has = np.asarray(loads.any(axis=(2, 3)))
    has[:, :1] = True
    kept = iter(loads[has])  # a copy of these alone
    for number, of_step in zip(numbers.tolist(), has, strict=True):
        yield _Step(number, [(microbatch, next(kept)) for microbatch in np.flatnonzero(of_step).tolist()])
