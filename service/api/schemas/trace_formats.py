"""A trace as JSON, npz, Parquet or raw bytes."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable, Iterator
from enum import StrEnum
from typing import IO, Any, Final, cast

import numpy as np
from typing_extensions import Buffer  # the standard library has it from Python 3.12 on

from moescope.service.api.problems import ProblemError
from moescope.service.api.schemas.traces import TraceOut
from moescope.service.traces.routing import Int16Array, Routing

_JSON_CHUNK: Final = 256  # positions written at once
_CHUNK: Final = 8192  # positions
_write_header: Final[Callable[[IO[bytes], dict[str, object]], None]] = np.lib.format.write_array_header_1_0


class TraceFormat(StrEnum):
    """Formats by their suffix."""

    JSON = "json"
    NPZ = "npz"
    PARQUET = "parquet"
    RAW = "raw"

    @property
    def media_type(self) -> str:
        """Media type of the answer."""
        return _MEDIA_TYPES[self]


_MEDIA_TYPES: Final = {
    TraceFormat.JSON: "application/json",
    TraceFormat.NPZ: "application/x-npz",
    TraceFormat.PARQUET: "application/vnd.apache.parquet",
    TraceFormat.RAW: "application/octet-stream",
}


def negotiate(accept: str) -> TraceFormat:
    """The first format of the Accept header that the service has; JSON if the header takes any.

    Raises:
        ProblemError: the service has none of them (406).
    """
    wanted = [item.partition(";")[0].strip().lower() for item in accept.split(",") if item.strip()]
    for media_type in wanted:
        if media_type in ("*/*", "application/*"):
            return TraceFormat.JSON
        for kind, name in _MEDIA_TYPES.items():
            if media_type == name:
                return kind
    if not wanted:
        return TraceFormat.JSON
    there_are = ", ".join(_MEDIA_TYPES.values())
    raise ProblemError(406, "no-such-format", "No such format", f"Accept one of {there_are}.")


def headers_of(routing: Routing) -> dict[str, str]:
    """What a reader of raw bytes must know: shape, type, layers and first position."""
    return {
        "X-Moescope-Shape": ",".join(str(size) for size in routing.shape),
        "X-Moescope-Dtype": "<i2",
        "X-Moescope-Layers": ",".join(str(layer.layer) for layer in routing.layers),
        "X-Moescope-First-Position": str(routing.first),
    }


def as_json(request: TraceOut, routing: Routing) -> Iterator[bytes]:
    """The JSON of a :class:`TraceDetail`, some positions at a time."""
    head: dict[str, Any] = {
        **request.model_dump(),
        "first_position": routing.first,
        "layers": [layer.layer for layer in routing.layers],
        "num_experts": [layer.num_experts for layer in routing.layers],
        "top_k": [layer.top_k for layer in routing.layers],
        "times_computed": routing.times_computed.tolist(),
        "weights_versions": routing.weights_versions.tolist(),
    }
    yield json.dumps(head)[:-1].encode() + b', "routed_experts": ['
    begun = False
    for chunk in routing.chunks(_JSON_CHUNK):
        rows = json.dumps(chunk.tolist(), separators=(",", ":"))[1:-1]
        yield (b"," if begun else b"") + rows.encode()
        begun = True
    yield b"]}"


def as_npz(routing: Routing) -> Iterator[bytes]:
    """``numpy.load`` gives routed_experts, weights_versions and all else of the JSON that is an array."""
    sink = _Sink()
    with zipfile.ZipFile(cast(IO[bytes], sink), "w") as file:
        with file.open("routed_experts.npy", "w", force_zip64=True) as entry:
            header = {"descr": "<i2", "fortran_order": False, "shape": routing.shape}
            _write_header(entry, header)
            for chunk in routing.chunks(_CHUNK):
                entry.write(_raw(chunk))
                yield sink.take()
        for name, array in (
            ("first_position", np.int64(routing.first)),
            ("layers", np.array([layer.layer for layer in routing.layers], np.int64)),
            ("num_experts", np.array([layer.num_experts for layer in routing.layers], np.int64)),
            ("top_k", np.array([layer.top_k for layer in routing.layers], np.int64)),
            ("times_computed", routing.times_computed),
            ("weights_versions", routing.weights_versions),
        ):
            with file.open(f"{name}.npy", "w") as entry:
                np.save(entry, array)
    yield sink.take()


def as_raw(routing: Routing) -> Iterator[bytes]:
    """Little-endian int16 in C order; :func:`headers_of` says the shape."""
    for chunk in routing.chunks(_CHUNK):
        yield _raw(chunk)


def as_parquet(routing: Routing) -> Iterator[bytes]:
    """A row a position: position, times_computed, weights_version, and for each layer a list of experts.

    The list is null where the position was not computed.

    Raises:
        ProblemError: pyarrow is not installed.
    """
    try:
        import pyarrow.parquet as pq  # here, since it is an optional extra
    except ImportError:
        raise ProblemError(
            501, "no-parquet", "Parquet is not installed", "Install moescope[parquet] here, or take .npz."
        ) from None
    return _parquet(routing, pq)


def _parquet(routing: Routing, pq: Any) -> Iterator[bytes]:
    sink, writer, at = _Sink(), None, 0
    for chunk in routing.chunks(_CHUNK):
        table = _table(routing, at, chunk)
        at += len(chunk)
        writer = writer or pq.ParquetWriter(sink, table.schema, compression="zstd")
        writer.write_table(table)
        yield sink.take()
    if writer is not None:
        writer.close()
    yield sink.take()


def _table(routing: Routing, at: int, experts: Int16Array) -> Any:
    import pyarrow as pa  # here, since it is an optional extra

    times = routing.times_computed[at : at + len(experts)]
    first = routing.first + at
    missing = pa.array(times == 0)
    columns = {
        "position": pa.array(np.arange(first, first + len(experts))),
        "times_computed": pa.array(times),
        "weights_version": pa.array(routing.weights_versions[at : at + len(experts)]),
    }
    for i, layer in enumerate(routing.layers):
        flat = pa.array(np.ascontiguousarray(experts[:, i, : layer.top_k]).reshape(-1))
        columns[f"layer_{layer.layer}"] = pa.FixedSizeListArray.from_arrays(flat, layer.top_k, mask=missing)
    return pa.table(columns)


def _raw(experts: Int16Array) -> bytes:
    return experts.astype("<i2", copy=False).tobytes()


class _Sink(io.RawIOBase):
    """A file that keeps what is written until :meth:`take` gets it. It can't seek."""

    def __init__(self) -> None:
        super().__init__()
        self._parts: list[bytes] = []
        self._written = 0

    def writable(self) -> bool:
        """It is."""
        return True

    def write(self, data: Buffer) -> int:
        """Take bytes."""
        self._parts.append(bytes(data))
        self._written += len(self._parts[-1])
        return len(self._parts[-1])

    def tell(self) -> int:
        """Bytes that were written."""
        return self._written

    def take(self) -> bytes:
        """What was written since the last call."""
        taken, self._parts = b"".join(self._parts), []
        return taken
