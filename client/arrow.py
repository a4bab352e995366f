"""An export's Arrow stream, read request by request. It needs pyarrow, an extra."""

from __future__ import annotations

import importlib
import io
from collections.abc import Iterator
from typing import Any, Final

import numpy as np
from typing_extensions import Buffer  # the standard library has it from Python 3.12 on

from moescope.client.errors import MoescopeError
from moescope.client.records import Int64Array, LeftOut, RequestRouting, Trace, TraceInfo, told_of

_READ_BYTES: Final = 1 << 16


def arrow() -> Any:
    """pyarrow.

    Raises:
        MoescopeError: it is not installed.
    """
    try:
        return importlib.import_module("pyarrow")  # here, since it is an optional extra
    except ImportError:
        raise MoescopeError("exports need pyarrow: pip install 'moescope[client,parquet]'") from None


class Incoming(io.RawIOBase):
    """The pieces of an answer as a file that is read forward, each when it is wanted."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        super().__init__()
        self._pieces = pieces
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer: Buffer) -> int:
        """Fill a buffer as far as one piece goes."""
        if not self._rest:
            self._rest = memoryview(next(self._pieces, b""))
        into = memoryview(buffer)
        count = min(len(into), len(self._rest))
        into[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count


class Reader:
    """The requests of one answer, one after the other; not more than one is held.

    Args:
        pieces: of the answer.

    Attributes:
        cursor: of the last request that was whole or left out; empty: none yet.
    """

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self.cursor = ""
        self._file = io.BufferedReader(Incoming(pieces), _READ_BYTES)

    def __iter__(self) -> Iterator[Trace | RequestRouting | LeftOut]:
        with arrow().ipc.open_stream(self._file) as stream:
            shape = _Shape(stream.schema.metadata)
            held: list[_Rows] = []
            for batch in stream:
                for rows in _requests(batch):
                    if held and held[0].cursor != rows.cursor:
                        yield shape.join(held)
                        self.cursor, held = held[0].cursor, []
                    held.append(rows)
            if held:
                yield shape.join(held)
                self.cursor = held[0].cursor


class _Rows:
    """The rows of a batch that are of one request."""

    def __init__(self, batch: Any) -> None:
        self.batch = batch
        self.cursor: str = batch.column("cursor")[0].as_py()

    def first(self, name: str) -> Any:
        return self.batch.column(name)[0].as_py()

    def numbers(self, name: str) -> Int64Array:
        numbers: Int64Array = self.batch.column(name).to_numpy(zero_copy_only=False)
        return numbers


def _requests(batch: Any) -> Iterator[_Rows]:
    """The rows of each request; those of one follow each other."""
    if not batch.num_rows:
        return
    of_row = batch.column("cursor").indices.to_numpy()
    edges = np.flatnonzero(np.diff(of_row)) + 1
    for begin, end in zip([0, *edges.tolist()], [*edges.tolist(), batch.num_rows], strict=True):
        yield _Rows(batch.slice(begin, end - begin))


class _Shape:
    """What the schema says of the packed experts."""

    def __init__(self, metadata: dict[bytes, bytes]) -> None:
        def numbers(name: str) -> Int64Array:
            text = metadata[f"moescope.{name}".encode()].decode()
            return np.array([int(number) for number in text.split(",") if number], np.int64)

        self._layers, self._experts, self._top_k = map(numbers, ("layers", "num_experts", "top_k"))
        self._dtype = np.dtype(metadata[b"moescope.dtype"].decode())

    def join(self, held: list[_Rows]) -> Trace | RequestRouting | LeftOut:
        """All rows of a request to its trace, or to the whole request where the stream has these."""
        first, last = held[0], held[-1]
        why = last.batch.column("left_out")[len(last.batch) - 1].as_py()
        if why is not None:
            return LeftOut(
                request_id=last.first("request_id") or "", client_id=last.first("client_id") or "", why=why
            )
        times = np.concatenate([rows.numbers("times_computed") for rows in held])
        rows: dict[str, Any] = {
            "experts": np.concatenate([self._experts_of(rows) for rows in held]),
            "first_position": int(first.first("position")),
            "layers": self._layers,
            "num_experts": self._experts,
            "top_k": self._top_k,
            "times_computed": times,
            "weights_version": np.concatenate([rows.numbers("weights_version") for rows in held]),
        }
        if "joined" not in first.batch.schema.names:
            return Trace(info=_info(first, int(times.sum())), **rows)
        told = told_of(first.first("joined"))
        info = _info(first, told.parts[0].tokens)
        return RequestRouting(info=info, parts=told.parts, missing=told.missing, absent=told.absent, **rows)

    def _experts_of(self, rows: _Rows) -> Any:
        shape = len(self._layers), int(self._top_k.max(initial=0))
        column, width = rows.batch.column("routed_experts"), self._dtype.itemsize * shape[0] * shape[1]
        data = memoryview(column.buffers()[1])[column.offset * width : (column.offset + len(column)) * width]
        experts = np.frombuffer(data, self._dtype).reshape(len(column), *shape)
        if not column.null_count:
            return experts
        there = column.is_valid().to_numpy(zero_copy_only=False)[:, np.newaxis, np.newaxis]
        return np.where(there, experts, np.array(-1 if self._dtype.kind == "i" else 0, self._dtype))


def _info(rows: _Rows, tokens: int) -> TraceInfo:
    words = ("request_id", "server", "model", "role", "pool", "lora", "outcome", "finish_reason")
    numbers = (
        "dp_rank",
        "prompt_tokens",
        "cached_tokens",
        "preemptions",
        "accepted_drafts",
        "rejected_drafts",
        "missing_stages",
        "missing_tokens",
    )
    times = ("started_at", "ended_at", "stored_at")
    named = {name: rows.first(name) for name in (*words, *numbers)}
    seconds = {name: rows.first(name).timestamp() for name in times}
    return TraceInfo(names=(named["request_id"], rows.first("client_id")), tokens=tokens, **named, **seconds)
