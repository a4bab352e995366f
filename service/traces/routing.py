"""A request's routing put together from what its workers traced."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import numpy.typing as npt

from moescope.capture.wire import Int64Array, MoeLayer
from moescope.service.store.limits import SEGMENT_BYTES, SEGMENT_TOKENS
from moescope.service.store.worker_trace import WorkerTrace, places_within
from moescope.service.traces.weights import Computed, computed_by

Int16Array = npt.NDArray[np.int16]
BoolArray = npt.NDArray[np.bool_]
ExpertRows = Int16Array | npt.NDArray[np.uint8] | npt.NDArray[np.uint16]


MAX_POSITIONS: Final = 1 << 22
"""Most positions in one answer: four million, more than any model's context."""
_AT_ONCE: Final = 1 << 16  # positions of runs that are spread out at once


class TooManyPositionsError(Exception):
    """A request's routing from ``first`` to ``end`` is more than one answer may hold."""

    def __init__(self, first: int, end: int, most: int) -> None:
        super().__init__(
            f"Positions {first} to {end} are {end - first}, of which this answer holds {most} at most: ask "
            "for fewer with first and end."
        )


@dataclass(frozen=True, slots=True)
class Rows:
    """The positions from one to another of a request.

    Attributes:
        experts: logical experts [n, L, K], int16 unless a form says otherwise. -1 where a position was not
            computed (a prefix cache had it) or was masked, and where the layer takes fewer experts. A
            position that was computed again has the experts of the last time.
        times: int64 [n], how often each was computed; 0: not at all, more than 1: again after preemptions.
    """

    experts: ExpertRows
    times: Int64Array


class _Share:
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
            of_layers = self._worker.read(begin, int(rows[some[-1]]) + 1)
            into, taken = _slice_of(some), _slice_of(rows[some] - begin)
            # NO_EXPERT becomes -1: no id of an expert has the highest bit.
            if len(wanted) == experts.shape[1] and self._fill(experts):
                side_by_side = np.concatenate([ids[taken] for ids in of_layers], axis=1)
                experts[into] = side_by_side.reshape(-1, *experts.shape[1:])
                continue
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


class Routing:
    """The experts of the positions ``first .. first + T`` of a request, made some positions at a time.

    It holds the runs of the workers (24 bytes a run); the experts are read from the store when they are
    asked for.

    Attributes:
        first: position of the first row.
        layers: L layers, rising.
        shape: (T, L, K), K the largest top-k.
        weights: see :func:`computed_by`; of all positions, also of those that are not wanted.
        dtype: of the experts.
        has_gaps: what was not computed is -1.
    """

    dtype: Final[np.dtype[np.generic]] = np.dtype("<i2")
    has_gaps: Final = True

    def __init__(
        self,
        first: int,
        end: int,
        layers: Sequence[MoeLayer],
        shares: Sequence[_Share],
        weights: Sequence[Computed],
    ) -> None:
        self.first = first
        self.layers, self.weights = tuple(layers), tuple(weights)
        top_k = max((layer.top_k for layer in layers), default=0)
        self.shape = (end - first, len(layers), top_k)
        self._shares = shares
        # Layers that the same workers traced were computed equally often: each set of workers counts once.
        self._sets: dict[tuple[int, ...], list[int]] = {}
        if len(shares) == 1 and set(shares[0].places) == {*range(len(layers))}:
            self._sets[0,] = [*range(len(layers))]
            return
        for place in range(len(layers)):
            of_place = tuple(n for n, share in enumerate(shares) if place in share.places)
            self._sets.setdefault(of_place, []).append(place)

    def chunks(self, positions: int) -> Iterator[Rows]:
        """All positions, in chunks of at most ``positions``; at least one chunk."""
        for start, end in self._spans(positions):
            yield self.rows(start, end)

    def rows(self, start: int, end: int) -> Rows:
        """Positions ``start`` to before ``end``, which are among its own."""
        experts = np.full((end - start, *self.shape[1:]), -1, np.int16)
        for numbers, places in self._sets.items():
            shares = [self._shares[number] for number in numbers]
            for share, rows in zip(shares, _last_of(shares, start, end), strict=True):
                share.write(experts, rows, places)
        return Rows(experts, self.times_of(start, end))

    def times(self, positions: int) -> Iterator[Int64Array]:
        """Only how often each position was computed, in chunks of the same kind; nothing is read for it."""
        for start, end in self._spans(positions):
            yield self.times_of(start, end)

    def computed(self, positions: int) -> Iterator[BoolArray]:
        """Only whether each position was computed in every layer, in chunks of the same kind."""
        for start, end in self._spans(positions):
            yield self.computed_of(start, end)

    def _spans(self, positions: int) -> Iterator[tuple[int, int]]:
        last = self.first + self.shape[0]
        for start in range(self.first, max(last, self.first + 1), positions):
            yield start, min(start + positions, last)

    def computed_of(self, start: int, end: int) -> BoolArray:
        """Whether each position from ``start`` to before ``end`` was computed in every layer."""
        of_each = [share.times(start, end) > 0 for share in self._shares]
        whole = np.ones(end - start, np.bool_)
        for of_same in self._sets:
            whole &= np.any([of_each[n] for n in of_same], axis=0)
        return whole

    def times_of(self, start: int, end: int) -> Int64Array:
        """How often each position from ``start`` to before ``end`` was computed: the most of any layer."""
        times = np.zeros(end - start, np.int64)
        of_each = [share.times(start, end) for share in self._shares]
        for of_same in self._sets:
            np.maximum(times, np.sum([of_each[n] for n in of_same], axis=0), out=times)
        return times


def _last_of(shares: Sequence[_Share], start: int, end: int) -> list[Int64Array]:
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


def put_together(
    workers: Sequence[WorkerTrace], first: int = 0, end: int | None = None, most: int = MAX_POSITIONS
) -> Routing:
    """Join the workers' traces: shards of tokens under tensor, of layers under pipeline parallelism.

    Args:
        workers: the traces of one request, at least one.
        first, end: positions wanted, ``end`` not included; None: to the last that was computed.
        most: how many there may be, :data:`MAX_POSITIONS` at most.

    Raises:
        TooManyPositionsError: there are more.
    """
    last = max(int(worker.runs.sum(axis=1).max(initial=0)) for worker in workers)
    end = last if end is None else min(end, last)
    first = min(first, end)
    if end - first > most:
        raise TooManyPositionsError(first, end, most)
    known: dict[int, MoeLayer] = {}
    for worker in workers:
        for layer in worker.layers:
            known.setdefault(layer.layer, layer)
    layers = [known[number] for number in sorted(known)]
    shares = [_Share(worker, first, end, layers) for worker in workers]
    return Routing(first, end, layers, shares, computed_by(workers))


@dataclass(frozen=True, slots=True)
class Extent:
    """How large the routing of some workers' traces is, before anything of it is read.

    Attributes:
        layers: how many layers.
        top_k: the largest top-k.
        token_bytes: the most bytes that a token's ids have in the store.
        reading: the most bytes that reading takes at any time, besides the tokens themselves: the runs, and
            one segment of the store, packed, unpacked, and once more as arrays.
    """

    layers: int
    top_k: int
    token_bytes: int
    reading: int

    def grown_to(self, layers: int) -> Extent:
        """That of the same routing once more, with so many layers, made from the routing itself."""
        return replace(
            self,
            layers=max(layers, self.layers),
            token_bytes=self.token_bytes + 2 * self.layers * self.top_k,
        )

    @classmethod
    def of(cls, workers: Sequence[WorkerTrace]) -> Extent:
        """That of these traces of one request, at least one."""
        layers = [layer for worker in workers for layer in worker.layers]
        stored = max(worker.token_bytes for worker in workers)
        segment = max(stored, 2 * min(stored * SEGMENT_TOKENS, SEGMENT_BYTES))
        return cls(
            len({layer.layer for layer in layers}),
            max((layer.top_k for layer in layers), default=0),
            stored,
            sum(worker.runs_bytes for worker in workers) + 3 * segment,
        )


def slots_of(workers: Sequence[WorkerTrace]) -> dict[int, Int64Array]:
    """Layer to slots per logical expert, int64 [num_experts]; rows that were computed again count again."""
    counts: dict[int, Int64Array] = {}
    for worker in workers:
        for layer, ids in zip(worker.layers, worker.experts, strict=True):
            flat = ids.reshape(-1).astype(np.int64)
            found = np.bincount(flat[flat < layer.num_experts], minlength=layer.num_experts)
            counts[layer.layer] = counts.get(layer.layer, np.zeros_like(found)) + found
    return counts
