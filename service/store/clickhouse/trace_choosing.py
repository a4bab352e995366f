"""Which requests a question about traces may be about: found first, by little, and then named.

By the begin of the key, which names a request, the server skips what is of others, in each table and in each
place of a question.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from moescope.service.store.clickhouse.connection import Connection
from moescope.service.store.clickhouse.trace_rows import REQUEST, TRACE
from moescope.service.store.records import TraceQuery

_OF_DEPLOYMENT: Final = (("server", "String"), ("model", "String"), ("dp_rank", "Int64"))
"""Columns of which a question may name one value, and their types."""
_FAR: Final = 1 << 62
_REQUEST: Final = ", ".join(REQUEST)
_TRACE: Final = ", ".join(TRACE)
_MOST_NAMED: Final = 4096
"""Requests that a question names, at most; of more the server finds out which they are several times."""
_IDS: Final = "request_id IN {ids:Array(String)}"
_WHO: Final = (
    "server IN {servers:Array(String)} AND model IN {models:Array(String)} "
    "AND dp_rank IN {ranks:Array(Int64)}"
)
_KINDS: Final = ("String", "String", "Int64", "String", "Int64", "Int64", "Int64", "Int64")
"""Types of the columns of :data:`TRACE`."""
_TOOK: Final = "layer = {layer:Int64}", "has(taken, {expert:Int64})"


class Chosen(NamedTuple):
    """Requests that may match.

    Attributes:
        where: a condition for all rows of them, and maybe of some more, in any table.
        asked: its parameters.
        newest: the number of the newest part of each that is among the parts that were asked for; nothing
            where they are too many to be named.
    """

    where: str
    asked: dict[str, object]
    newest: dict[tuple[Any, ...], int]


class Took(NamedTuple):
    """Those of them in which a token took an expert.

    Attributes:
        chosen: they.
        took: whether a row is of a trace that has such a token, complete or not; with parameters ``asked``.
        traces: these traces; nothing where the requests are too many to be named.
    """

    chosen: Chosen
    took: str
    asked: dict[str, object]
    traces: Sequence[tuple[Any, ...]] = ()


def simple_conditions(query: TraceQuery) -> tuple[list[str], dict[str, object]]:
    """Conditions of a row of ``trace_part`` that cost little, and their parameters."""
    # Parts of a request come within a day of each other: older ones need no look.
    clauses = ["stored_ms >= {start:Int64}", "stored_ms <= {end:Int64} + 86400000"]
    asked: dict[str, object] = {
        "start": 0 if query.start is None else int(min(query.start * 1000, _FAR)),
        "end": _FAR if query.end is None else int(min(query.end * 1000, _FAR)),
    }
    for name, kind in _OF_DEPLOYMENT:
        value = getattr(query, name)
        if value is not None:
            clauses.append(f"{name} = {{{name}:{kind}}}")
            asked[name] = value
    return clauses, asked


def among(connection: Connection, query: TraceQuery, slice_: tuple[int, int] | None) -> Chosen | None:
    """The requests that may match; None: there are none.

    Of a slice of time these are the requests of which a part came in it, from the first number to below the
    second; what they have in other slices is theirs too.
    """
    clauses, asked = simple_conditions(query)
    if slice_ is not None:
        clauses.append("come >= {low:Int64} AND come < {high:Int64}")
        asked["low"], asked["high"] = slice_
    if query.name is not None:
        clauses.append("has(names, {name:String})")
        asked["name"] = query.name
    if query.numbers is not None:
        clauses.append("come IN {numbers:Array(Int64)}")
        asked["numbers"] = list(query.numbers)
    source = f"FROM trace_part WHERE {' AND '.join(clauses)}"
    rows = connection.rows(
        f"SELECT {_REQUEST}, max(come) {source} GROUP BY {_REQUEST} LIMIT {_MOST_NAMED + 1}", "ttiti", asked
    )
    if not rows:
        return None
    if len(rows) > _MOST_NAMED:
        return Chosen(f"({_REQUEST}) IN (SELECT {_REQUEST} {source})", asked, {})
    newest = {tuple(request): number for *request, number in rows}
    return Chosen(*named(newest), newest)


def newest_among(
    connection: Connection, query: TraceQuery, high: int, size: int
) -> tuple[int, Chosen | None]:
    """The requests of the newest ``size`` parts below a number that may match; None: there are none.

    Returns:
        The number of the oldest of these parts, 0 if there are no more before them; and the requests.
    """
    clauses, asked = simple_conditions(query)
    source = f"FROM trace_part WHERE {' AND '.join(clauses)} AND come < {{high:Int64}}"
    asked["high"] = high
    if size > _MOST_NAMED:
        oldest = connection.rows(
            f"SELECT come {source} ORDER BY come DESC LIMIT 1 OFFSET {{size:Int64}}",
            "i",
            {**asked, "size": size - 1},
        )
        low = oldest[0][0] if oldest else 0
        return low, among(connection, query, (low, high))
    rows = connection.rows(
        f"SELECT {_REQUEST}, come {source} ORDER BY come DESC LIMIT {{size:Int64}}",
        "ttiti",
        {**asked, "size": size},
    )
    newest = {tuple(request): number for *request, number in reversed(rows)}
    low = rows[-1][-1] if len(rows) == size else 0
    return low, Chosen(*named(newest), newest) if newest else None


def named(requests: Iterable[tuple[Any, ...]]) -> tuple[str, dict[str, object]]:
    """A condition for all rows of requests, in any table, and maybe of some more; and its parameters."""
    columns = zip(("servers", "models", "ranks", "ids"), zip(*requests, strict=True), strict=True)
    return f"{_IDS} AND {_WHO}", {name: list(dict.fromkeys(values)) for name, values in columns}


def that_took(connection: Connection, query: TraceQuery, chosen: Chosen) -> Took | None:
    """Those in which a token took the query's expert; None: there are none.

    Args:
        connection: the server.
        query: asks for a layer and an expert.
        chosen: the requests among which to look.
    """
    asked: dict[str, object] = {"layer": query.layer, "expert": query.expert}
    layer, has = _TOOK
    routing = f"SELECT {_TRACE} FROM routing"
    if not chosen.newest:
        which = f"{routing} WHERE {chosen.where} AND {layer} AND {has}"
        return Took(chosen, f"({_TRACE}) IN ({which})", asked)
    # Step by step, as each reads only where those before it hold: which experts a row has is most of it, and
    # what else tells the trace is read last. A trace has a row for each of its parts.
    which = f"{routing} PREWHERE {_IDS} AND {layer} AND {has} WHERE {_WHO}"
    traces = dict.fromkeys(connection.rows(which, "ttitiiii", {**chosen.asked, **asked}))
    return these(traces, chosen.newest)


def these(traces: Iterable[tuple[Any, ...]], newest: Mapping[tuple[Any, ...], int]) -> Took | None:
    """Those of these traces whose requests are among ``newest`` (see :class:`Chosen`); None: none are."""
    among_them = [trace for trace in traces if _of(trace) in newest]
    if not among_them:
        return None
    requests = {request: newest[request] for request in dict.fromkeys(map(_of, among_them))}
    return Took(Chosen(*named(requests), requests), *_one_of(among_them), among_them)


def _of(trace: tuple[Any, ...]) -> tuple[Any, ...]:
    """The request of a trace."""
    return trace[: len(REQUEST)]


def _one_of(traces: Sequence[tuple[Any, ...]]) -> tuple[str, dict[str, object]]:
    """Whether a row is of these traces, and the parameters of that."""
    clauses, names, arrays, asked = list[str](), list[str](), list[str](), dict[str, object]()
    for name, kind, values in zip(TRACE, _KINDS, zip(*traces, strict=True), strict=True):
        # Long arrays take the server long to read: what all have in common is told once.
        if len(set(values)) == 1:
            clauses.append(f"{name} = {{took_{name}:{kind}}}")
            asked[f"took_{name}"] = values[0]
        else:
            names.append(name)
            arrays.append(f"{{took_{name}:Array({kind})}}")
            asked[f"took_{name}"] = list(values)
    if len(names) == 1:  # what has one column is no tuple
        clauses.append(f"{names[0]} IN {arrays[0]}")
    elif names:
        clauses.append(f"({', '.join(names)}) IN arrayZip({', '.join(arrays)})")
    return f"({' AND '.join(clauses)})", asked
