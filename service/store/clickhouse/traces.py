"""Traces in ClickHouse: their shapes, how many there are, and what is removed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from moescope.capture.wire import MoeLayer
from moescope.capture.wire.traces import TracePart
from moescope.service.store.clickhouse.connection import Connection
from moescope.service.store.clickhouse.gone import remember
from moescope.service.store.clickhouse.pacing import Server
from moescope.service.store.clickhouse.trace_rows import REQUEST, TRACE, trace_of
from moescope.service.store.records import TraceShape

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


def count(connection: Connection) -> int:
    """Requests with a complete trace."""
    [(found,)] = connection.rows(
        f"SELECT toInt64(uniqExact({_REQUEST}, life_of_it)) FROM (SELECT {_REQUEST}, max(life) AS life_of_it "
        f"FROM trace_part FINAL GROUP BY {', '.join(TRACE)} "
        "HAVING count() = any(parts) AND sum(tokens) > 0)",
        "i",
    )
    return int(found)


def remove_before(connection: Server, before_ms: int, now_ms: int) -> None:
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
            connection.delete(table, f"({trace}) IN {old}", bound)
