"""A trace as JSON, npz or raw bytes, written block by block: none is ever there as a whole.

Parquet and Arrow are in :mod:`moescope.service.api.schemas.trace_tables`.
"""

from __future__ import annotations

import itertools
import json
import math
import zipfile
from collections.abc import Callable, Generator, Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import IO, Any, Final, cast

import numpy as np
import numpy.typing as npt

from moescope.service.api.problems import ProblemError
from moescope.service.api.schemas.json_ids import json_ids
from moescope.service.api.schemas.sink import Sink
from moescope.service.api.schemas.traces import TraceOut
from moescope.service.traces.extent import Extent
from moescope.service.traces.forms import Shaped
from moescope.service.traces.routing import ExpertRows

BLOCK_BYTES: Final = 1 << 20
"""Bytes of experts, int16, that are made at once; a single position may have more."""
JSON_BYTES: Final = BLOCK_BYTES // 8
"""The same for JSON: as text, which is copied some times, they take up to 20 times as many."""
GROUP_BYTES: Final = 2 << 20
"""Bytes of a row group of Parquet, which is always made whole."""
_CHUNK: Final = 8192  # positions made at once at most
_TIMES: Final = 1 << 15  # positions whose times_computed are made at once
_NUMBER_BYTES: Final = 48  # of a number on its way to JSON: an object, its place in a list, its digits
_COLUMN_BYTES: Final = 2048  # of a column of a row group in a Parquet file's footer
_write_header: Final[Callable[[IO[bytes], dict[str, object]], None]] = np.lib.format.write_array_header_1_0


class TraceFormat(StrEnum):
    """Formats by their suffix."""

    JSON = "json"
    NPZ = "npz"
    PARQUET = "parquet"
    ARROW = "arrow"
    RAW = "raw"

    @property
    def media_type(self) -> str:
        """Media type of the answer."""
        return _MEDIA_TYPES[self]


_MEDIA_TYPES: Final = {
    TraceFormat.JSON: "application/json",
    TraceFormat.NPZ: "application/x-npz",
    TraceFormat.PARQUET: "application/vnd.apache.parquet",
    TraceFormat.ARROW: "application/vnd.apache.arrow.stream",
    TraceFormat.RAW: "application/octet-stream",
}


def memory_of(kind: TraceFormat, extent: Extent, tokens: int) -> int:
    """The most bytes that an answer holds at any time while it is made and sent, known before it is begun.

    Args:
        kind: the format.
        extent: of the routing, of which nothing was read yet.
        tokens: positions of the answer; Parquet's footer grows with them.
    """
    position = 2 * extent.layers * extent.top_k
    stored = 3 * extent.token_bytes  # of a position: unpacked, joined, chosen
    match kind:
        case TraceFormat.JSON:
            of_block = rows_of(JSON_BYTES, position) * (stored + position * (2 + _NUMBER_BYTES // 2))
            return extent.reading + of_block + _TIMES * _NUMBER_BYTES
        case TraceFormat.PARQUET:
            rows = rows_of(GROUP_BYTES, position)
            footer = footer_bytes(tokens, rows, extent.layers + 2)
            return extent.reading + rows * (stored + 8 * position) + footer
        case TraceFormat.ARROW:
            return extent.reading + rows_of(BLOCK_BYTES, position) * (stored + 8 * position)
        case _:
            of_block = rows_of(BLOCK_BYTES, position) * (stored + 5 * position)
            return extent.reading + of_block + _TIMES * 8 * 4


def footer_bytes(tokens: int, rows: int, columns: int) -> int:
    """The most that the footer of a Parquet file takes, with so many rows in each of its groups."""
    return -(-tokens // rows) * columns * _COLUMN_BYTES


def rows_of(nbytes: int, position: int) -> int:
    """Positions of so many bytes that are made together; at least one."""
    return min(_CHUNK, max(1, nbytes // max(1, position)))


def position_bytes(routing: Shaped) -> int:
    """Bytes of a position's experts, at most 2 each."""
    return 2 * routing.shape[1] * routing.shape[2]


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


def headers_of(kind: TraceFormat, routing: Shaped) -> dict[str, str]:
    """What a reader of raw bytes must know: shape, type, layers and first position; and its length."""
    nbytes = routing.dtype.itemsize * math.prod(routing.shape)
    length = {"Content-Length": str(nbytes)} if kind is TraceFormat.RAW else {}
    return {
        **length,
        "X-Moescope-Shape": ",".join(str(size) for size in routing.shape),
        "X-Moescope-Dtype": dtype_name(routing),
        "X-Moescope-Layers": ",".join(str(layer.layer) for layer in routing.layers),
        "X-Moescope-First-Position": str(routing.first),
    }


def as_json(request: TraceOut, routing: Shaped) -> Generator[bytes]:
    """The JSON of a :class:`TraceDetail`, some positions at a time."""
    head: dict[str, Any] = {
        **request.model_dump(),
        "first_position": routing.first,
        "layers": [layer.layer for layer in routing.layers],
        "num_experts": [layer.num_experts for layer in routing.layers],
        "top_k": [layer.top_k for layer in routing.layers],
        "weights": [item._asdict() for item in routing.weights],
    }
    chunks = routing.chunks(rows_of(JSON_BYTES, position_bytes(routing)))
    first = next(chunks)  # what can't be read is an error of its own before anything was sent
    yield json.dumps(head)[:-1].encode() + b', "times_computed": ['
    begun = False
    for times in routing.times(_TIMES):
        yield (b", " if begun else b"") + json.dumps(times.tolist())[1:-1].encode()
        begun = True
    yield b'], "routed_experts": ['
    begun = False
    for rows in itertools.chain([first], chunks):
        yield (b"," if begun else b"") + json_ids(rows.experts)[1:-1]
        begun = True
    yield b"]}"


def as_npz(routing: Shaped, texts: Mapping[str, str] = MappingProxyType({})) -> Generator[bytes]:
    """``numpy.load`` gives routed_experts, all else of the JSON that is an array, and ``texts`` by name."""
    sink = Sink()
    with zipfile.ZipFile(cast(IO[bytes], sink), "w") as file:
        with file.open("routed_experts.npy", "w", force_zip64=True) as entry:
            _write_header(
                entry, {"descr": dtype_name(routing), "fortran_order": False, "shape": routing.shape}
            )
            for rows in routing.chunks(rows_of(BLOCK_BYTES, position_bytes(routing))):
                entry.write(_raw(routing, rows.experts))
                yield sink.take()
        arrays: list[tuple[str, npt.ArrayLike]] = [
            ("first_position", np.int64(routing.first)),
            ("layers", np.array([layer.layer for layer in routing.layers], np.int64)),
            ("num_experts", np.array([layer.num_experts for layer in routing.layers], np.int64)),
            ("top_k", np.array([layer.top_k for layer in routing.layers], np.int64)),
            ("weights", np.array(routing.weights, np.int64).reshape(-1, 3)),
            *((name, np.str_(text)) for name, text in texts.items()),
        ]
        for name, array in arrays:
            with file.open(f"{name}.npy", "w") as entry:
                np.save(entry, array)
        with file.open("times_computed.npy", "w", force_zip64=True) as entry:
            _write_header(entry, {"descr": "<i8", "fortran_order": False, "shape": routing.shape[:1]})
            for times in routing.times(_TIMES):
                entry.write(times.astype("<i8", copy=False).tobytes())
                yield sink.take()
    yield sink.take()


def as_raw(routing: Shaped) -> Generator[bytes]:
    """Little-endian in C order; :func:`headers_of` says the type and the shape."""
    for rows in routing.chunks(rows_of(BLOCK_BYTES, position_bytes(routing))):
        yield _raw(routing, rows.experts)


def dtype_name(routing: Shaped) -> str:
    """The type of a number as NumPy writes it, little-endian: ``<i2``, ``|u1`` or ``<u2``."""
    return routing.dtype.newbyteorder("<").str


def _raw(routing: Shaped, experts: ExpertRows) -> bytes:
    return experts.astype(dtype_name(routing), copy=False).tobytes()
