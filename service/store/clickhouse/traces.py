"""Traces in ClickHouse: searched, read and removed."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final

import numpy as np

from moescope.capture.wire import MoeLayer
from moescope.capture.wire.traces import TracePart
from moescope.service.store.clickhouse.connection import Connection
from moescope.service.store.clickhouse.trace_reading import (
    DAMAGED,
    THIS_REQUEST,
    WORKER,
    WORKER_COLUMNS,
    TraceReader,
)
from moescope.service.store.clickhouse.trace_rows import MOST, REQUEST, TRACE, trace_of
from moescope.service.store.records import TracedRequest, TraceQuery, TraceShape
from moescope.service.store.slots import ListedRequest
from moescope.service.store.worker_trace import WorkerTrace

_FAR: Final = 1 << 62
_COMPLETE: Final = f"FROM trace_part FINAL GROUP BY {', '.join(TRACE)} HAVING count() = any(parts)"
"""Traces all of whose parts are kept: the others count in no answer."""


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


def traced_requests(connection: Connection, query: TraceQuery) -> list[TracedRequest]:
    """See :class:`moescope.service.store.interface.Store`."""
    return [TracedRequest.of_row((number, *row)) for *row, number, _ in _found(connection, query)]


def listed(connection: Connection, query: TraceQuery) -> list[ListedRequest]:
    """See :class:`moescope.service.store.interface.Store`."""
    return [
        ListedRequest(number, server, model, tokens, complete)
        for server, model, *_, tokens, number, complete in _found(connection, query)
    ]


def _found(connection: Connection, query: TraceQuery) -> list[Any]:
    """The requests that match: what a traced request is made of, its number, and how many complete traces."""
    where, parameters = _conditions(query)
    among = "" if query.numbers is None else "AND number_of_it IN {numbers:Array(Int64)} "
    # Parts to traces, of which complete ones count; tensor-parallel workers share a request's tokens out,
    # pipeline-parallel ones have all of them each.
    return connection.rows(
        f"SELECT {', '.join(REQUEST)}, arrayDistinct(arrayFlatten(groupArray(who))), any(how), "
        "any(prompt), any(cached), any(again), min(started), max(ended), min(stored) AS stored_first, "
        "toInt64(max(shared)) AS tokens_of_it, min(first) AS number_of_it, toInt64(sum(workers)) FROM ("
        f"SELECT {', '.join(REQUEST)}, pp_rank, arrayFlatten(groupArray(who)) AS who, any(how) AS how, "
        "any(prompt) AS prompt, any(cached) AS cached, any(again) AS again, min(started) AS started, "
        "max(ended) AS ended, min(stored) AS stored, sum(computed) AS shared, min(first) AS first, "
        "count() AS workers FROM ("
        f"SELECT {', '.join(TRACE)}, any(names) AS who, any(outcome) AS how, any(prompt_tokens) AS prompt, "
        "any(cached_tokens) AS cached, any(preemptions) AS again, min(started_ms) AS started, "
        "max(ended_ms) AS ended, min(stored_ms) AS stored, sum(tokens) AS computed, min(come) AS first "
        f"FROM trace_part FINAL WHERE {where} GROUP BY {', '.join(TRACE)} HAVING count() = any(parts)) "
        f"GROUP BY {', '.join(REQUEST)}, pp_rank) GROUP BY {', '.join(REQUEST)} "
        "HAVING tokens_of_it >= {least:Int64} AND stored_first >= {start:Int64} "
        f"AND stored_first <= {{end:Int64}} AND number_of_it < {{before:Int64}} {among}"
        "ORDER BY number_of_it DESC LIMIT {limit:Int64}",
        "ttitTtiiiiiiiii",
        parameters if query.numbers is None else {**parameters, "numbers": list(query.numbers)},
    )


def traces(connection: Connection, number: int, wanted: Collection[int] | None) -> list[WorkerTrace]:
    """See :class:`moescope.service.store.interface.Store`."""
    request = connection.rows(
        f"SELECT {', '.join(REQUEST)}, min(started_ms), max(started_ms) FROM trace_part FINAL WHERE "
        f"({', '.join(REQUEST)}) IN "
        f"(SELECT {', '.join(REQUEST)} FROM trace_part WHERE come = {{come:Int64}}) "
        f"GROUP BY {', '.join(REQUEST)}",
        "ttitii",
        {"come": number},
    )
    if not request:
        return []
    *names, first, last = request[0]
    this = dict(zip(REQUEST, names, strict=True)) | {"first": first, "last": last}
    headers = connection.rows(
        f"SELECT {WORKER}, part, parts, tokens, toInt64(length(runs)), weights_version FROM trace_part FINAL "
        f"WHERE {THIS_REQUEST} ORDER BY {WORKER}, part",
        "iiiiiiiii",
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
    return _workers(connection, this, headers, routed)


def count(connection: Connection) -> int:
    """Requests with a complete trace."""
    [(found,)] = connection.rows(
        f"SELECT toInt64(uniqExact({', '.join(REQUEST)})) FROM (SELECT {', '.join(REQUEST)} "
        f"FROM trace_part FINAL GROUP BY {', '.join(TRACE)} "
        "HAVING count() = any(parts) AND sum(tokens) > 0)",
        "i",
    )
    return int(found)


def remove_before(connection: Connection, before_ms: int) -> None:
    """Remove requests that were stored before an instant."""
    request, bound = ", ".join(REQUEST), {"before": before_ms}
    old = (
        f"(SELECT {request} FROM trace_part FINAL GROUP BY {request} "
        "HAVING min(stored_ms) < {before:Int64})"
    )
    [(found,)] = connection.rows(f"SELECT toInt64(count()) FROM {old}", "i", bound)
    if found:
        # The routing first: its headers say which it is.
        for table in ("routing", "trace_part"):
            connection.command(f"DELETE FROM {table} WHERE ({request}) IN {old}", bound)


def _conditions(query: TraceQuery) -> tuple[str, dict[str, object]]:
    # Parts of a request come within a day of each other: older ones need no look.
    clauses = ["stored_ms >= {start:Int64}", "stored_ms <= {end:Int64} + 86400000"]
    parameters: dict[str, object] = {
        "start": 0 if query.start is None else int(min(query.start * 1000, _FAR)),
        "end": _FAR if query.end is None else int(min(query.end * 1000, _FAR)),
        "least": max(1, query.min_tokens),
        "before": MOST if query.before is None else query.before,
        "limit": query.limit,
    }
    for name, kind, value in (
        ("server", "String", query.server),
        ("model", "String", query.model),
        ("dp_rank", "Int64", query.dp_rank),
    ):
        if value is not None:
            clauses.append(f"{name} = {{{name}:{kind}}}")
            parameters[name] = value
    if query.name is not None:
        clauses.append("has(names, {name:String})")
        parameters["name"] = query.name
    if query.weights_version is not None:
        clauses.append(
            f"({', '.join(REQUEST)}) IN (SELECT {', '.join(REQUEST)} {_COMPLETE} "
            "AND max(weights_version = {weights_version:Int64}))"
        )
        parameters["weights_version"] = query.weights_version
    if query.layer is not None and query.expert is not None:
        clauses.append(
            f"({', '.join(REQUEST)}) IN (SELECT {', '.join(REQUEST)} FROM routing "
            "WHERE layer = {layer:Int64} AND has(taken, {expert:Int64}) "
            f"AND ({', '.join(TRACE)}) IN (SELECT {', '.join(TRACE)} {_COMPLETE}))"
        )
        parameters |= {"layer": query.layer, "expert": query.expert}
    return " AND ".join(clauses), parameters


def _workers(
    connection: Connection, this: Mapping[str, object], headers: Sequence[Any], routed: Sequence[Any]
) -> list[WorkerTrace]:
    """The complete traces of one request, from rows in the order of worker, trace, part and layer."""
    found: list[WorkerTrace] = []
    for trace in dict.fromkeys(tuple(row[:4]) for row in headers):
        parts = [row for row in headers if tuple(row[:4]) == trace]
        if len(parts) < parts[0][5]:
            continue
        tokens = np.array([row[6] for row in parts], np.int64)
        layers: dict[MoeLayer, int] = {}
        for row in routed:
            if tuple(row[:4]) == trace:
                layer, num_experts, top_k, of_one, of_two = row[4:]
                if top_k < 1 or (of_one + of_two) % top_k:
                    raise ValueError(DAMAGED)
                # Contradicting parts can come to two services at once: what isn't of all tokens is left out.
                if of_one + of_two == top_k * tokens.sum():
                    layers[MoeLayer(layer, num_experts, top_k)] = 1 if of_one else 2
        sizes = [row[7] for row in parts]
        reader = TraceReader(
            connection,
            {**this, **dict(zip(WORKER_COLUMNS, trace, strict=True))},
            [row[4] for row in parts],
            tokens,
            layers,
        )
        found.append(
            WorkerTrace(
                tuple(layers),
                max(layers.values(), default=1),
                int(tokens.sum()),
                (sum(sizes), max(sizes)),
                reader.runs,
                reader.experts,
                [(row[6], row[8]) for row in parts],
            )
        )
    return found
