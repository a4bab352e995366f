"""A request's routing put together from what its workers traced."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from moescope.capture.trace_wire import NO_EXPERT
from moescope.capture.wire import Int64Array, MoeLayer
from moescope.service.store.records import WorkerTrace

Int16Array = npt.NDArray[np.int16]


MAX_POSITIONS: Final = 1 << 22
"""Of one answer: four million tokens, more than any model's context."""


class TooManyPositionsError(Exception):
    """A request's routing from ``first`` to ``end`` is more than one answer may hold."""

    def __init__(self, first: int, end: int) -> None:
        super().__init__(
            f"Positions {first} to {end} are {end - first}, of which one answer holds {MAX_POSITIONS} "
            "at most: ask for fewer with first and end."
        )


@dataclass(frozen=True, slots=True)
class Routing:
    """The experts of the positions ``first .. first + T`` of a request.

    Attributes:
        first: position of the first row.
        layers: L layers, rising.
        experts: logical experts, int16 [T, L, K], K the largest top-k; -1 where a position was not computed
            (a prefix cache had it), was masked, or the layer takes fewer experts. Of a position that was
            computed again after a preemption, the last.
        times_computed: int64 [T]; 0: not computed, more than 1: again after preemptions.
    """

    first: int
    layers: tuple[MoeLayer, ...]
    experts: Int16Array
    times_computed: Int64Array


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
    index = {layer.layer: i for i, layer in enumerate(layers)}
    top_k = max((layer.top_k for layer in layers), default=0)
    experts = np.full((end - first, len(layers), top_k), -1, np.int16)
    times = np.zeros((len(layers), end - first), np.int64)
    for worker in workers:
        wanted = (worker.positions >= first) & (worker.positions < end)
        rows = worker.positions[wanted] - first
        for layer, ids in zip(worker.layers, worker.experts, strict=True):
            if layer != known[layer.layer]:
                continue  # workers that contradict each other: the first is believed
            at, mine = index[layer.layer], ids[wanted].astype(np.int32)
            # Where a position is there twice, NumPy assigns the last.
            experts[rows, at, : layer.top_k] = np.where(mine == NO_EXPERT, -1, mine)
            times[at] += np.bincount(rows, minlength=end - first)
    return Routing(first, tuple(layers), experts, times.max(axis=0, initial=0))


def slots_of(workers: Sequence[WorkerTrace]) -> dict[int, Int64Array]:
    """Layer to slots per logical expert, int64 [num_experts], of all rows computed, again or not."""
    counts: dict[int, Int64Array] = {}
    for worker in workers:
        for layer, ids in zip(worker.layers, worker.experts, strict=True):
            flat = ids.reshape(-1).astype(np.int64)
            found = np.bincount(flat[flat < layer.num_experts], minlength=layer.num_experts)
            counts[layer.layer] = counts.get(layer.layer, np.zeros_like(found)) + found
    return counts
