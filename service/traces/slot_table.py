"""Slots per expert of many requests in memory, so that questions about all need not read their tokens.

A request's slots are read from the store when a question first asks about it, and kept for the next one.
Nothing of this is written anywhere, and workers and ingest do nothing for it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from moescope.capture.wire import Int64Array, MoeLayer
from moescope.service.measures.arrays import FloatArray
from moescope.service.measures.requests import own_bits
from moescope.service.store.interface import Store
from moescope.service.store.records import StoreError, TraceQuery
from moescope.service.store.slots import LONG, ListedRequest, RequestSlots, begins_of, slots_of_workers
from moescope.service.wanted import check_wanted

BATCH: Final = 64
"""Requests that are read at once."""
_ROWS: Final = 256
"""Requests of a group, at most; a smaller last one is made anew with what comes."""
_LOOK_S: Final = 60.0
"""How often it is looked, by questions, which requests are gone from the store."""
_LOOKED_UP: Final = 1000
"""Requests that the store is asked about at once: their numbers are part of the question."""
_ROW_BYTES: Final = 256
"""What a request takes besides its counts."""
_POLL_S: Final = 0.1


@dataclass(frozen=True, slots=True)
class Group:
    """Requests with the same layers; nothing of it changes.

    Attributes:
        layers: L layers, rising.
        numbers: of the requests, int64 [n].
        counts: slots by logical expert, layer by layer, [n, C], in as few bytes as they take.
        of_layer: slots of each layer, int64 [n, L].
        own: see :func:`moescope.service.measures.requests.own_bits`, float64 [n, L].
    """

    layers: tuple[MoeLayer, ...]
    numbers: Int64Array
    counts: npt.NDArray[np.unsignedinteger[Any]]
    of_layer: Int64Array
    own: FloatArray

    @classmethod
    def of(cls, layers: tuple[MoeLayer, ...], requests: Sequence[RequestSlots]) -> Group:
        """The group of some requests that have these layers."""
        counts = np.stack([request.counts for request in requests])
        fitting = counts.astype(np.min_scalar_type(int(counts.max(initial=0))))
        return cls(
            layers,
            np.array([request.number for request in requests], np.int64),
            fitting,
            np.add.reduceat(counts, begins_of(layers), axis=1, dtype=np.int64),
            own_bits(counts, begins_of(layers)),
        )

    @property
    def begins(self) -> Int64Array:
        """Where in the counts each layer begins, int64 [L]."""
        return begins_of(self.layers)

    @property
    def nbytes(self) -> int:
        """Its memory."""
        return self.counts.nbytes + self.of_layer.nbytes + self.own.nbytes + _ROW_BYTES * len(self.numbers)

    def only(self, rows: npt.NDArray[np.bool_]) -> Group:
        """Some of its rows, a copy unless they are all."""
        if rows.all():
            return self
        return Group(self.layers, self.numbers[rows], self.counts[rows], self.of_layer[rows], self.own[rows])

    def joined(self, other: Group) -> Group:
        """Both together; they have the same layers and as large counts."""
        return Group(
            self.layers,
            np.concatenate([self.numbers, other.numbers]),
            np.concatenate([self.counts, other.counts]),
            np.concatenate([self.of_layer, other.of_layer]),
            np.concatenate([self.own, other.own]),
        )


@dataclass(frozen=True, slots=True)
class Compared:
    """The requests that a question is about.

    Attributes:
        groups: their slots.
        requests: how many they are.
        tokens: theirs together.
        left_out: older ones that match too, and whose slots don't fit into the memory for them.
        unreadable: those whose traces can't be read.
    """

    groups: tuple[Group, ...]
    requests: int
    tokens: int
    left_out: int
    unreadable: int


@dataclass(frozen=True, slots=True)
class Reading:
    """How far the reading is for a question: ``read`` of ``total`` requests that were not in memory."""

    read: int
    total: int


class SlotTable:
    """The slots of requests, as many as fit; for all threads.

    Memory is bounded: the rows that are kept take ``max_bytes``, a batch that is being read 64 MiB at most.
    What is kept of a request goes at the first question after it left the store, or a minute later.

    Args:
        store: where they are read.
        max_bytes: see above.
        clock: seconds that pass evenly.
    """

    def __init__(self, store: Store, max_bytes: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._max_bytes = max_bytes
        self._clock = clock
        self._looked = clock()
        self._lock = threading.Lock()
        self._groups: list[Group] = []
        self._traces: dict[int, int] = {}
        """How many workers' traces each request had that is here; of those that can't be read too."""
        self._unreadable: set[int] = set()

    def gather(self, listed: Sequence[ListedRequest], for_s: float, total: int | None) -> Compared | Reading:
        """The slots of requests; what is missing is read, newest first, for about so many seconds.

        Args:
            listed: the requests, newest first.
            for_s: seconds after which it answers how far it is.
            total: of the :class:`Reading` before, if there was one.

        Raises:
            UnwantedError: nobody waits for it any more.
            StoreError: the store failed.
        """
        while not self._lock.acquire(timeout=_POLL_S):
            check_wanted()
        try:
            self._forget_gone()
            missing = self._missing(listed)
            total = max(len(missing), total or 0)
            wanted = {item.number for item in listed}
            self._drop(item.number for item in missing)
            until, at = self._clock() + for_s, 0
            while at < len(missing):
                if self._clock() >= until:
                    return Reading(total - len(missing) + at, total)
                check_wanted()
                batch = missing[at : at + BATCH]
                at += len(batch)
                if not self._add(batch, wanted):
                    if not self._give_way(batch, listed):
                        break
                    missing, at = self._missing(listed), 0
            return self._compared(listed)
        finally:
            self._lock.release()

    def _missing(self, listed: Sequence[ListedRequest]) -> list[ListedRequest]:
        """Those that are not here, or whose traces were fewer when they were read."""
        return [item for item in listed if self._traces.get(item.number) != item.traces]

    def _give_way(self, batch: Sequence[ListedRequest], listed: Sequence[ListedRequest]) -> bool:
        """Drop what is older than those of a batch that didn't fit; False: nothing is."""
        newest = next(item.number for item in batch if item.number not in self._traces)
        older = [item.number for item in listed if item.number < newest and item.number in self._traces]
        self._drop(older)
        return bool(older)

    def _compared(self, listed: Sequence[ListedRequest]) -> Compared:
        here = {item.number: item.tokens for item in listed if item.number in self._traces}
        unreadable = len(self._unreadable & here.keys())
        groups = []
        for group in self._groups:
            rows = np.array([number in here for number in group.numbers.tolist()], bool)
            if rows.any():
                groups.append(group.only(rows))
        return Compared(
            groups=tuple(groups),
            requests=len(here) - unreadable,
            tokens=sum(tokens for number, tokens in here.items() if number not in self._unreadable),
            left_out=len(listed) - len(here),
            unreadable=unreadable,
        )

    def _add(self, batch: Sequence[ListedRequest], wanted: Collection[int]) -> bool:
        """Read some requests and keep them, if need be in the place of others; False: not all of them fit."""
        read = {request.number: request for request in self._read(batch)}
        by_kind: dict[tuple[tuple[MoeLayer, ...], int], list[RequestSlots]] = {}
        used, fits = self._nbytes(), True
        for item in batch:
            request = read.get(item.number)
            nbytes, size = (_ROW_BYTES, 0) if request is None else _room_of(request)
            if used + nbytes > self._max_bytes:
                used -= self._drop([number for number in self._traces if number not in wanted])
            fits = used + nbytes <= self._max_bytes
            if not fits:
                break
            used += nbytes
            self._traces[item.number] = item.traces
            if request is None:
                self._unreadable.add(item.number)
            else:
                by_kind.setdefault((request.layers, size), []).append(request)
        for (layers, _), requests in by_kind.items():
            self._keep(Group.of(layers, requests))
        return fits

    def _read(self, batch: Sequence[ListedRequest]) -> list[RequestSlots]:
        found = self._store.slots([item.number for item in batch if item.tokens < LONG])
        for item in batch:
            if item.tokens >= LONG:
                try:
                    workers = self._store.traces(item.number, None)
                    one = slots_of_workers(item.number, workers, check_wanted)
                except (StoreError, ValueError):
                    continue  # it can't be read: the answer tells how many
                found += [] if one is None else [one]
        return found

    def _keep(self, group: Group) -> None:
        for at, other in enumerate(self._groups):
            alike = other.layers == group.layers and other.counts.dtype == group.counts.dtype
            if alike and len(other.numbers) + len(group.numbers) <= _ROWS:
                self._groups[at] = other.joined(group)
                return
        self._groups.append(group)

    def _nbytes(self) -> int:
        return sum(group.nbytes for group in self._groups) + _ROW_BYTES * len(self._unreadable)

    def _forget_gone(self) -> None:
        """Drop the requests that left the store; it is looked at most once in :data:`_LOOK_S`."""
        if not self._traces or self._clock() - self._looked < _LOOK_S:
            return
        self._looked = self._clock()
        numbers, there = tuple(self._traces), set[int]()
        for start in range(0, len(numbers), _LOOKED_UP):
            some = numbers[start : start + _LOOKED_UP]
            there |= {item.number for item in self._store.listed(TraceQuery(numbers=some, limit=len(some)))}
        self._drop([number for number in numbers if number not in there])

    def _drop(self, numbers: Iterable[int]) -> int:
        """Keep nothing of these requests; the bytes that they took."""
        before = self._nbytes()
        gone = {number for number in numbers if self._traces.pop(number, None) is not None}
        if not gone:
            return 0
        self._unreadable -= gone
        kept = []
        for group in self._groups:
            rows = np.array([number not in gone for number in group.numbers.tolist()], bool)
            if rows.any():
                kept.append(group.only(rows))
        self._groups = kept
        return before - self._nbytes()


def _room_of(request: RequestSlots) -> tuple[int, int]:
    """The bytes that a request takes in a group, and those of each of its counts."""
    size = np.min_scalar_type(int(request.counts.max(initial=0))).itemsize
    return size * len(request.counts) + 16 * len(request.layers) + _ROW_BYTES, size


def histogram_of(groups: Iterable[Group]) -> Mapping[MoeLayer, Int64Array]:
    """The slots of all requests of some groups by layer and expert: int64 [E] of each layer."""
    found: dict[MoeLayer, Int64Array] = {}
    for group in groups:
        check_wanted()
        # Of a group's rows the sum fits into twice the bytes; that is quicker than 8 bytes at once.
        wide = np.min_scalar_type(_ROWS * int(np.iinfo(group.counts.dtype).max))
        sums = group.counts.sum(axis=0, dtype=wide).astype(np.int64)
        for layer, begin in zip(group.layers, group.begins.tolist(), strict=True):
            of_layer = sums[begin : begin + layer.num_experts]
            found[layer] = found[layer] + of_layer if layer in found else of_layer.copy()
    return found
