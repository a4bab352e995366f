"""What a question may ask of an export: formats, columns, and which requests."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from fastapi import Query

from moescope.service.api.params.query import LARGEST
from moescope.service.api.schemas.trace_formats import TraceFormat
from moescope.service.traces.export import MOST_REQUESTS


class ExportFormat(StrEnum):
    """Formats of an export."""

    NDJSON = "ndjson"
    ARROW = "arrow"
    PARQUET = "parquet"

    @property
    def media_type(self) -> str:
        """Media type of the answer."""
        return "application/x-ndjson" if self is ExportFormat.NDJSON else TraceFormat(self.value).media_type


class Columns(StrEnum):
    """How a table has the experts of a position."""

    LAYERS = "layers"
    PACKED = "packed"


FormatParam = Annotated[
    ExportFormat,
    Query(
        alias="format",
        description="`ndjson`: a line has some positions of a request. `arrow` (a stream) and `parquet`: a "
        "row a position.",
    ),
]
ColumnsParam = Annotated[
    Columns,
    Query(
        description="Of a table: `layers`: a list of experts for each layer. `packed`: one column of bytes, "
        "the array [layers, top_k] of a position: faster to make and to read."
    ),
]
OnlyServerParam = Annotated[str | None, Query(description="Only of this vLLM deployment.")]
OnlyModelParam = Annotated[str | None, Query(description="Only of this model. A table is of one model.")]
OnlyRankParam = Annotated[int | None, Query(ge=0, le=LARGEST, description="Only of this DP rank.")]
OnlyLoraParam = Annotated[
    str | None, Query(description="Only of this LoRA adapter; `none`: only those without one.")
]
OnlyWeightsParam = Annotated[
    int | None,
    Query(ge=0, le=LARGEST, description="Only those that this version of the weights computed a token of."),
]
MinTokensParam = Annotated[int, Query(ge=1, le=LARGEST, description="Only with so many tokens computed.")]
JoinedParam = Annotated[
    bool,
    Query(
        description="Whole requests: each is joined from the traces of all who computed it, wherever they "
        "ran, and is there once, if its main trace matches."
    ),
]
LimitParam = Annotated[
    int, Query(ge=1, le=MOST_REQUESTS, description="Most requests of this answer; it may end before.")
]
CursorParam = Annotated[
    str | None,
    Query(description="X-Moescope-Next-Cursor of the answer before, or `cursor` of the last whole request."),
]
