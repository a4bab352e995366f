"""What one worker traced of a request, read from the store when it is wanted and only as far as it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from itertools import groupby
from operator import itemgetter
from typing import Final, NamedTuple

import numpy as np

from moescope.capture.wire import Int64Array, MoeLayer
from moescope.capture.wire.traces import ExpertArray

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
    ) -> None:
        self.layers = layers
        self.worker = worker
        self.tokens = tokens
        self.token_bytes = id_bytes * sum(layer.top_k for layer in layers)
        """Bytes of a token's ids."""
        self._stored_runs = stored_runs
        self._read_runs = read_runs
        self._read = read
        self._read_steps = read_steps
        self.weights = tuple(
            (version, sum(tokens for tokens, _ in same)) for version, same in groupby(parts, itemgetter(1))
        )
        """(version of the weights, tokens) in the order of computing; the tokens add up to T."""

    @property
    def runs_bytes(self) -> int:
        """The most memory that reading :attr:`runs` takes, known before: they and one part's as objects."""
        runs, most = (-(-nbytes // _RUN_BYTES) for nbytes in self._stored_runs)
        return 6 * 8 * runs + _OBJECT_BYTES * most

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

    def steps(self, start: int, end: int) -> Int64Array:
        """The steps that computed tokens ``start`` to before ``end``: int64 [n], or [0]: they aren't known.

        All workers of a deployment number their steps alike, so steps of several workers can be compared.
        """
        return np.empty(0, np.int64) if self._read_steps is None else self._read_steps(start, end)

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
