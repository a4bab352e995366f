"""Slots per expert of whole requests: what many requests are compared by."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from moescope.capture.wire import Int64Array, MoeLayer
from moescope.capture.wire.traces import ExpertArray
from moescope.service.store.worker_trace import WorkerTrace

SlotArray = npt.NDArray[np.int32]

MAX_EXPERTS: Final = 1 << 18
"""Experts of all layers of a request that is counted, at most: its counts take 4 bytes each, so 1 MiB. It is
several times as many as any model of today has."""
_BYTE: Final = 255
MAX_COMPARED: Final = 50_000
"""Requests that a question is about, at most: the newest that match."""
LONG: Final = 4096
"""Tokens from which on a request is read apart from others, some tokens at a time."""


class ListedRequest(NamedTuple):
    """A request with a complete trace in so many of its workers; the rest is as in ``TracedRequest``."""

    number: int
    server: str
    model: str
    tokens: int
    lora: str
    traces: int


@dataclass(frozen=True, slots=True)
class RequestSlots:
    """The slots that a request's tokens filled.

    Attributes:
        number: the request's.
        layers: whose, rising; of all its workers together.
        counts: slots by logical expert, layer by layer, int32 [C]. Rows that were computed again count again.
    """

    number: int
    layers: tuple[MoeLayer, ...]
    counts: SlotArray


class SlotSum:
    """Adds up the slots of one request over pieces of its workers' traces.

    Args:
        layers: the layers of each worker.

    Attributes:
        tokens: how many were added, over all workers.

    Raises:
        ValueError: the layers have more than :data:`MAX_EXPERTS` experts.
    """

    def __init__(self, layers: Iterable[Sequence[MoeLayer]]) -> None:
        known: dict[int, MoeLayer] = {}
        for of_worker in layers:
            for layer in of_worker:
                known.setdefault(layer.layer, layer)
        self._layers = tuple(known[number] for number in sorted(known))
        experts = [layer.num_experts for layer in self._layers]
        if sum(experts) > MAX_EXPERTS:
            raise ValueError(f"{sum(experts)} experts in all layers, {MAX_EXPERTS} at most are counted")
        self._begins = dict(zip(self._layers, begins_of(self._layers).tolist(), strict=True))
        self._counts: SlotArray = np.zeros(sum(experts), np.int32)
        self.tokens = 0

    def add(self, layers: Sequence[MoeLayer], counts: SlotArray, tokens: int) -> None:
        """Add slots by expert of some tokens of a worker with these layers, int32 [C].

        Where workers contradict each other about a layer, the first is believed.
        """
        self.tokens += tokens
        if tuple(layers) == self._layers:
            self._counts += counts
            return
        for layer, begin in zip(layers, begins_of(layers).tolist(), strict=True):
            if layer in self._begins:
                at = self._begins[layer]
                self._counts[at : at + layer.num_experts] += counts[begin : begin + layer.num_experts]

    def of(self, number: int) -> RequestSlots:
        """What was added up, as that of a request."""
        return RequestSlots(number, self._layers, self._counts)


def begins_of(layers: Sequence[MoeLayer]) -> Int64Array:
    """Where in the counts of these layers each one begins, int64 [L]."""
    experts = np.array([layer.num_experts for layer in layers], np.int64)
    return np.asarray(np.cumsum(experts) - experts)


def count_slots(ids: Sequence[ExpertArray], layers: Sequence[MoeLayer], pieces: Sequence[int]) -> SlotArray:
    """Slots by logical expert of pieces of so many tokens, which follow each other: int32 [pieces, C].

    Args:
        ids: for each layer [n, top_k], n the tokens of all pieces; ids that are no experts are left out.
        layers: whose.
        pieces: tokens of each.
    """
    number = np.repeat(np.arange(len(pieces)), pieces)
    begins: dict[tuple[int, int], Int64Array] = {}
    found = []
    for of_layer, layer in zip(ids, layers, strict=True):
        experts = layer.num_experts
        kind = experts, layer.top_k
        if kind not in begins:
            begins[kind] = np.repeat(number * experts, layer.top_k)
        flat, places = of_layer.reshape(-1), begins[kind]
        if of_layer.dtype.itemsize > 1 or experts <= _BYTE:
            real = flat < experts
            if not real.all():
                flat, places = flat[real], places[real]
        slots = np.bincount(places + flat, minlength=len(pieces) * experts)
        found.append(slots.astype(np.int32).reshape(len(pieces), experts))
    return np.concatenate(found, axis=1)


def slots_of_workers(
    number: int, workers: Sequence[WorkerTrace], between: Callable[[], None]
) -> RequestSlots | None:
    """The slots of one request, read some tokens at a time; None where it has no trace.

    Args:
        number: the request's.
        workers: its traces.
        between: is called before each read, and may end it by an exception.

    Raises:
        StoreError: a trace can't be read.
        ValueError: see :class:`SlotSum`.
    """
    if not workers:
        return None
    found = SlotSum([worker.layers for worker in workers])
    for worker in workers:
        for start in range(0, worker.tokens, LONG):
            between()
            tokens = min(LONG, worker.tokens - start)
            [counts] = count_slots(worker.read(start, start + tokens), worker.layers, [tokens])
            found.add(worker.layers, counts, tokens)
    return found.of(number)
