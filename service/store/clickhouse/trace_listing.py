"""Searching traces in ClickHouse."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

from moescope.service.store.clickhouse.connection import Connection
from moescope.service.store.clickhouse.trace_choosing import (
    Chosen,
    Took,
    among,
    simple_conditions,
    that_took,
)
from moescope.service.store.clickhouse.trace_rows import MOST, REQUEST, TRACE
from moescope.service.store.clickhouse.trace_slices import Slice, newest, requests_in
from moescope.service.store.damage import DamageLog
from moescope.service.store.records import TracedRequest, TraceQuery
from moescope.service.store.slots import ListedRequest

_TOKENS, _LORA = 12, 15  # their places in a row
_REQUEST: Final = ", ".join(REQUEST)
_TRACE: Final = ", ".join(TRACE)


def traced_requests(connection: Connection, query: TraceQuery, damage: DamageLog) -> list[TracedRequest]:
    """See :class:`moescope.service.store.interface.Store`."""
    found: list[TracedRequest] = []
    for *row, number, _ in _rows(connection, query):
        try:
            found.append(TracedRequest.of_row((number, *row)))
        except ValueError as error:
            damage.request(row[3], error)
    return found


def listed(connection: Connection, query: TraceQuery) -> list[ListedRequest]:
    """See :class:`moescope.service.store.interface.Store`."""
    rows = _rows(connection, replace(query, taken_over=False))
    return [
        ListedRequest(number, row[0], row[1], row[_TOKENS], row[_LORA], complete)
        for *row, number, complete in rows
    ]


def _rows(connection: Connection, query: TraceQuery) -> list[Any]:
    """The requests that match: fields of a traced request, its number, and how many complete traces."""
    if query.name is not None or query.numbers is not None:
        chosen = among(connection, query, None)
        if chosen is not None and query.layer is not None and query.expert is not None:
            return _matching(connection, query, None, that_took(connection, query, chosen))
        return _matching(connection, query, None, chosen)
    found: list[Any] = []
    slice_ = newest(query, MOST if query.before is None else query.before)
    while True:
        slice_, requests = requests_in(connection, query, slice_)
        found += _matching(connection, query, slice_, requests)
        if slice_.low == 0 or len(found) >= query.limit:
            return found[: query.limit]
        slice_ = slice_.before()


def _matching(
    connection: Connection, query: TraceQuery, slice_: Slice | None, requests: Chosen | Took | None
) -> list[Any]:
    """Those of :func:`_rows` among some requests, and of a slice of time those that came in it."""
    if requests is None:
        return []
    chosen = requests.chosen if isinstance(requests, Took) else requests
    took = requests.took if isinstance(requests, Took) else "1"
    parameters = dict(requests.asked) if isinstance(requests, Took) else dict[str, object]()
    source, asked = _source(query, slice_, chosen)
    parameters |= asked
    more = "" if query.numbers is None else "AND number_of_it IN {numbers:Array(Int64)} "
    more += "" if slice_ is None else "AND number_of_it >= {low:Int64} AND number_of_it < {high:Int64} "
    more += "" if query.lora is None else "AND adapter_of_it = {lora:String} "
    more += "" if query.pool is None else "AND pool_of_it = {pool:String} "
    return connection.rows(
        f"SELECT {_REQUEST}, arrayDistinct(arrayFlatten(groupArray(who))), min(how), any(prompt), "
        "any(cached), max(again), min(started), max(ended), min(stored) AS stored_first, "
        "toInt64(max(shared)) AS tokens_of_it, max(in_role), max(in_pool) AS pool_of_it, "
        "max(adapter) AS adapter_of_it, "
        "max(reason), max(accepted), max(rejected), argMax(refs, length(refs)), "
        "toInt64(greatest(0, max(stages) - count())), toInt64(sum(greatest(0, computed - shared))), "
        "min(first) AS number_of_it, toInt64(sum(complete)) "
        f"FROM ({_stages(source, query.taken_over, took)}) GROUP BY {_REQUEST}, life_of_it "
        "HAVING max(took) AND tokens_of_it >= {least:Int64} AND stored_first >= {start:Int64} "
        f"AND stored_first <= {{end:Int64}} AND number_of_it < {{before:Int64}} {more}"
        "ORDER BY number_of_it DESC LIMIT {limit:Int64}",
        "ttitTtiiiiiiittttiibiiii",
        parameters,
    )


def _stages(source: str, taken_over: bool, took: str) -> str:
    """A query for the stages of requests: parts to traces, these to workers, these to stages.

    Of the traces complete ones count, and ``took`` says of which a request must have one. Tensor-parallel
    workers share a request's tokens out, pipeline-parallel ones have all of them each. Of a worker with
    several traces the newest counts (see ``newest_life``).
    """
    told = (
        *("any(who) AS who", "min(how) AS how", "any(prompt) AS prompt", "any(cached) AS cached"),
        *("max(again) AS again", "max(in_role) AS in_role", "max(in_pool) AS in_pool"),
        *("max(adapter) AS adapter", "max(reason) AS reason", "max(accepted) AS accepted"),
        *("max(rejected) AS rejected", "argMax(refs, length(refs)) AS refs", "max(stages) AS stages"),
        *("min(stored) AS stored", "min(first) AS first", "max(took) AS took"),
    )
    same = ", ".join(told).replace("any(who)", "arrayFlatten(groupArray(who))")
    references = "max(taken_over)" if taken_over else "''"
    traces = (
        f"SELECT {_TRACE}, max(life) AS life_of_it, any(names) AS who, any(outcome) AS how, "
        "any(prompt_tokens) AS prompt, any(cached_tokens) AS cached, any(preemptions) AS again, "
        "any(role) AS in_role, any(pool) AS in_pool, any(lora) AS adapter, any(finish_reason) AS reason, "
        f"any(accepted_drafts) AS accepted, any(rejected_drafts) AS rejected, {references} AS refs, "
        "any(pp_size) AS stages, min(stored_ms) AS stored, min(come) AS first, min(started_ms) AS started, "
        "max(ended_ms) AS ended, sum(tokens) AS own, any(computed_tokens) AS computed, "
        f"{took} AS took "
        f"{source} GROUP BY {_TRACE} HAVING count() = any(parts)"
    )
    workers = (
        f"SELECT {_REQUEST}, life_of_it, pp_rank, {same}, argMax(own, started) AS tokens_of_worker, "
        "argMax(computed, started) AS computed_of_stage, min(started) AS began, max(ended) AS over, "
        "count() AS complete_of_worker "
        f"FROM ({traces}) GROUP BY {_REQUEST}, life_of_it, pp_rank, tp_rank"
    )
    return (
        f"SELECT {_REQUEST}, life_of_it, {same}, sum(tokens_of_worker) AS shared, "
        "sum(complete_of_worker) AS complete, max(computed_of_stage) AS computed, min(began) AS started, "
        "max(over) AS ended "
        f"FROM ({workers}) GROUP BY {_REQUEST}, life_of_it, pp_rank"
    )


def _source(query: TraceQuery, slice_: Slice | None, chosen: Chosen) -> tuple[str, dict[str, object]]:
    """Rows of ``trace_part``, as a FROM clause, of requests among which those are that match."""
    clauses, parameters = simple_conditions(query)
    # What names requests is of the sorting key, the same in rows that replace each other: so it may be looked
    # at before these are, and the rest of a row is read only where it holds.
    source = f"FROM trace_part FINAL PREWHERE {chosen.where} WHERE {' AND '.join(clauses)}"
    more = list[str]()
    parameters |= chosen.asked
    parameters |= {
        "least": max(1, query.min_tokens),
        "before": MOST if query.before is None else query.before,
        "limit": query.limit,
    }
    if slice_ is not None:
        parameters["low"], parameters["high"] = slice_.low, slice_.high
    if query.lora is not None:
        parameters["lora"] = query.lora
    if query.pool is not None:
        parameters["pool"] = query.pool
    if query.numbers is not None:
        parameters["numbers"] = list(query.numbers)
    if query.name is not None:
        more.append("has(names, {name:String})")
        parameters["name"] = query.name
    if query.weights_version is not None:
        # Traces all of whose parts are kept: the others count in no answer.
        more.append(
            f"({_REQUEST}, life) IN (SELECT {_REQUEST}, max(life) {source} GROUP BY {_TRACE} "
            "HAVING count() = any(parts) AND max(weights_version = {weights_version:Int64}))"
        )
        parameters["weights_version"] = query.weights_version
    return " AND ".join([source, *more]), parameters
