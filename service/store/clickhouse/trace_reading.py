"""One worker's trace in ClickHouse, read a part at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np

from moescope.capture.wire import Int64Array, MoeLayer
from moescope.capture.wire.traces import ExpertArray
from moescope.service.store.clickhouse.connection import Connection
from moescope.service.store.codec import no_ids, runs_of
from moescope.service.store.damage import unreadable_as_error
from moescope.service.store.records import StoreError
from moescope.service.store.steps import read_steps
from moescope.service.store.worker_trace import REMOVED, pieces_between

DAMAGED: Final = "a damaged segment of a trace"
WORKER_COLUMNS: Final = ("pp_rank", "tp_rank", "epoch", "number")
WORKER: Final = ", ".join(WORKER_COLUMNS)
THIS_REQUEST: Final = (
    "server = {server:String} AND model = {model:String} AND dp_rank = {dp_rank:Int64} AND "
    "request_id = {request_id:String} AND started_ms >= {first:Int64} AND started_ms <= {last:Int64}"
)
_THIS_TRACE: Final = f"{THIS_REQUEST} AND " + " AND ".join(
    f"{name} = {{{name}:Int64}}" for name in WORKER_COLUMNS
)


class TraceReader:
    """Reads one worker's trace, which is in ``parts`` of so many ``tokens``.

    Args:
        connection: the server.
        this: the parameters of :data:`_THIS_TRACE`.
        parts: their numbers, rising.
        tokens: int64, of each part.
        layers: the layers wanted, to the bytes of an id.
        told_runs: the runs of each part as they are stored, nothing where they are to be read.
    """

    def __init__(
        self,
        connection: Connection,
        this: Mapping[str, object],
        parts: Sequence[int],
        tokens: Int64Array,
        layers: Mapping[MoeLayer, int],
        told_runs: Sequence[bytes],
    ) -> None:
        self._connection = connection
        self._this = this
        self._parts = parts
        self._tokens = tokens
        self._layers = layers
        self._told_runs = told_runs

    def runs(self) -> Int64Array:
        """See :attr:`WorkerTrace.runs`."""
        with unreadable_as_error(self._connection.name):
            return runs_of(self._runs(), int(self._tokens.sum()))

    def _runs(self) -> Iterator[bytes]:
        for part, told in zip(self._parts, self._told_runs, strict=True):
            yield told or self._of_part("runs", part)

    def _of_part(self, column: str, part: int) -> bytes:
        rows = self._connection.rows(
            f"SELECT {column} FROM trace_part FINAL WHERE {_THIS_TRACE} AND part = {{part:Int64}}",
            "b",
            {**self._this, "part": part},
        )
        if not rows:
            raise StoreError(REMOVED)
        blob: bytes = rows[0][0]
        return blob

    def steps(self, start: int, end: int) -> Int64Array:
        """See :meth:`WorkerTrace.steps`; a query for each part."""
        found = [np.empty(0, np.int64)]
        with unreadable_as_error(self._connection.name):
            for at, a, b in pieces_between(self._tokens, start, end):
                stored = self._of_part("steps", self._parts[at])
                found.append(read_steps(stored, int(self._tokens[at]), a, b))
        return np.concatenate(found)

    def experts(self, start: int, end: int) -> tuple[ExpertArray, ...]:
        """See :meth:`WorkerTrace.read`; a query for each part."""
        found: dict[MoeLayer, list[Any]] = {
            layer: [no_ids(size, layer.top_k)] for layer, size in self._layers.items()
        }
        with unreadable_as_error(self._connection.name):
            for at, a, b in pieces_between(self._tokens, start, end):
                for layer, ids in self._part(self._parts[at], a, b - a).items():
                    found[layer].append(ids)
            joined: tuple[ExpertArray, ...] = tuple(np.concatenate(column) for column in found.values())
            if any(len(ids) != end - start for ids in joined):
                raise ValueError(DAMAGED)
            return joined

    def _part(self, part: int, first: int, count: int) -> dict[MoeLayer, ExpertArray]:
        """The ids of some tokens of a part."""
        rows = self._connection.rows(
            "SELECT layer, num_experts, top_k, "
            "arraySlice(ids8, 1 + {skip:Int64} * top_k, {count:Int64} * top_k), "
            "arraySlice(ids16, 1 + {skip:Int64} * top_k, {count:Int64} * top_k) FROM routing FINAL "
            f"WHERE {_THIS_TRACE} AND part = {{part:Int64}} AND layer IN {{layers:Array(Int64)}}",
            "iiiBH",
            {
                **self._this,
                "part": part,
                "skip": first,
                "count": count,
                "layers": sorted({layer.layer for layer in self._layers}),
            },
        )
        if self._layers and not rows:
            raise StoreError(REMOVED)
        found: dict[MoeLayer, ExpertArray] = {}
        for layer, num_experts, top_k, ids8, ids16 in rows:
            shape, ids = MoeLayer(layer, num_experts, top_k), ids8 if len(ids8) else ids16
            if shape in self._layers:
                if len(ids) != count * top_k:
                    raise ValueError(DAMAGED)
                found[shape] = ids.reshape(-1, top_k)
        return found
