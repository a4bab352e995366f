"""Slices of time in which requests are looked for, the newest first.

The newest are asked for. So requests are looked at by when their parts came, from the newest slice on, each
larger than the one before, until there are enough: as a rule the first one has them.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from moescope.service.store.clickhouse.connection import Connection
from moescope.service.store.clickhouse.trace_choosing import Chosen, Took, newest_among, that_took, these
from moescope.service.store.records import TraceQuery

_LEAST: Final = 256
"""Parts whose requests are looked at first, at least."""
_GROWTH: Final = 4


class Slice(NamedTuple):
    """What to look at.

    Attributes:
        low: numbers of the parts that came in it are not below this.
        high: and below this.
        size: about so many parts.
        most: of requests that took an expert so many are enough.
    """

    low: int
    high: int
    size: int
    most: int

    def before(self) -> Slice:
        """The slice before it, a larger one; where that begins is to be found out."""
        return Slice(0, self.low, self.size * _GROWTH, self.most * _GROWTH)


def newest(query: TraceQuery, high: int) -> Slice:
    """The slice to begin with, below a number; where it begins is to be found out."""
    # Of requests of 20 tokens about half have one that took an expert; each that is looked at or read costs.
    size = max(_LEAST, 2 * query.limit if query.expert is None else 5 * query.limit // 2)
    return Slice(0, high, size, query.limit + max(1, query.limit // 8))


def requests_in(
    connection: Connection, query: TraceQuery, slice_: Slice
) -> tuple[Slice, Chosen | Took | None]:
    """The requests of a slice that may match, and how far back was looked; None: there are none."""
    if query.layer is None or query.expert is None:
        low, chosen = newest_among(connection, query, slice_.high, slice_.size)
        return slice_._replace(low=low), chosen
    return _that_took(connection, query, slice_)


def _that_took(connection: Connection, query: TraceQuery, slice_: Slice) -> tuple[Slice, Took | None]:
    """Those that took the query's expert, of as many slices as have enough: each takes little time."""
    joined: Took | None = None
    last, looked, parts = slice_, slice_, 0
    while True:
        low, chosen = newest_among(connection, query, looked.high, looked.size)
        looked = looked._replace(low=low)
        found = None if chosen is None else that_took(connection, query, chosen)
        if found is not None and not found.traces:  # too many to be named: for themselves
            return (looked, found) if joined is None else (last, joined)
        joined = _joined(joined, found)
        last = slice_._replace(low=looked.low, size=max(slice_.size, looked.size))
        found_so_far = 0 if joined is None else len(joined.chosen.newest)
        if looked.low == 0 or found_so_far >= slice_.most:
            return _narrowed(joined, last)
        parts += looked.size
        looked = looked.before()._replace(size=_size(looked.size, parts, found_so_far, slice_.most))


def _size(size: int, parts: int, found: int, most: int) -> int:
    """Of the next slice: as large as will do if as many of it match, and no larger than another would be."""
    wanted = size * _GROWTH if found == 0 else 5 * parts * (most - found) // (4 * found) + 1
    return min(max(wanted, size // 4), size * _GROWTH)


def _joined(one: Took | None, other: Took | None) -> Took | None:
    """Requests of two slices; the first is the newer."""
    if one is None or other is None:
        return one or other
    return these(dict.fromkeys([*one.traces, *other.traces]), {**other.chosen.newest, **one.chosen.newest})


def _narrowed(took: Took | None, slice_: Slice) -> tuple[Slice, Took | None]:
    """The newest of them, as many as are enough, and the slice in which these are all."""
    if took is None or len(took.chosen.newest) <= slice_.most:
        return slice_, took
    low = sorted(took.chosen.newest.values(), reverse=True)[slice_.most - 1]
    enough = {request: number for request, number in took.chosen.newest.items() if number >= low}
    return slice_._replace(low=low), these(took.traces, enough)
