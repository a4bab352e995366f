"""A client of moescope's HTTP API for routing traces: typed, synchronous and asynchronous, arrays as NumPy.

It needs ``moescope[client]``, and pyarrow (``moescope[parquet]``) for exports.
"""

from moescope.client.asynchronous import AsyncClient
from moescope.client.errors import CutOffError, MoescopeError, ProblemError, UnreachableError
from moescope.client.questions import TraceFilter
from moescope.client.records import ExportPart, LeftOut, Trace, TraceInfo
from moescope.client.synchronous import Client

__all__ = [
    "AsyncClient",
    "Client",
    "CutOffError",
    "ExportPart",
    "LeftOut",
    "MoescopeError",
    "ProblemError",
    "Trace",
    "TraceFilter",
    "TraceInfo",
    "UnreachableError",
]
