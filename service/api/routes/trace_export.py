"""Many traces in one answer: GET /v1/traces/export."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any, Final

from fastapi import APIRouter, Request, Response

from moescope.capture.wire import MoeLayer
from moescope.service.api.limits.blocks import send_blocks
from moescope.service.api.limits.downloads import Downloads
from moescope.service.api.limits.turns import Turns
from moescope.service.api.params.checked import CheckedRoute
from moescope.service.api.params.query import EndParam, LayerParam, StartParam, parse_bounds
from moescope.service.api.params.stored import existing, parse_cursor
from moescope.service.api.params.traced import TracedPoolParam
from moescope.service.api.problems import ProblemError, documented
from moescope.service.api.schemas.export_asked import (
    Columns,
    ColumnsParam,
    CursorParam,
    ExportFormat,
    FormatParam,
    JoinedParam,
    LimitParam,
    MinTokensParam,
    OnlyLoraParam,
    OnlyModelParam,
    OnlyRankParam,
    OnlyServerParam,
    OnlyWeightsParam,
)
from moescope.service.api.schemas.export_lines import as_lines, line_positions
from moescope.service.api.schemas.export_reading import AHEAD_BYTES, READING_BYTES, ExportReader
from moescope.service.api.schemas.export_tables import (
    BATCH_BYTES,
    GROUP_BYTES,
    TableShape,
    arrow_blocks,
    parquet_blocks,
)
from moescope.service.api.schemas.export_whole import MAX_TOLD, WHOLE_BYTES, WholeReader
from moescope.service.api.schemas.trace_formats import TraceFormat, memory_of, rows_of
from moescope.service.api.schemas.trace_shapes import (
    DecoderLayersParam,
    Depths,
    Form,
    FormParam,
    Missing,
    MissingParam,
    Wish,
)
from moescope.service.live.state import LiveState
from moescope.service.store.interface import Store
from moescope.service.store.records import TraceQuery
from moescope.service.traces.export import Chosen, LeftOut, Piece, choose, layers_of, pieces
from moescope.service.traces.extent import Extent
from moescope.service.traces.forms import Shaped

_TABLE_TOKENS: Final = 1 << 20
"""Tokens of one Parquet file at most, unless one request has more: its footer grows with them."""
_STREAM_TOKENS: Final = 1 << 24

_BYTES: Final = {ExportFormat.ARROW: BATCH_BYTES, ExportFormat.PARQUET: GROUP_BYTES}
_TABLES: Final = {ExportFormat.ARROW: arrow_blocks, ExportFormat.PARQUET: parquet_blocks}
_ANSWER: Final[dict[int | str, dict[str, Any]]] = {
    200: {
        "content": {item.media_type: {} for item in ExportFormat},
        "description": "The traces. X-Moescope-Requests and X-Moescope-Tokens tell how many this answer has, "
        "X-Moescope-Next-Cursor where the next one goes on; it is empty in the last one.",
    },
}


def trace_export_router(
    state: LiveState, store: Store | None, turns: Turns, downloads: Downloads
) -> APIRouter:
    """The route, which must come before ``/v1/traces/{request_id}``; see ``traces_router``."""
    router = APIRouter(tags=["traces"], route_class=CheckedRoute)

    @router.get(
        "/v1/traces/export",
        response_class=Response,
        responses={**_ANSWER, **documented(400, 404, 409, 422, 501, 503)},
    )
    async def export(
        request: Request,
        kind: FormatParam = ExportFormat.NDJSON,
        server: OnlyServerParam = None,
        model: OnlyModelParam = None,
        pool: TracedPoolParam = None,
        dp_rank: OnlyRankParam = None,
        lora: OnlyLoraParam = None,
        weights_version: OnlyWeightsParam = None,
        start: StartParam = None,
        end: EndParam = None,
        min_tokens: MinTokensParam = 1,
        layer: LayerParam = None,
        columns: ColumnsParam = Columns.LAYERS,
        form: FormParam = Form.MOESCOPE,
        missing: MissingParam = Missing.REFUSE,
        decoder_layers: DecoderLayersParam = None,
        joined: JoinedParam = False,
        limit: LimitParam = 1000,
        cursor: CursorParam = None,
    ) -> Response:
        """The experts of many requests, newest first, made while they are sent.

        A request that can't be given, or not to its end, has a row or a line with `left_out`, which says why.
        With `joined` each is whole, as GET /v1/requests/{id}/routing has it, and is there once: in place of
        its main trace. `joined` of its rows or lines has `parts` and `missing`.
        Whatever ends the answer early, `cursor` of the last whole request leads on.
        """
        wish = Wish(form, missing, decoder_layers)
        if columns is Columns.PACKED and kind is ExportFormat.NDJSON:
            raise ProblemError(
                400, "wrong-form", "Lines have no columns", "columns=packed needs a table: format=arrow."
            )
        bounds = parse_bounds(start, end, state.now())
        query = TraceQuery(
            server=server,
            model=model,
            pool=pool,
            dp_rank=dp_rank,
            start=bounds.start,
            end=bounds.end,
            min_tokens=min_tokens,
            before=parse_cursor(cursor),
            weights_version=weights_version,
            limit=limit,
        )

        def look() -> _Export:
            most = _TABLE_TOKENS if kind is ExportFormat.PARQUET else _STREAM_TOKENS
            chosen = choose(existing(store), query, "" if lora == "none" else lora, most)
            depths = Depths(state.producers())
            reader = ExportReader(existing(store), wish, depths, layer)
            whole = WholeReader(existing(store), wish, depths, layer)
            lines = kind is ExportFormat.NDJSON
            shape = None if lines else reader.shape(chosen, columns is Columns.PACKED, joined)
            known = layers_of(existing(store), chosen.numbers) if shape is None else shape.layers
            items = pieces(
                existing(store),
                query,
                chosen,
                whole.reading if joined else reader.reading,
                line_positions if shape is None else _positions(kind, shape),
                None if shape is None else shape.layers,
                *([] if joined else [reader.expect]),
            )
            return _Export(kind, items, chosen, shape, _extent(known, joined))

        return await send_blocks(request, look, turns, downloads)

    return router


def _positions(kind: ExportFormat, shape: TableShape) -> Callable[[Shaped], int]:
    rows = rows_of(_BYTES[kind], shape.position_bytes)
    return lambda _: rows


def _extent(layers: Sequence[MoeLayer], joined: bool) -> Extent:
    """The most that a request of these layers may be."""
    top_k = max((layer.top_k for layer in layers), default=0)
    reading = WHOLE_BYTES + 4 * MAX_TOLD if joined else READING_BYTES + AHEAD_BYTES
    extent = Extent(len(layers), top_k, 2 * len(layers) * top_k, reading)
    return extent.grown_to(len(layers)) if joined else extent


class _Export:
    """An export that was found and is to be sent.

    Args:
        kind: the format.
        items: the pieces of the requests, which are read when they are wanted.
        chosen: the requests.
        shape: of the table; None: lines.
        extent: of the largest position, for lines.
    """

    def __init__(
        self,
        kind: ExportFormat,
        items: Iterator[Piece | LeftOut],
        chosen: Chosen,
        shape: TableShape | None,
        extent: Extent,
    ) -> None:
        self._kind, self._items, self._chosen, self._shape, self._extent = kind, items, chosen, shape, extent

    @property
    def media_type(self) -> str:
        """Of the answer."""
        return self._kind.media_type

    @property
    def memory(self) -> int:
        """The most bytes that making and sending it takes at any time, with its requests' numbers."""
        numbers = 16 * len(self._chosen.numbers)
        if self._shape is None:
            return numbers + memory_of(TraceFormat.JSON, self._extent, 0)
        rows = self._chosen.tokens + len(self._chosen.numbers)
        parquet = self._kind is ExportFormat.PARQUET
        reading = WHOLE_BYTES if self._shape.joined else READING_BYTES + AHEAD_BYTES
        return numbers + reading + self._shape.memory(_BYTES[self._kind], rows if parquet else 0)

    def begin(self) -> tuple[bytes, Generator[bytes], dict[str, str]]:
        """The first block, what makes the others, and headers."""
        if self._shape is None:
            blocks = as_lines(self._items)
        else:
            blocks = _TABLES[self._kind](self._items, self._shape)
        after = self._chosen.next_before
        headers = {
            "X-Moescope-Requests": str(len(self._chosen.numbers)),
            "X-Moescope-Tokens": str(self._chosen.tokens),
            "X-Moescope-Next-Cursor": "" if after is None else str(after),
        }
        return next(blocks), blocks, headers
