"""Traces in ClickHouse: read and removed."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import groupby
from typing import Any, Final, NamedTuple

import numpy as np

from moescope.capture.wire import MoeLayer
from moescope.capture.wire.traces import TracePart
from moescope.service.store.clickhouse.connection import Connection
from moescope.service.store.clickhouse.gone import remember
from moescope.service.store.clickhouse.trace_reading import (
    DAMAGED,
    THIS_REQUEST,
    WORKER,
    WORKER_COLUMNS,
    TraceReader,
)
from moescope.service.store.clickhouse.trace_rows import REQUEST, TRACE, trace_of
from moescope.service.store.records import TraceShape
from moescope.service.store.worker_trace import Told, Worker, WorkerTrace, newest_life

_MOST: Final = (1 << 31) - 1
"""The most tokens that a part can have, far above any: so many parts of them add up within an int64."""
_REQUEST: Final = ", ".join(REQUEST)


def shapes(connection: Connection, parts: Sequence[TracePart]) -> list[TraceShape | None]:
    """See :class:`moescope.service.store.interface.Store`; two queries, however many parts."""
    if not parts:
        return []
    wanted = [tuple(trace_of(part)) for part in parts]
    # A set for each column of the key's begin: ClickHouse skips what is in none.
    columns = zip(REQUEST, ("String", "String", "Int64", "String"), zip(*wanted, strict=True), strict=False)
    clauses, parameters = [], dict[str, object]()
    for name, kind, values in columns:
        clauses.append(f"{name} IN {{{name}:Array({kind})}}")
        parameters[name] = list(dict.fromkeys(values))
    where, trace = " AND ".join(clauses), ", ".join(TRACE)
    kept = connection.rows(
        f"SELECT {trace}, any(parts) FROM trace_part WHERE {where} GROUP BY {trace}", "ttitiiiii", parameters
    )
    routed = connection.rows(
        f"SELECT DISTINCT {trace}, toInt64(if(notEmpty(ids8), 1, 2)) AS size, layer, num_experts, top_k "
        f"FROM routing WHERE {where} ORDER BY {trace}, layer, num_experts, top_k",
        "ttitiiiiiiii",
        parameters,
    )
    layers: dict[tuple[Any, ...], list[MoeLayer]] = {}
    sizes: dict[tuple[Any, ...], int] = {}
    for *key, size, layer, num_experts, top_k in routed:
        layers.setdefault(tuple(key), []).append(MoeLayer(layer, num_experts, top_k))
        sizes[tuple(key)] = size
    found = {
        tuple(key): TraceShape(count, sizes[tuple(key)], tuple(layers[tuple(key)]))
        for *key, count in kept
        if tuple(key) in sizes
    }
    return [found.get(key) for key in wanted]


def traces(connection: Connection, number: int, wanted: Collection[int] | None) -> list[WorkerTrace]:
    """See :class:`moescope.service.store.interface.Store`."""
    one = "come = {come:Int64}"
    request = connection.rows(
        f"SELECT {_REQUEST}, min(started_ms), max(started_ms), "
        f"maxIf(life, ({WORKER}) IN (SELECT {WORKER} FROM trace_part WHERE {one})) "
        f"FROM trace_part FINAL WHERE ({_REQUEST}) IN (SELECT {_REQUEST} FROM trace_part WHERE {one}) "
        f"GROUP BY {_REQUEST}",
        "ttitiii",
        {"come": number},
    )
    if not request:
        return []
    *names, first, last, life = request[0]
    this = dict(zip(REQUEST, names, strict=True)) | {"first": first, "last": last}
    headers = connection.rows(
        f"SELECT {WORKER}, part, parts, tokens, toInt64(length(runs)), weights_version, "
        "toInt64(length(steps)), life, started_step, started_ms, ended_ms FROM trace_part FINAL "
        f"WHERE {THIS_REQUEST} ORDER BY {WORKER}, part",
        "iiiiiiiiiiiiii",
        this,
    )
    layers = "" if wanted is None else " AND layer IN {layers:Array(Int64)}"
    routed = connection.rows(
        f"SELECT {WORKER}, layer, num_experts, top_k, toInt64(sum(length(ids8))), "
        f"toInt64(sum(length(ids16))) FROM routing FINAL WHERE {THIS_REQUEST}{layers} "
        f"GROUP BY {WORKER}, layer, num_experts, top_k ORDER BY {WORKER}, layer, num_experts, top_k",
        "iiiiiiiii",
        this if wanted is None else {**this, "layers": sorted(wanted)},
    )
    return _workers(connection, this, [_Header(*row) for row in headers], life, routed)


def count(connection: Connection) -> int:
    """Requests with a complete trace."""
    [(found,)] = connection.rows(
        f"SELECT toInt64(uniqExact({_REQUEST}, life_of_it)) FROM (SELECT {_REQUEST}, max(life) AS life_of_it "
        f"FROM trace_part FINAL GROUP BY {', '.join(TRACE)} "
        "HAVING count() = any(parts) AND sum(tokens) > 0)",
        "i",
    )
    return int(found)


def remove_before(connection: Connection, before_ms: int, now_ms: int) -> None:
    """Remove requests that were stored before an instant."""
    trace, bound = ", ".join(TRACE), {"before": before_ms}
    oldest = connection.rows("SELECT min(stored_ms) FROM trace_part HAVING count() > 0", "i")
    if not oldest or oldest[0][0] >= before_ms:
        return
    traces = (
        f"SELECT {trace}, max(life) AS life_of_it, min(stored_ms) AS stored FROM trace_part FINAL "
        f"GROUP BY {trace}"
    )
    since = f"min(stored) OVER (PARTITION BY {_REQUEST}, life_of_it) AS since"
    old = f"(SELECT {trace} FROM (SELECT {trace}, {since} FROM ({traces})) WHERE since < {{before:Int64}})"
    [(found,)] = connection.rows(f"SELECT toInt64(count()) FROM {old}", "i", bound)
    if found:
        remember(connection, f"({trace}) IN {old}", "expired", now_ms, bound)
        # The routing first: its headers say which it is.
        for table in ("routing", "trace_part"):
            connection.maintain(f"DELETE FROM {table} WHERE ({trace}) IN {old}", bound)


class _Header(NamedTuple):
    """A part of a trace, without its tokens."""

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
