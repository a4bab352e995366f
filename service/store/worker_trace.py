"""What one worker traced of a request, read from the store when it is wanted and only as far as it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from itertools import groupby
from operator import itemgetter
from typing import Any, Final, NamedTuple

import numpy as np

from moescope.capture.wire import Int64Array, MoeLayer
from moescope.capture.wire.traces import ExpertArray
from moescope.service.store.steps import OBJECT_BYTES as STEP_BYTES

REMOVED: Final = "the trace was removed while it was read: its time was over, or the disk full."
_RUN_BYTES: Final = 3
"""The least that a run takes in the store."""
_OBJECT_BYTES: Final = 128
"""The most that a run takes while its part is decoded: an object with two integers."""


class Worker(NamedTuple):
    """Whose trace it is: the worker's place in its DP rank, and its epoch (one start of it)."""

    pp_rank: int = 0
    tp_rank: int = 0
    epoch: int = 0


_UNKNOWN: Final = Worker()


class Told(NamedTuple):
    """What is told of a worker's trace among those of one request: whose it is, which of its, and when.

    ``number`` counts the traces of an epoch; ``started_step`` is -1 where it isn't known.
    """

    worker: Worker
    number: int
    started_step: int
    started_ms: int
    ended_ms: int


_CLOCKS_MS: Final = 60_000  # by how much the clocks of a deployment's hosts may differ


def newest_life(told: Sequence[Told]) -> list[int]:
    """Which traces of a request are of its newest computation, by their places; others are earlier ones'.

    That happens where an id came again and nothing told the one from the other when they were stored (see
    :func:`moescope.service.store.records.life_of`). Of each worker only the newest trace counts, and it must
    have gone on when the newest of them began. Clocks may differ where steps say that they began together;
    also where old workers don't tell the step, and nothing says that the id came again: each has one trace.
    """
    order = sorted(range(len(told)), key=lambda at: (told[at].started_ms, told[at].number))
    newest = {told[at].worker[:2]: at for at in order}
    if not newest:
        return []
    head = told[order[-1]]
    came_again = len(newest) < len(told)

    def together(item: Told) -> bool:
        if min(item.started_step, head.started_step) < 0:
            alike = not came_again
        else:
            alike = item.started_step == head.started_step
        return item.ended_ms + (_CLOCKS_MS if alike else 0) >= head.started_ms

    return sorted(at for at in newest.values() if together(told[at]))


class WorkerTrace:
    """T tokens of one worker, in the order of computing.

    Nothing of it is read before it is asked for, so one of any length costs nothing until then. What is read
    is there, or :class:`moescope.service.store.records.StoreError` says why not: the trace is damaged, or was
    removed meanwhile.

    Args:
        layers: the layers wanted.
        id_bytes: bytes of an expert's id in the store.
        tokens: T.
        stored_runs: bytes of the runs of all parts in the store, and of the part that has most.
        read_runs: see :attr:`runs`.
        read: see :meth:`read`.
        parts: (tokens, version of the weights) of each part, in order; none: they aren't known.
        worker: whose trace it is.
        read_steps: see :meth:`steps`.
        stored_steps: bytes of the steps of the part that has most.
        read_side_by_side: see :meth:`side_by_side`; None: made of what :meth:`read` has.
    """

    def __init__(
        self,
        layers: tuple[MoeLayer, ...],
        id_bytes: int,
        tokens: int,
        stored_runs: tuple[int, int],
        read_runs: Callable[[], Int64Array],
        read: Callable[[int, int], tuple[ExpertArray, ...]],
        parts: Sequence[tuple[int, int]] = (),
        worker: Worker = _UNKNOWN,
        read_steps: Callable[[int, int], Int64Array] | None = None,
        stored_steps: int = 0,
        read_side_by_side: Callable[[int, int], ExpertArray] | None = None,
    ) -> None:
        self.layers = layers
        self.worker = worker
        self.tokens = tokens
        self.token_bytes = id_bytes * sum(layer.top_k for layer in layers)
        """Bytes of a token's ids."""
        self._stored_runs = stored_runs
        self._stored_steps = stored_steps
        self._read_runs = read_runs
        self._read = read
        self._read_steps = read_steps
        self._read_side_by_side = read_side_by_side
        self.weights = tuple(
            (version, sum(tokens for tokens, _ in same)) for version, same in groupby(parts, itemgetter(1))
        )
        """(version of the weights, tokens) in the order of computing; the tokens add up to T."""

    @property
    def runs_bytes(self) -> int:
        """The most memory that reading :attr:`runs` and steps takes, known before.

        It is that of all runs, and of one part's runs or steps as objects.
        """
        runs, most = (-(-nbytes // _RUN_BYTES) for nbytes in self._stored_runs)
        return 6 * 8 * runs + max(_OBJECT_BYTES * most, STEP_BYTES * self._stored_steps)

    @cached_property
    def runs(self) -> Int64Array:
        """int64 [R, 2]: positions computed one after the other, the first one and how many; in order."""
        return self._read_runs()

    def read(self, start: int, end: int) -> tuple[ExpertArray, ...]:
        """Tokens ``start`` to before ``end``: for each layer logical experts, uint8 or uint16 [n, top_k].

        Ids of two bytes may have ``NO_EXPERT``. It takes three times the bytes of these tokens and of one
        segment of the store, whose bound is :data:`moescope.service.store.limits.SEGMENT_BYTES`.
        """
        return self._read(start, end)

    def side_by_side(self, start: int, end: int) -> ExpertArray:
        """What :meth:`read` has, as one array [n, layers, top_k]; for layers of one top-k, one at least."""
        if self._read_side_by_side is None or start == end:
            return side_by_side(self._read(start, end))
        return self._read_side_by_side(start, end)

    def steps(self, start: int, end: int) -> Int64Array:
        """The steps that computed tokens ``start`` to before ``end``, int64 [n]; -1: not known.

        All workers of a deployment number their steps alike, so steps of several workers can be compared.
        """
        if self._read_steps is None:
            return np.full(end - start, -1, np.int64)
        return self._read_steps(start, end)

    @property
    def positions(self) -> Int64Array:
        """int64 [T]; a position that was computed again is there again. For short traces: all at once."""
        firsts, counts = self.runs.T
        found: Int64Array = np.repeat(firsts, counts) + places_within(counts)
        return found

    @property
    def experts(self) -> tuple[ExpertArray, ...]:
        """For each layer logical experts, uint8 or uint16 [T, top_k]. For short traces: all at once."""
        return self.read(0, self.tokens)


def side_by_side(of_layers: Sequence[ExpertArray]) -> ExpertArray:
    """The ids [n, top_k] of layers of one top-k as one array [n, layers, top_k]."""
    count, top_k = of_layers[0].shape
    columns: list[Any] = [*of_layers]
    together: ExpertArray = np.concatenate(columns, axis=1).reshape(count, len(columns), top_k)
    return together


def places_within(counts: Int64Array) -> Int64Array:
    """The place of each token in its run, for runs of so many tokens: 0 to before each count, in order."""
    return np.arange(int(counts.sum())) - np.repeat(np.cumsum(counts) - counts, counts)


def pieces_between(tokens: Int64Array, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Where tokens ``start`` to before ``end`` are, in pieces of so many ``tokens`` that follow each other.

    Yields:
        The index of a piece with some of them, where in it these begin, and where they end.
    """
    ends = np.cumsum(tokens)
    begins = ends - tokens
    for at in np.flatnonzero((ends > start) & (begins < end)).tolist():
        begin = int(begins[at])
        yield at, max(0, start - begin), min(int(tokens[at]), end - begin)
