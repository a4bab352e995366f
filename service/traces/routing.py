"""A request's routing put together from what its workers traced."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from moescope.capture.wire import Int64Array, MoeLayer
from moescope.capture.wire.traces import NO_EXPERT
from moescope.service.store.records import WorkerTrace

Int16Array = npt.NDArray[np.int16]


MAX_POSITIONS: Final = 1 << 22
"""Most positions in one answer: four million, more than any model's context."""


class TooManyPositionsError(Exception):
    """A request's routing from ``first`` to ``end`` is more than one answer may hold."""

    def __init__(self, first: int, end: int) -> None:
        super().__init__(
            f"Positions {first} to {end} are {end - first}, of which one answer holds {MAX_POSITIONS} "
            "at most: ask for fewer with first and end."
        )


@dataclass(frozen=True, slots=True)
class _Share:
    """What one worker traced of the positions wanted, in rising order.

    Attributes:
        positions: int64 [T], rising; a position that was computed again is there again, the last time last.
        rows: where each of them is in the worker's arrays.
        worker: whose arrays these are.
        layers: places in ``worker.experts`` by the layer's place in the whole.
    """

    positions: Int64Array
    rows: npt.NDArray[np.intp]
    worker: WorkerTrace
    layers: dict[int, int]


class Routing:
    """The experts of the positions ``first .. first + T`` of a request, made some positions at a time.

    Attributes:
        first: position of the first row.
        layers: L layers, rising.
        shape: (T, L, K), K the largest top-k.
        times_computed: int64 [T]; 0: not computed, more than 1: again after preemptions.
        weights_versions: int64 [T], the version of the weights that computed each position, the last time if
            it was computed again; -1: not computed.
    """

    def __init__(self, first: int, end: int, layers: Sequence[MoeLayer], shares: Sequence[_Share]) -> None:
        self.first = first
        self.layers = tuple(layers)
        top_k = max((layer.top_k for layer in layers), default=0)
        self.shape = (end - first, len(layers), top_k)
        self._shares = shares
        self.times_computed = self._times()
        self.weights_versions = self._weights()

    def chunks(self, positions: int) -> Iterator[Int16Array]:
        """Logical experts, int16 [n, L, K], in arrays of at most ``positions`` positions; at least one.

        An expert is -1 where a position was not computed (a prefix cache had it) or was masked, and where the
        layer takes fewer experts. A position that was computed again has the experts of the last time.
        """
        for start in range(0, max(1, self.shape[0]), positions):
            yield self._between(start, min(start + positions, self.shape[0]))

    def _between(self, start: int, end: int) -> Int16Array:
        experts = np.full((end - start, *self.shape[1:]), -1, np.int16)
        for share in self._shares:
            a, b = np.searchsorted(share.positions, (self.first + start, self.first + end))
            at, rows = share.positions[a:b] - (self.first + start), share.rows[a:b]
            for place, of_worker in share.layers.items():
                mine = share.worker.experts[of_worker][rows].astype(np.int32)
                # Where a position is there twice, NumPy assigns the last.
                experts[at, place, : mine.shape[1]] = np.where(mine == NO_EXPERT, -1, mine)
        return experts

    def _weights(self) -> Int64Array:
        found = np.full(self.shape[0], -1, np.int64)
        for share in self._shares:
            found[share.positions - self.first] = versions_of(share.worker)[share.rows]
        return found

    def _times(self) -> Int64Array:
        """How often each position was computed: the most of any layer.

        Layers that the same workers traced have the same numbers, so each set of workers is counted once.
        """
        times = np.zeros(self.shape[0], np.int64)
        for of_same in {
            tuple(n for n, share in enumerate(self._shares) if place in share.layers)
            for place in range(self.shape[1])
        }:
            counted = np.zeros_like(times)
            for n in of_same:
                counted += np.bincount(self._shares[n].positions - self.first, minlength=len(times))
            np.maximum(times, counted, out=times)
        return times


def versions_of(worker: WorkerTrace) -> Int64Array:
    """The version of the weights that computed each token of a worker's trace, int64 [T]."""
    if not worker.weights:
        return np.zeros(len(worker.positions), np.int64)
    tokens, versions = zip(*worker.weights, strict=True)
    return np.repeat(np.array(versions, np.int64), tokens)


def put_together(workers: Sequence[WorkerTrace], first: int = 0, end: int | None = None) -> Routing:
    """Join the workers' traces: shards of tokens under tensor, of layers under pipeline parallelism.

    Args:
        workers: the traces of one request, at least one.
        first, end: positions wanted, ``end`` not included; None: to the last that was computed.

    Raises:
        TooManyPositionsError: more than :data:`MAX_POSITIONS`.
    """
    last = max(int(worker.positions.max(initial=-1)) for worker in workers) + 1
    end = last if end is None else min(end, last)
    first = min(first, end)
    if end - first > MAX_POSITIONS:
        raise TooManyPositionsError(first, end)
    known: dict[int, MoeLayer] = {}
    for worker in workers:
        for layer in worker.layers:
            known.setdefault(layer.layer, layer)
    layers = [known[number] for number in sorted(known)]
    return Routing(first, end, layers, [_share(worker, first, end, layers) for worker in workers])


def _share(worker: WorkerTrace, first: int, end: int, layers: Sequence[MoeLayer]) -> _Share:
    rows = np.flatnonzero((worker.positions >= first) & (worker.positions < end))
    rows = rows[np.argsort(worker.positions[rows], kind="stable")]
    index = {layer: place for place, layer in enumerate(layers)}
    # Where workers contradict each other about a layer, the first is believed.
    mine = {index[layer]: n for n, layer in enumerate(worker.layers) if layer in index}
    return _Share(worker.positions[rows], rows, worker, mine)


def slots_of(workers: Sequence[WorkerTrace]) -> dict[int, Int64Array]:
    """Layer to slots per logical expert, int64 [num_experts]; rows that were computed again count again."""
    counts: dict[int, Int64Array] = {}
    for worker in workers:
        for layer, ids in zip(worker.layers, worker.experts, strict=True):
            flat = ids.reshape(-1).astype(np.int64)
            found = np.bincount(flat[flat < layer.num_experts], minlength=layer.num_experts)
            counts[layer.layer] = counts.get(layer.layer, np.zeros_like(found)) + found
    return counts
