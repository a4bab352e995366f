"""Slots per expert of many requests, in one query for all of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from moescope.capture.wire import MoeLayer
from moescope.service.store.clickhouse.connection import Connection
from moescope.service.store.clickhouse.trace_rows import REQUEST, TRACE
from moescope.service.store.damage import DamageLog
from moescope.service.store.slots import RequestSlots, SlotSum, count_slots
from moescope.service.store.worker_trace import Told, Worker, newest_life

_REQUEST: Final = ", ".join(REQUEST)
_TRACE: Final = ", ".join(TRACE)
# A request's number is the least `come` among its complete traces: the parts say which requests are meant.
_TRACES: Final = (
    f"SELECT {_TRACE}, toInt64(sum(tokens)), min(come), max(life), any(started_step), min(started_ms), "
    f"max(ended_ms) FROM trace_part FINAL WHERE ({_REQUEST}) IN "
    f"(SELECT {_REQUEST} FROM trace_part WHERE come IN {{numbers:Array(Int64)}}) "
    f"GROUP BY {_TRACE} HAVING count() = any(parts) ORDER BY {_TRACE}"
)
_ROUTING: Final = (
    f"SELECT {_TRACE}, layer, num_experts, top_k, arrayFlatten(groupArray(ids8)), "
    "arrayFlatten(groupArray(ids16)) FROM routing FINAL "
    "WHERE server IN {servers:Array(String)} AND model IN {models:Array(String)} "
    "AND dp_rank IN {ranks:Array(Int64)} AND request_id IN {ids:Array(String)} "
    f"GROUP BY {_TRACE}, layer, num_experts, top_k ORDER BY {_TRACE}, layer, num_experts, top_k"
)
_DAMAGED: Final = "some of its tokens are not there"


def slots(connection: Connection, numbers: Sequence[int], damage: DamageLog) -> list[RequestSlots]:
    """See :class:`moescope.service.store.interface.Store`."""
    requests = _requests(connection, numbers)
    layers = _layers(connection, list(dict.fromkeys(key[:4] for of in requests.values() for key in of)))
    found = []
    for number, tokens in sorted(requests.items()):
        try:
            found.append(_sum({key: layers.get(key, {}) for key in tokens}, tokens).of(number))
        except ValueError as error:
            damage.compared(f"request number {number}", error)
    return found


def _requests(connection: Connection, numbers: Sequence[int]) -> dict[int, dict[tuple[Any, ...], int]]:
    """By number of each request: its traces that count, and their tokens."""
    lives: dict[tuple[Any, ...], list[Any]] = {}
    for row in connection.rows(_TRACES, "ttitiiiiiiiiii", {"numbers": list(numbers)}):
        lives.setdefault((*row[:4], row[10]), []).append(row)
    found: dict[int, dict[tuple[Any, ...], int]] = {}
    for rows in lives.values():
        number = min(row[9] for row in rows)
        if number in numbers:
            told = [Told(Worker(*row[4:7]), row[7], *row[11:]) for row in rows]
            found[number] = {rows[at][:8]: rows[at][8] for at in newest_life(told)}
    return found


_Routed = dict[MoeLayer, Any]
"""The ids of each layer of a trace, [tokens x top_k]."""


def _layers(connection: Connection, requests: Sequence[tuple[Any, ...]]) -> dict[tuple[Any, ...], _Routed]:
    """By trace, of these requests; maybe of others too."""
    if not requests:
        return {}
    servers, models, ranks, ids = (list(dict.fromkeys(column)) for column in zip(*requests, strict=True))
    rows = connection.rows(
        _ROUTING, "ttitiiiiiiiBH", {"servers": servers, "models": models, "ranks": ranks, "ids": ids}
    )
    found: dict[tuple[Any, ...], _Routed] = {}
    for *key, layer, num_experts, top_k, ids8, ids16 in rows:
        of_trace = found.setdefault(tuple(key), {})
        of_trace[MoeLayer(layer, num_experts, top_k)] = ids8 if len(ids8) else ids16
    return found


def _sum(routed: dict[tuple[Any, ...], _Routed], tokens: dict[tuple[Any, ...], int]) -> SlotSum:
    """The slots of all traces of a request.

    Raises:
        ValueError: some are not there, or they are too many to count.
    """
    whole = {
        # Contradicting parts can come to two services at once: what isn't of all tokens is left out.
        key: {layer: ids for layer, ids in of.items() if len(ids) == layer.top_k * tokens[key]}
        for key, of in routed.items()
    }
    if not all(whole.values()):
        raise ValueError(_DAMAGED)
    found = SlotSum([tuple(of) for of in whole.values()])
    for key, of in whole.items():
        ids = [flat.reshape(-1, layer.top_k) for layer, flat in of.items()]
        [counts] = count_slots(ids, tuple(of), [tokens[key]])
        found.add(tuple(of), counts, tokens[key])
    return found
