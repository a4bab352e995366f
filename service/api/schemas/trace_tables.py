"""A trace as a table of Parquet or Arrow, written some positions at a time. Both need pyarrow, an extra."""

from __future__ import annotations

import importlib
from collections.abc import Generator
from types import ModuleType
from typing import Any, Final

import numpy as np

from moescope.service.api.problems import ProblemError
from moescope.service.api.schemas.sink import Sink
from moescope.service.api.schemas.trace_formats import (
    BLOCK_BYTES,
    GROUP_BYTES,
    TraceFormat,
    as_npz,
    as_raw,
    position_bytes,
    rows_of,
)
from moescope.service.traces.forms import Shaped
from moescope.service.traces.routing import Rows


def arrow(part: str = "pyarrow") -> ModuleType:
    """pyarrow, or a part of it.

    Raises:
        ProblemError: it is not installed (501).
    """
    try:
        return importlib.import_module(part)  # here, since it is an optional extra
    except ImportError:
        raise ProblemError(
            501,
            "no-parquet",
            "Parquet and Arrow are not installed",
            "Install moescope[parquet] where the service runs, or take .npz or JSON.",
        ) from None


def as_parquet(routing: Shaped) -> Generator[bytes]:
    """A row a position: position, times_computed, and for each layer a list of experts, null if not computed.

    Raises:
        ProblemError: pyarrow is not installed.
    """
    return _parquet(routing, arrow(), arrow("pyarrow.parquet"))


def as_arrow(routing: Shaped) -> Generator[bytes]:
    """The same table as an IPC stream, a batch after the other.

    Raises:
        ProblemError: pyarrow is not installed.
    """
    return _arrow(routing, arrow())


def _parquet(routing: Shaped, pa: Any, pq: Any) -> Generator[bytes]:
    sink, writer, first = Sink(), None, routing.first
    for rows in routing.chunks(rows_of(GROUP_BYTES, position_bytes(routing))):
        table = pa.Table.from_batches([batch_of(pa, routing, first, rows)])
        first += len(rows.times)
        writer = writer or pq.ParquetWriter(sink, table.schema, compression="zstd")
        writer.write_table(table)
        yield sink.take()
    if writer is not None:
        writer.close()
    yield sink.take()


def _arrow(routing: Shaped, pa: Any) -> Generator[bytes]:
    sink, writer, first = Sink(), None, routing.first
    for rows in routing.chunks(rows_of(BLOCK_BYTES, position_bytes(routing))):
        batch = batch_of(pa, routing, first, rows)
        first += len(rows.times)
        writer = writer or pa.ipc.new_stream(sink, batch.schema)
        writer.write_batch(batch)
        yield sink.take()
    if writer is not None:
        writer.close()
    yield sink.take()


def batch_of(pa: Any, routing: Shaped, first: int, rows: Rows) -> Any:
    """The columns of some positions, from ``first`` on, as a RecordBatch."""
    missing = pa.array(rows.times == 0) if routing.has_gaps else None
    columns = {
        "position": pa.array(np.arange(first, first + len(rows.times))),
        "times_computed": pa.array(rows.times),
    }
    for i, layer in enumerate(routing.layers):
        flat = pa.array(np.ascontiguousarray(rows.experts[:, i, : layer.top_k]).reshape(-1))
        columns[f"layer_{layer.layer}"] = pa.FixedSizeListArray.from_arrays(flat, layer.top_k, mask=missing)
    return pa.RecordBatch.from_arrays(list(columns.values()), list(columns))


BINARY: Final = {
    TraceFormat.NPZ: as_npz,
    TraceFormat.PARQUET: as_parquet,
    TraceFormat.ARROW: as_arrow,
    TraceFormat.RAW: as_raw,
}
"""What writes each format but JSON."""
