"""A client of moescope's HTTP API for routing traces: typed, synchronous and asynchronous, arrays as NumPy.

It needs ``moescope[client]``, and pyarrow (``moescope[parquet]``) for exports.
"""

from moescope.client.asynchronous import AsyncClient
from moescope.client.errors import CutOffError, MoescopeError, ProblemError, UnreachableError
from moescope.client.questions import TraceFilter
from moescope.client.records import (
    ByVersion,
    ExportPart,
    LeftOut,
    MissingPositions,
    RequestRouting,
    RoutingPart,
    Trace,
    TraceInfo,
)
from moescope.client.synchronous import Client

__all__ = [
    "AsyncClient",
    "ByVersion",
    "Client",
    "CutOffError",
    "ExportPart",
    "LeftOut",
    "MissingPositions",
    "MoescopeError",
    "ProblemError",
    "RequestRouting",
    "RoutingPart",
    "Trace",
    "TraceFilter",
    "TraceInfo",
    "UnreachableError",
]
