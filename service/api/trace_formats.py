"""A trace as JSON, npz, Parquet or raw bytes."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from enum import StrEnum
from typing import Any, Final

import numpy as np

from moescope.service.api.models import TraceOut
from moescope.service.api.problems import ProblemError
from moescope.service.routing import Routing

_CHUNK: Final = 256  # positions written at once


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
    """The first format of the Accept header that there is; JSON if anything goes.

    Raises:
        ProblemError: there is none of those.
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
    """What one must know to read raw bytes: shape, type, layers and first position."""
    return {
        "X-Moescope-Shape": ",".join(str(size) for size in routing.experts.shape),
        "X-Moescope-Dtype": "<i2",
        "X-Moescope-Layers": ",".join(str(layer.layer) for layer in routing.layers),
        "X-Moescope-First-Position": str(routing.first),
    }


def as_json(request: TraceOut, routing: Routing) -> Iterator[bytes]:
    """A JSON object, some positions at a time."""
    head: dict[str, Any] = {
        **request.model_dump(),
        "first_position": routing.first,
        "layers": [layer.layer for layer in routing.layers],
        "num_experts": [layer.num_experts for layer in routing.layers],
        "top_k": [layer.top_k for layer in routing.layers],
        "times_computed": routing.times_computed.tolist(),
    }
    yield json.dumps(head)[:-1].encode() + b', "routed_experts": ['
    for start in range(0, len(routing.experts), _CHUNK):
        rows = json.dumps(routing.experts[start : start + _CHUNK].tolist(), separators=(",", ":"))[1:-1]
        yield (b"," if start else b"") + rows.encode()
    yield b"]}"


def as_npz(routing: Routing) -> bytes:
    """``numpy.load`` gives routed_experts, first_position, layers, num_experts, top_k, times_computed."""
    file = io.BytesIO()
    np.savez(
        file,
        routed_experts=routing.experts,
        first_position=np.int64(routing.first),
        layers=np.array([layer.layer for layer in routing.layers], np.int64),
        num_experts=np.array([layer.num_experts for layer in routing.layers], np.int64),
        top_k=np.array([layer.top_k for layer in routing.layers], np.int64),
        times_computed=routing.times_computed,
    )
    return file.getvalue()


def as_raw(routing: Routing) -> bytes:
    """Little-endian int16 in C order; :func:`headers_of` says the shape."""
    return routing.experts.astype("<i2", copy=False).tobytes()


def as_parquet(routing: Routing) -> bytes:
    """A row a position: position, times_computed, and for each layer a list of experts, null if not computed.

    Raises:
        ProblemError: pyarrow is not installed.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise ProblemError(
            501, "no-parquet", "Parquet is not installed", "Install moescope[parquet] here, or take .npz."
        ) from None
    positions = np.arange(routing.first, routing.first + len(routing.experts))
    missing = pa.array(routing.times_computed == 0)
    columns = {"position": pa.array(positions), "times_computed": pa.array(routing.times_computed)}
    for i, layer in enumerate(routing.layers):
        flat = pa.array(np.ascontiguousarray(routing.experts[:, i, : layer.top_k]).reshape(-1))
        columns[f"layer_{layer.layer}"] = pa.FixedSizeListArray.from_arrays(flat, layer.top_k, mask=missing)
    sink = io.BytesIO()
    pq.write_table(pa.table(columns), sink, compression="zstd")
    return sink.getvalue()
