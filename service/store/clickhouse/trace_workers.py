"""What each worker traced of requests in ClickHouse, without its tokens: few questions for many requests."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import groupby
from typing import Any, Final, NamedTuple

import numpy as np

from moescope.capture.wire import MoeLayer
from moescope.service.store.clickhouse.connection import Connection
from moescope.service.store.clickhouse.trace_choosing import named
from moescope.service.store.clickhouse.trace_reading import DAMAGED, WORKER, WORKER_COLUMNS, TraceReader
from moescope.service.store.clickhouse.trace_rows import REQUEST
from moescope.service.store.worker_trace import Told, Worker, WorkerTrace, newest_life

_MOST: Final = (1 << 31) - 1
"""The most tokens that a part can have, far above any: so many parts of them add up within an int64."""
_AT_ONCE: Final = 64
"""Requests that are asked about at once, at most."""
_SHORT_RUNS: Final = 64
"""Bytes of a part's runs that are read with the part: more than twenty of them."""
_REQUEST: Final = ", ".join(REQUEST)
_WITHIN: Final = "started_ms >= {first:Int64} AND started_ms <= {last:Int64}"
_Request = tuple[Any, ...]


def traces(connection: Connection, number: int, wanted: Collection[int] | None) -> list[WorkerTrace]:
    """See :class:`moescope.service.store.interface.Store`.

    Raises:
        ValueError: a trace is damaged.
    """
    return _Found(connection, [number], wanted).workers(number)


def traces_of(
    connection: Connection, numbers: Sequence[int], wanted: Collection[int] | None
) -> dict[int, list[WorkerTrace]]:
    """Those of several requests, without requests of which a trace is damaged; three queries for 64."""
    told: dict[int, list[WorkerTrace]] = {}
    for start in range(0, len(numbers), _AT_ONCE):
        some = numbers[start : start + _AT_ONCE]
        found = _Found(connection, some, wanted)
        for number in some:
            with suppress(ValueError):
                told[number] = found.workers(number)
    return told


class _Found:
    """What there is of some requests.

    Args:
        connection: the server.
        numbers: of the requests.
        wanted: layers; None: all.
    """

    def __init__(
        self, connection: Connection, numbers: Sequence[int], wanted: Collection[int] | None
    ) -> None:
        self._connection = connection
        rows = connection.rows(
            f"SELECT come, {_REQUEST}, {WORKER} FROM trace_part WHERE come IN {{numbers:Array(Int64)}}",
            "ittitiiii",
            {"numbers": list(numbers)},
        )
        self._first = {row[0]: (row[1:5], row[5:]) for row in rows}
        """A part of each request, by the request's number: of which request it is, and of which trace."""
        self._headers: dict[_Request, list[_Header]] = {}
        self._routed: dict[_Request, list[Any]] = {}
        if rows:
            where, asked = named({request for request, _ in self._first.values()})
            self._headers = dict(self._read_headers(where, asked))
            if self._headers:
                self._routed = dict(self._read_routed(where, asked, wanted))

    def workers(self, number: int) -> list[WorkerTrace]:
        """What each worker traced of a request.

        Raises:
            ValueError: a trace is damaged.
        """
        request, trace = self._first.get(number, ((), ()))
        headers = self._headers.get(request, [])
        if not headers:
            return []
        life = max((row.life for row in headers if row.trace == trace), default=0)
        started = [row.started_ms for row in headers]
        this = dict(zip(REQUEST, request, strict=True)) | {"first": min(started), "last": max(started)}
        return _workers(self._connection, this, headers, life, self._routed.get(request, []))

    def _read_headers(
        self, where: str, asked: Mapping[str, object]
    ) -> Iterator[tuple[_Request, list[_Header]]]:
        """By request, in the order of worker, trace, part."""
        rows = self._connection.rows(
            f"SELECT {_REQUEST}, {WORKER}, part, parts, tokens, toInt64(length(runs)), weights_version, "
            "toInt64(length(steps)), life, started_step, started_ms, ended_ms, "
            f"if(length(runs) <= {_SHORT_RUNS}, runs, '') FROM trace_part FINAL "
            f"WHERE {where} ORDER BY {_REQUEST}, {WORKER}, part",
            "ttitiiiiiiiiiiiiiib",
            asked,
        )
        for request, group in groupby(rows, lambda row: row[:4]):
            yield request, [_Header(*row[4:]) for row in group]

    def _read_routed(
        self, where: str, asked: Mapping[str, object], wanted: Collection[int] | None
    ) -> Iterator[tuple[_Request, list[Any]]]:
        """By request, in the order of worker, trace, layer."""
        started = [row.started_ms for rows in self._headers.values() for row in rows]
        parameters = {**asked, "first": min(started), "last": max(started)}
        if wanted is not None:
            where += " AND layer IN {layers:Array(Int64)}"
            parameters["layers"] = sorted(wanted)
        rows = self._connection.rows(
            f"SELECT {_REQUEST}, {WORKER}, layer, num_experts, top_k, toInt64(sum(length(ids8))), "
            f"toInt64(sum(length(ids16))) FROM routing FINAL WHERE {where} AND {_WITHIN} "
            f"GROUP BY {_REQUEST}, {WORKER}, layer, num_experts, top_k "
            f"ORDER BY {_REQUEST}, {WORKER}, layer, num_experts, top_k",
            "ttitiiiiiiiii",
            parameters,
        )
        for request, group in groupby(rows, lambda row: row[:4]):
            yield request, [row[4:] for row in group]


class _Header(NamedTuple):
    """A part of a trace, without its tokens; ``told`` is its runs, nothing if they take many bytes."""

    pp_rank: int
    tp_rank: int
    epoch: int
    number: int
    part: int
    parts: int
    tokens: int
    runs: int
    weights_version: int
    steps: int
    life: int
    started_step: int
    started_ms: int
    ended_ms: int
    told: bytes

    @property
    def trace(self) -> tuple[int, ...]:
        """Which trace of the request it is of."""
        return self[:4]


def _workers(
    connection: Connection,
    this: Mapping[str, object],
    headers: Sequence[_Header],
    life: int,
    routed: Sequence[Any],
) -> list[WorkerTrace]:
    """The complete traces of one life of a request, from rows in the order of worker, trace, part, layer."""
    complete = [
        parts
        for _, grouped in groupby(headers, lambda row: row.trace)
        for parts in [list(grouped)]
        if len(parts) >= parts[0].parts and max(row.life for row in parts) == life
    ]
    told = [
        Told(Worker(*first[:3]), first.number, first.started_step, first.started_ms, first.ended_ms)
        for first, *_ in complete
    ]
    return [_worker(connection, this, complete[at], told[at].worker, routed) for at in newest_life(told)]


def _worker(
    connection: Connection,
    this: Mapping[str, object],
    parts: Sequence[_Header],
    worker: Worker,
    routed: Sequence[Any],
) -> WorkerTrace:
    if any(not 0 <= size <= _MOST for row in parts for size in (row.tokens, row.runs, row.steps)):
        raise ValueError(DAMAGED)
    trace, tokens = parts[0].trace, np.array([row.tokens for row in parts], np.int64)
    layers: dict[MoeLayer, int] = {}
    for row in routed:
        if tuple(row[:4]) == trace:
            layer, num_experts, top_k, of_one, of_two = row[4:]
            if top_k < 1 or (of_one + of_two) % top_k:
                raise ValueError(DAMAGED)
            # Contradicting parts can come to two services at once: what isn't of all tokens is left out.
            if of_one + of_two == top_k * tokens.sum():
                layers[MoeLayer(layer, num_experts, top_k)] = 1 if of_one else 2
    sizes = [row.runs for row in parts]
    reader = TraceReader(
        connection,
        {**this, **dict(zip(WORKER_COLUMNS, trace, strict=True))},
        [row.part for row in parts],
        tokens,
        layers,
        [row.told for row in parts],
    )
    return WorkerTrace(
        tuple(layers),
        max(layers.values(), default=1),
        int(tokens.sum()),
        (sum(sizes), max(sizes)),
        reader.runs,
        reader.experts,
        [(row.tokens, row.weights_version) for row in parts],
        worker,
        reader.steps,
        max(row.steps for row in parts),
    )
