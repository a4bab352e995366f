"""A request's routing put together from what its workers traced."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from moescope.capture.wire import Int64Array, MoeLayer
from moescope.service.store.worker_trace import WorkerTrace
from moescope.service.traces.shares import Int16Array, Share, last_of
from moescope.service.traces.weights import Computed, computed_by

BoolArray = npt.NDArray[np.bool_]
ExpertRows = Int16Array | npt.NDArray[np.uint8] | npt.NDArray[np.uint16]


MAX_POSITIONS: Final = 1 << 22
"""Most positions in one answer: four million, more than any model's context."""


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
        shares: Sequence[Share],
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
        if len(self._shares) == 1:
            simple = self._shares[0].all_at_once(start, end, *self.shape[1:])
            if simple is not None:
                return Rows(simple, np.ones(end - start, np.int64))
        experts = np.full((end - start, *self.shape[1:]), -1, np.int16)
        for numbers, places in self._sets.items():
            shares = [self._shares[number] for number in numbers]
            for share, rows in zip(shares, last_of(shares, start, end), strict=True):
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
    shares = [Share(worker, first, end, layers) for worker in workers]
    return Routing(first, end, layers, shares, computed_by(workers))


def slots_of(workers: Sequence[WorkerTrace]) -> dict[int, Int64Array]:
    """Layer to slots per logical expert, int64 [num_experts]; rows that were computed again count again."""
    counts: dict[int, Int64Array] = {}
    for worker in workers:
        for layer, ids in zip(worker.layers, worker.experts, strict=True):
            flat = ids.reshape(-1).astype(np.int64)
            found = np.bincount(flat[flat < layer.num_experts], minlength=layer.num_experts)
            counts[layer.layer] = counts.get(layer.layer, np.zeros_like(found)) + found
    return counts
