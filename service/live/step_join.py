"""Joins the steps of M members by number: a step's loads are known when all members have accounted for it.

Invariants:
- A step is joined at most once, with what each member said of it first; what comes again changes nothing.
- A step is not joined if its members mapped the experts to EP ranks by different placements.
- Whatever the order in which ranges come, the same steps are joined with the same loads, as long as no member
  is further behind another one than the window is long.
- Memory is bounded: the window is the most steps that wait. What falls out of it is given up, and counted.
- A step that vLLM splits has loads for each of its microbatches, which count towards the window. A microbatch
  that a member doesn't name had no slots there: all members split a step, or none does.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from moescope.capture.wire import Int64Array
from moescope.service.counts.step_costs import Stragglers, stragglers_of

Loads = npt.NDArray[Any]

MAX_WINDOW: Final = 4096
MAX_MEMBERS: Final = 4096  # x uint16 loads is below 2**31
MAX_CELLS: Final = 1 << 20
_PENDING_BYTES: Final = 64 << 20
_SEEN_BYTES: Final = 16 << 20
_ENTRY_BYTES: Final = 256
"""Where the loads of a microbatch are that is not the first: an entry of a dictionary, or a dictionary."""


def window_of(members: int, layers: int, ranks: int) -> int:
    """How many steps may wait, so that their loads take 64 MiB at most, and their marks 16 MiB."""
    by_loads = _PENDING_BYTES // (4 * max(1, layers * ranks))
    return int(max(16, min(MAX_WINDOW, by_loads, _SEEN_BYTES // members)))


class StepJoin:
    """The steps of M members, over L layers and R EP ranks; for one thread at a time.

    Args:
        members, layers, ranks: M, L, R.
        window: most steps that wait, or microbatches of steps; :func:`window_of` by default.
    """

    def __init__(self, members: int, layers: int, ranks: int, window: int | None = None) -> None:
        self._members, self._shape = members, (layers, ranks)
        self._window = window_of(members, layers, ranks) if window is None else window
        self._base = 0  # nothing before it can be joined any more
        self._floor: int | None = None  # the first step that anybody accounted for
        self._top = 0
        # A row for each member that was heard: claiming many costs nothing.
        self._seen = np.zeros((0, self._window), dtype=bool)
        self._row_of: dict[int, int] = {}
        self._count = np.zeros(self._window, dtype=np.int32)
        self._done = np.zeros(self._window, dtype=bool)
        self._version = np.zeros(self._window, dtype=np.int64)
        self._spoiled = np.zeros(self._window, dtype=bool)
        self._parts = 1  # the most microbatches of a step so far
        # Where the loads of each step's first microbatch are, and those of others: {step: {microbatch: row}}.
        # No table of both: a frame that names one microbatch 255 would have it made, of 4 MiB.
        self._row = np.full(self._window, -1, dtype=np.int32)
        self._others: dict[int, dict[int, int]] = {}
        # Loads of the steps that wait, or of their microbatches, in whichever row is free.
        self._loads: Loads = np.zeros((0, layers, ranks), dtype=np.int32)
        self._free: list[int] = []

    @property
    def pending(self) -> int:
        """Steps that wait for a member."""
        return self._top - self._first_counted() - int(self._done.sum())

    def add(
        self,
        member: int,
        first: int,
        end: int,
        steps: Int64Array,
        loads: Loads,
        version: int = 0,
        microbatches: Int64Array | None = None,
    ) -> Stragglers | None:
        """What is joined or given up once a member accounts for the steps ``[first, end)``; None: nothing.

        Args:
            member: from 0 to M - 1.
            first, end: the range of steps' numbers.
            steps: [n], rising: numbers in the range of the steps with tokens.
            loads: unsigned integers [n, L, R], at most 4 bytes wide.
            version: of the placement that the loads are by.
            microbatches: [n], which microbatch of its step each entry is; None: no step is split.
        """
        if end <= first:
            return None
        if microbatches is None:
            microbatches = np.zeros(len(steps), np.int64)
        self._parts = max(self._parts, 1 + int(microbatches.max(initial=0)))
        if self._floor is None:
            self._floor, self._base = first, max(0, end - self._most_steps)
        given_up = self._give_up(max(end, self._top) - self._most_steps)
        first = max(first, self._base)
        if first >= end:
            return self._result(np.zeros(0, dtype=np.int64), given_up)
        self._floor, self._top = min(self._floor, first), max(self._top, end)
        at = np.arange(first, end) % self._window
        row = self._row_of_member(member)
        seen = self._seen[row]
        new = ~seen[at]
        seen[at[new]] = True
        begun = self._count[at] > 0
        self._spoiled[at] |= new & begun & (self._version[at] != version)
        self._version[at[~begun]] = version
        self._count[at[new]] += 1
        for i in np.flatnonzero(steps >= first):
            if new[steps[i] - first]:
                self._add_loads((int(steps[i]) % self._window, int(microbatches[i])), loads[i])
        complete = new & (self._count[at] == self._members) & ~self._spoiled[at]
        return self._result(at[complete], given_up)

    @property
    def nbytes(self) -> int:
        """Bytes of the loads that wait and of the marks."""
        marks = (self._seen, self._count, self._done, self._version, self._spoiled, self._row)
        others = sum(map(len, self._others.values()))
        return self._loads.nbytes + sum(array.nbytes for array in marks) + _ENTRY_BYTES * others

    def close(self) -> int:
        """Give up all steps that wait and free their memory; how many there were."""
        given_up = self._give_up(self._top)
        self._loads, self._free = self._loads[:0].copy(), []
        return given_up

    @property
    def _most_steps(self) -> int:
        """Steps that may wait, each of them with all its microbatches."""
        return max(1, self._window // self._parts)

    def _row_of_member(self, member: int) -> int:
        """The member's row of marks; there is one from now on."""
        row = self._row_of.setdefault(member, len(self._row_of))
        if row >= len(self._seen):
            size = min(self._members, max(4, 2 * len(self._seen)))
            wider = np.zeros((size, self._window), dtype=bool)
            wider[: len(self._seen)] = self._seen
            self._seen = wider
        return row

    def _add_loads(self, at: tuple[int, int], loads: Loads) -> None:
        if loads.dtype.itemsize == 4 and self._loads.dtype == np.int32:
            self._loads = self._loads.astype(np.int64)
        step, part = at
        row = int(self._row[step]) if part == 0 else self._others.get(step, {}).get(part, -1)
        if row >= 0:
            self._loads[row] += loads
            return
        if not self._free:
            self._grow()
        row = self._free.pop()
        if part == 0:
            self._row[step] = row
        else:
            self._others.setdefault(step, {})[part] = row
        self._loads[row] = loads

    def _grow(self) -> None:
        size = len(self._loads)
        more = min(max(16, size), max(self._window, self._parts) - size)
        wider: Loads = np.zeros((size + more, *self._shape), dtype=self._loads.dtype)
        wider[:size] = self._loads
        self._loads = wider
        self._free.extend(range(size, size + more))

    def _result(self, complete: Int64Array, given_up: int) -> Stragglers | None:
        if not complete.size and not given_up:
            return None
        rows, step_of = self._rows_of(complete)
        split = step_of if self._parts > 1 else None
        result = stragglers_of(self._loads[rows], int(complete.size), given_up, split)
        self._done[complete] = True
        self._release(complete)
        self._advance()
        return result

    def _advance(self) -> None:
        """Let the window begin after the steps that are joined and have none before them that waits."""
        at = np.arange(self._base, self._top) % self._window
        open_ = np.flatnonzero(~self._done[at])
        self._move(self._base + (int(open_[0]) if open_.size else len(at)))

    def _give_up(self, base: int) -> int:
        """Let the window begin at a later step; how many steps before it were not joined."""
        if base <= self._base:
            return 0
        before = self._first_counted()
        joined = int(
            self._done[np.arange(self._base, min(base, self._base + self._window)) % self._window].sum()
        )
        self._move(base)
        self._top = max(self._top, base)
        return max(0, base - before) - joined

    def _move(self, base: int) -> None:
        at = np.arange(self._base, min(base, self._base + self._window)) % self._window
        self._release(at)
        self._seen[:, at] = False
        self._count[at] = 0
        self._done[at] = False
        self._spoiled[at] = False
        self._base = base

    def _rows_of(self, at: Int64Array) -> tuple[Int64Array, Int64Array]:
        """The rows of loads of some steps, and for each row which of the steps it is of, rising."""
        first = self._row[at]
        if not self._others:
            step_of = np.flatnonzero(first >= 0)
            return first[step_of].astype(np.int64), step_of
        found = [
            (row, i)
            for i, (step, row_of_first) in enumerate(zip(at.tolist(), first.tolist(), strict=True))
            for row in (row_of_first, *self._others.get(step, {}).values())
            if row >= 0
        ]
        rows, steps = np.array(found, np.int64).reshape(-1, 2).T
        return rows, steps

    def _release(self, at: Int64Array) -> None:
        rows, _ = self._rows_of(at)
        self._free.extend(rows.tolist())
        self._row[at] = -1
        if self._others:
            for step in at.tolist():
                self._others.pop(step, None)

    def _first_counted(self) -> int:
        """The first step that is either joined, waits, or is given up when the window moves on."""
        return self._base if self._floor is None else max(self._base, self._floor)
