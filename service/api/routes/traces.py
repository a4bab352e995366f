"""Routing traces: POST /v1/traces takes them, GET /v1/traces lists them, GET /v1/traces/{id} is one."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Annotated, Any, Final

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import StreamingResponse

from moescope.capture.wire import WireError, WireVersionError
from moescope.capture.wire.traces import TRACE_CONTENT_TYPE, decode_part
from moescope.service.api.limits.keeping import Keeper
from moescope.service.api.limits.limits import Limits, RefusedFrameError
from moescope.service.api.params.query import (
    LARGEST,
    DpRankParam,
    EndParam,
    LayerParam,
    ModelParam,
    ServerParam,
    StartParam,
    parse_bounds,
)
from moescope.service.api.problems import ProblemError, documented
from moescope.service.api.routes.ingest import REFUSALS, client_of, receive
from moescope.service.api.schemas import trace_formats
from moescope.service.api.schemas.common import TraceOut, TracePage, TraceReceipt
from moescope.service.api.schemas.trace_formats import TraceFormat
from moescope.service.counts.refusals import RefusedError
from moescope.service.live.state import LiveState
from moescope.service.logs import Throttle
from moescope.service.settings import Settings
from moescope.service.store.interface import Store
from moescope.service.store.records import ArrivedPart, StoreError, TracedRequest, TraceQuery
from moescope.service.traces.routing import TooManyPositionsError, put_together

_log = logging.getLogger(__name__)

_NO_STORE: Final = "Start the service with --store FOLDER (MOESCOPE_STORE) to keep traces."
_BODY: Final = {
    "requestBody": {
        "required": True,
        "content": {TRACE_CONTENT_TYPE: {"schema": {"type": "string", "format": "binary"}}},
    }
}
_FORMATS: Final[dict[int | str, dict[str, Any]]] = {
    200: {"content": {item.media_type: {} for item in TraceFormat}, "description": "The trace."},
}
_BINARY: Final = {
    TraceFormat.NPZ: trace_formats.as_npz,
    TraceFormat.PARQUET: trace_formats.as_parquet,
    TraceFormat.RAW: trace_formats.as_raw,
}


def traces_router(
    state: LiveState, settings: Settings, keeper: Keeper, store: Store | None, limits: Limits
) -> APIRouter:
    """The routes that take traces into ``store`` and answer from it."""
    router = APIRouter(tags=["traces"])
    throttle = Throttle(state.now)

    @router.post("/v1/traces", openapi_extra=_BODY, responses=documented(*REFUSALS))
    async def take(request: Request) -> TraceReceipt:
        """Take a part of a trace: msgpack, as `moescope.capture.wire.traces` defines it.

        It answers when the part is kept; sending it twice is harmless.
        """
        try:
            with limits.body_of(client_of(request)) as took:
                return await _take(request, state, settings, keeper, store, limits, took)
        except RefusedFrameError as error:
            state.count_refused(error.reason)
            if throttle.allows(error.reason):
                _log.warning("refused a trace (logged once a minute): %s", error)
            raise

    @router.get("/v1/traces", responses=documented(400, 404, 422, 503))
    def traces(
        server: ServerParam = None,
        model: ModelParam = None,
        dp_rank: DpRankParam = None,
        request_id: Annotated[str | None, Query(description="Any id that finds it.")] = None,
        start: StartParam = None,
        end: EndParam = None,
        min_tokens: Annotated[
            int, Query(ge=1, le=LARGEST, description="Only with so many tokens computed.")
        ] = 1,
        layer: Annotated[
            int | None, Query(ge=0, le=LARGEST, description="With expert: the layer it was taken in.")
        ] = None,
        expert: Annotated[
            int | None, Query(ge=0, le=LARGEST, description="Only those that took this expert.")
        ] = None,
        limit: Annotated[int, Query(ge=1, le=1000, description="Size of a page.")] = 100,
        cursor: Annotated[str | None, Query(description="next_cursor of the page before.")] = None,
    ) -> TracePage:
        """Traced requests, newest first, by when they were stored."""
        if (layer is None) != (expert is None):
            raise ProblemError(400, "half-a-hit", "Only half of a hit", "Give layer and expert together.")
        bounds = parse_bounds(start, end, state.now())
        query = TraceQuery(
            server=server,
            model=model,
            dp_rank=dp_rank,
            name=request_id,
            start=bounds.start,
            end=bounds.end,
            min_tokens=min_tokens,
            layer=layer,
            expert=expert,
            before=_parse_cursor(cursor),
            limit=limit + 1,
        )
        found = existing(store).traced_requests(query)
        more = str(found[limit - 1].number) if len(found) > limit else None
        return TracePage(traces=[_out(item) for item in found[:limit]], next_cursor=more)

    @router.get(
        "/v1/traces/{request_id:path}",
        response_class=Response,
        responses={**_FORMATS, **documented(400, 404, 406, 409, 422, 501, 503)},
    )
    def trace(
        request: Request,
        request_id: str,
        layer: LayerParam = None,
        first: Annotated[int, Query(ge=0, le=LARGEST, description="First position.")] = 0,
        end: Annotated[int | None, Query(ge=0, le=LARGEST, description="Position to end before.")] = None,
    ) -> Response:
        """The logical experts of a request's tokens: `routed_experts` [positions, layers, top_k].

        -1 where a position was not computed, since a prefix cache had it; `times_computed` tells. The id is
        the completion's, the client's X-Request-Id or vLLM's internal one. Choose the format by Accept or by
        a suffix: .json, .npz, .parquet, or .raw with its shape in X-Moescope-Shape.
        """
        found, suffix = _find(existing(store), request_id)
        kind = suffix or trace_formats.negotiate(request.headers.get("accept", ""))
        workers = existing(store).traces(found.number, layer)
        if not any(worker.layers for worker in workers):
            raise _unknown_layers(existing(store), found, layer)
        try:
            routing = put_together([worker for worker in workers if worker.layers], first, end)
        except TooManyPositionsError as error:
            raise ProblemError(400, "too-many-positions", "Too many positions", str(error)) from error
        headers = trace_formats.headers_of(routing)
        if kind is TraceFormat.JSON:
            body = trace_formats.as_json(_out(found), routing)
        else:
            body = _BINARY[kind](routing)
        return StreamingResponse(body, media_type=kind.media_type, headers=headers)

    return router


async def _take(
    request: Request,
    state: LiveState,
    settings: Settings,
    keeper: Keeper,
    store: Store | None,
    limits: Limits,
    took: Callable[[int], None],
) -> TraceReceipt:
    body = await receive(request, settings, TRACE_CONTENT_TYPE, took)
    if store is None:
        raise RefusedFrameError("no_store", 409, "Traces are not kept here", _NO_STORE)
    try:
        part = decode_part(body)
        limits.admit("trace", part.producer.key)
        await keeper.keep([ArrivedPart(part, state.now())])
    except WireVersionError as error:
        raise RefusedFrameError("version", 415, "Another wire version", str(error)) from error
    except WireError as error:
        raise RefusedFrameError("malformed", 400, "Not a trace", str(error)) from error
    except RefusedError as error:
        raise RefusedFrameError(error.reason, 409, "The part contradicts its trace", str(error)) from error
    except StoreError as error:
        raise RefusedFrameError("store_failed", 503, "The trace could not be kept", str(error)) from error
    return TraceReceipt(trace=part.trace, part=part.part, parts=part.parts)


def existing(store: Store | None) -> Store:
    """The store, or a problem that says how to have one."""
    if store is None:
        raise ProblemError(404, "no-store", "Traces are not kept here", _NO_STORE)
    return store


def _find(store: Store, name: str) -> tuple[TracedRequest, TraceFormat | None]:
    """The one request of this name, which may end with the suffix of a format."""
    stem, dot, suffix = name.rpartition(".")
    choices: list[tuple[str, TraceFormat | None]] = [(name, None)]
    if dot and suffix in list(TraceFormat):
        choices.append((stem, TraceFormat(suffix)))
    for wanted, kind in choices:
        found = store.traced_requests(TraceQuery(name=wanted, limit=11))
        if len(found) == 1:
            return found[0], kind
        if found:
            ids = ", ".join(item.request_id for item in found[:10])
            raise ProblemError(
                409,
                "several-traces",
                "Several requests have this id",
                f"Ask for one of {ids}, and maybe more.",
            )
    last, _ = choices[-1]
    raise ProblemError(
        404,
        "no-such-trace",
        "No such trace",
        f"There is none of {last!r}: it wasn't sampled (MOESCOPE_TRACE_RATE), still runs, or was removed "
        "by its time to live. GET /v1/traces lists what there is.",
    )


def _unknown_layers(store: Store, found: TracedRequest, wanted: list[int] | None) -> ProblemError:
    known = sorted({layer.layer for worker in store.traces(found.number, None) for layer in worker.layers})
    return ProblemError(
        404, "no-such-layer", "No such layer", f"There is no layer {wanted}; known are {known}."
    )


def _parse_cursor(text: str | None) -> int | None:
    if not text:
        return None
    if not text.isascii() or not text.isdigit() or len(text) > 19 or int(text) >= 1 << 63:
        raise ProblemError(
            400, "bad-cursor", "Not a cursor", "Give next_cursor of the page before as it was, or none."
        )
    return int(text)


def _out(found: TracedRequest) -> TraceOut:
    return TraceOut.model_validate(
        {name: getattr(found, name) for name in TraceOut.model_fields if name != "names"}
        | {"names": list(found.names)}
    )
