"""The loads of single steps on the host: read from snapshots, kept until a frame with them has arrived."""

from __future__ import annotations

from collections import deque
from typing import Final, NamedTuple

import numpy as np

from moescope.capture.counting.load_ring import Int32Array
from moescope.capture.wire import Int64Array, StepLoads, pack_step_loads
from moescope.capture.wire.checks import MAX_SPAN

MAX_WAITING: Final = 4096
"""Steps that wait together, at most; or microbatches, where steps may have several."""
MAX_VALUES: Final = 1 << 20
"""Loads of all steps that wait together, at most. In most frames a load takes a byte: 1 MiB."""


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


class StepHistory:
    """Puts together what snapshots have of the ring, and says which steps a frame carries. For one thread.

    A frame has an entry for each step, and one for each further microbatch with any slot: a step that was not
    split has none, nor has a microbatch of nothing but padding. A frame accounts for all steps of a range.
    Where steps are missing, because the ring was overwritten or too many steps wait, all steps before them
    are given up as well.

    Attributes:
        lost: steps whose loads no frame carries or will carry.
    """

    def __init__(self, version: int) -> None:
        self.lost = 0
        self._version = version
        self._waiting: deque[tuple[int, Int32Array]] = deque()
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
            self._from = int(part.numbers[0]) if len(part.numbers) else part.end
            self._taken = part.first
        new = slice(self._taken - part.first, None)
        self._waiting.extend(zip(part.numbers[new].tolist(), part.loads[new], strict=True))
        self._taken = max(self._taken, part.first + len(part.numbers))
        self._end = part.end
        of_step = part.loads[:1]
        most = max(1, min(MAX_WAITING // part.loads.shape[1], MAX_VALUES // max(1, of_step.size)))
        earliest = self._end - MAX_SPAN
        while len(self._waiting) > most or (self._waiting and self._waiting[0][0] < earliest):
            self._from = self._waiting.popleft()[0] + 1
            self.lost += 1
        self._from = max(self._from, earliest)

    def pack(self) -> StepLoads:
        """The loads of all steps that wait, for the next frame."""
        self._sent = len(self._waiting)
        parts = [
            (number, microbatch, loads)
            for number, of_step in self._waiting
            for microbatch, loads in enumerate(of_step)
            if microbatch == 0 or loads.any()
        ]
        numbers = np.array([number for number, _, _ in parts], np.int64)
        microbatches = np.array([microbatch for _, microbatch, _ in parts], np.int64)
        loads = np.array([loads for _, _, loads in parts], np.int64)
        return pack_step_loads(self._from, self._end, numbers, loads, self._version, microbatches)

    def delivered(self) -> None:
        """The frame with what `pack` returned last has arrived."""
        for _ in range(self._sent):
            self._waiting.popleft()
        self._from, self._sent = self._end, 0
