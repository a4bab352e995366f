"""What one worker traced of a request, among the positions that are wanted."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from moescope.capture.wire import Int64Array, MoeLayer
from moescope.service.store.worker_trace import WorkerTrace, places_within

Int16Array = npt.NDArray[np.int16]
_AT_ONCE: Final = 1 << 16  # positions of runs that are spread out at once


class Share:
    """What one worker traced of the positions wanted.

    Args:
        worker: whose trace it is.
        first, end: the positions wanted.
        layers: the layers of the whole.

    Attributes:
        places: for each of the worker's layers, in order, its place among ``layers``; None: it has none.
    """

    def __init__(self, worker: WorkerTrace, first: int, end: int, layers: Sequence[MoeLayer]) -> None:
        runs = worker.runs
        begins = np.cumsum(runs[:, 1]) - runs[:, 1]
        inside = (runs[:, 0] < end) & (runs.sum(axis=1) > first)
        self._firsts, self._ends, self._begins = runs[inside, 0], runs[inside].sum(axis=1), begins[inside]
        self._worker = worker
        self.places: tuple[int | None, ...] = tuple(range(len(layers)))
        if worker.layers != tuple(layers):
            index = {layer: place for place, layer in enumerate(layers)}
            # Where workers contradict each other about a layer, the first is believed.
            self.places = tuple(index.get(layer) for layer in worker.layers)
        sizes = {layer.top_k for layer in worker.layers}
        self._top_k = sizes.pop() if len(sizes) == 1 else 0  # of each layer, if all have the same

    def times(self, start: int, end: int) -> Int64Array:
        """How often the worker computed each position from ``start`` to before ``end``, int64 [n]."""
        change = np.zeros(end - start + 1, np.int64)
        at = (self._firsts < end) & (self._ends > start)
        np.add.at(change, np.maximum(self._firsts[at], start) - start, 1)
        np.add.at(change, np.minimum(self._ends[at], end) - start, -1)
        counted: Int64Array = np.cumsum(change)[:-1]
        return counted

    def all_at_once(self, start: int, end: int, layers: int, top_k: int) -> Int16Array | None:
        """The experts of these positions, a copy int16 [n, layers, top_k], if it is as simple as it can be.

        That is where the worker computed each of them just once, one after the other, and has just the layers
        of the whole, all of them with this top-k. Else None.
        """
        if len(self._firsts) != 1 or self._top_k != top_k or self.places != tuple(range(layers)):
            return None
        if start == end or not self._firsts[0] <= start < end <= self._ends[0]:
            return None
        begin = int(self._begins[0]) + start - int(self._firsts[0])
        # NO_EXPERT becomes -1, as in `write`.
        return self._worker.side_by_side(begin, begin + end - start).astype(np.int16)

    def write(self, experts: Int16Array, rows: Int64Array, places: Collection[int]) -> None:
        """Write rows of the worker's trace into experts [n, L, K], in the layers at these places.

        ``rows`` has one for each position, -1: none of the worker's.
        """
        computed = np.flatnonzero(rows >= 0)
        wanted = [
            (at, place) for at, place in enumerate(self.places) if place is not None and place in places
        ]
        # In rising order of rows, so that the store is read forward, and never more at once than was asked.
        computed = computed[np.argsort(rows[computed], kind="stable")]
        while len(computed):
            begin = int(rows[computed[0]])
            count = int(np.searchsorted(rows[computed], begin + len(experts)))
            some, computed = computed[:count], computed[count:]
            end = int(rows[some[-1]]) + 1
            into, taken = _slice_of(some), _slice_of(rows[some] - begin)
            # NO_EXPERT becomes -1: no id of an expert has the highest bit.
            if len(wanted) == experts.shape[1] and self._fill(experts):
                experts[into] = self._worker.side_by_side(begin, end)[taken]
                continue
            of_layers = self._worker.read(begin, end)
            for at, place in wanted:
                ids = of_layers[at]
                experts[into, place, : ids.shape[1]] = ids[taken]

    def _fill(self, experts: Int16Array) -> bool:
        """Whether its layers, one beside the other in their order, are just those of the experts."""
        return self.places == tuple(range(experts.shape[1])) and self._top_k == experts.shape[2]

    def steps_of(self, rows: Int64Array) -> Int64Array:
        """The steps that computed some rows of the worker's trace, int64 [n]; -1: not known, or no row."""
        found = np.full(len(rows), -1, np.int64)
        order = np.argsort(rows, kind="stable")
        order = order[rows[order] >= 0]
        while len(order):  # never more at once than was asked, however far apart
            begin = int(rows[order[0]])
            count = int(np.searchsorted(rows[order], begin + len(rows)))
            some, order = order[:count], order[count:]
            steps = self._worker.steps(begin, int(rows[some[-1]]) + 1)
            found[some] = steps[rows[some] - begin]
        return found

    def last_rows(self, start: int, end: int) -> Int64Array:
        """For each position the row of the worker's trace that computed it last, int64 [n]; -1: none."""
        rows = np.full(end - start, -1, np.int64)
        if len(self._firsts) == 1:  # one run, as of a request that nothing interrupted
            first, last = max(int(self._firsts[0]), start), min(int(self._ends[0]), end)
            begin = int(self._begins[0]) + first - int(self._firsts[0])
            rows[first - start : max(first, last) - start] = np.arange(begin, begin + max(0, last - first))
            return rows
        at = np.flatnonzero((self._firsts < end) & (self._ends > start))
        firsts = np.maximum(self._firsts[at], start)
        counts = np.minimum(self._ends[at], end) - firsts
        begins = self._begins[at] + firsts - self._firsts[at]
        # Each run has at most n positions, so each group of runs has at most that many more than _AT_ONCE.
        group = np.cumsum(counts) // _AT_ONCE
        for of_group in np.split(np.arange(len(at)), np.flatnonzero(np.diff(group)) + 1):
            within = places_within(counts[of_group])
            positions = np.repeat(firsts[of_group], counts[of_group]) + within
            # Where a position is there twice, NumPy assigns the last.
            rows[positions - start] = np.repeat(begins[of_group], counts[of_group]) + within
        return rows


def _slice_of(rising: Int64Array) -> Int64Array | slice:
    """The same rows as a slice, which is read and written faster, if they follow each other."""
    first, last = int(rising[0]), int(rising[-1])
    in_a_row = last - first + 1 == len(rising) and bool((np.diff(rising) == 1).all())
    return slice(first, last + 1) if in_a_row else rising


def last_of(shares: Sequence[Share], start: int, end: int) -> list[Int64Array]:
    """For each worker and position the row that is the position's last computation by any of them; -1: none.

    A position that several workers computed was computed again after a preemption. The step tells which was
    the last; where it isn't known, the last of the workers is believed.
    """
    rows = [share.last_rows(start, end) for share in shares]
    contested = np.flatnonzero(np.sum([of_share >= 0 for of_share in rows], axis=0) > 1)
    if len(contested):
        steps = [
            np.where(of_share[contested] >= 0, share.steps_of(of_share[contested]), -2)
            for share, of_share in zip(shares, rows, strict=True)
        ]
        last = len(rows) - 1 - np.argmax(steps[::-1], axis=0)
        for number, of_share in enumerate(rows):
            of_share[contested[last != number]] = -1
    return rows
