"""GET /v1/traces/{id}: one stored routing trace."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import replace
from typing import Any, Final
from urllib.parse import quote

from fastapi import APIRouter, Request, Response

from moescope.service.api.limits.blocks import send_blocks
from moescope.service.api.limits.downloads import Downloads
from moescope.service.api.limits.turns import Turns
from moescope.service.api.params.checked import CheckedRoute
from moescope.service.api.params.query import (
    DpRankParam,
    LayerParam,
)
from moescope.service.api.params.requests import newest_of_each_id
from moescope.service.api.params.stored import WHY_ABSENT, existing
from moescope.service.api.params.traced import (
    EndPositionParam,
    FirstParam,
    TraceModelParam,
    TraceServerParam,
)
from moescope.service.api.problems import ProblemError, documented
from moescope.service.api.schemas import trace_formats, trace_tables
from moescope.service.api.schemas.trace_formats import TraceFormat
from moescope.service.api.schemas.trace_shapes import (
    DecoderLayersParam,
    Depths,
    Form,
    FormParam,
    Missing,
    MissingParam,
    Wish,
    headers_of_form,
    in_form,
    refuse_parts,
)
from moescope.service.api.schemas.traces import TraceDetail, trace_out
from moescope.service.live.producers import why_unavailable
from moescope.service.live.state import LiveState
from moescope.service.store.interface import Store
from moescope.service.store.records import TracedRequest, TraceQuery
from moescope.service.store.worker_trace import WorkerTrace
from moescope.service.traces.extent import Extent
from moescope.service.traces.forms import Shaped, VllmShape
from moescope.service.traces.routing import (
    MAX_POSITIONS,
    TooManyPositionsError,
    put_together,
)

MAX_LISTED_IDS: Final = 10
"""How many ids the answer names, where several requests have the wanted one."""

_FORMATS: Final[dict[int | str, dict[str, Any]]] = {
    200: {
        "model": TraceDetail,
        "content": {item.media_type: {} for item in TraceFormat},
        "description": "The trace.",
    },
}
_SAFE: Final = "!#$&'()*+,/:;=?@[] "  # in a header as they are, all but the per cent sign


def one_trace_router(state: LiveState, store: Store | None, turns: Turns, downloads: Downloads) -> APIRouter:
    """The route that answers from ``store``; ``state`` tells which workers can't trace.

    It doesn't take its turn as a route, since it would keep it while it waits for room among the
    ``downloads``, whose blocks need turns.
    """
    router = APIRouter(tags=["traces"], route_class=CheckedRoute)

    @router.get(
        "/v1/traces/{request_id:path}",
        response_class=Response,
        responses={**_FORMATS, **documented(400, 404, 406, 409, 422, 501, 503)},
    )
    async def trace(
        request: Request,
        request_id: str,
        server: TraceServerParam = None,
        model: TraceModelParam = None,
        dp_rank: DpRankParam = None,
        layer: LayerParam = None,
        first: FirstParam = 0,
        end: EndPositionParam = None,
        form: FormParam = Form.MOESCOPE,
        missing: MissingParam = Missing.REFUSE,
        decoder_layers: DecoderLayersParam = None,
    ) -> Response:
        """The logical experts of a request's tokens: `routed_experts` [positions, layers, top_k].

        -1 where a position was not computed, since a prefix cache had it; `times_computed` tells. The id is
        the completion's, the client's X-Request-Id or vLLM's internal one. Choose the format by Accept or by
        a suffix: .json, .npz, .parquet, .arrow, or .raw with its shape in X-Moescope-Shape. A prefill and a
        decode deployment each have a trace of the same request: choose by server. Of requests to which vLLM
        gave one internal id, one after the other, it is the newest; GET /v1/traces?request_id= lists them
        all. GET /v1/requests/{id}/routing has the whole request.
        """
        wish = Wish(form, missing, decoder_layers)
        untold = why_unavailable(state.producers(), "traces")
        among = TraceQuery(server=server, model=model, dp_rank=dp_rank, limit=MAX_LISTED_IDS + 1)

        def look() -> _Download:
            found, suffix = _find(existing(store), request_id, among, untold)
            kind = suffix or trace_formats.negotiate(request.headers.get("accept", ""))
            if wish.form is Form.MOESCOPE:
                return _Download(kind, found, _workers(existing(store), found, layer), first, end)
            known = {item for worker in _workers(existing(store), found, None) for item in worker.layers}
            depths = Depths(state.producers())
            shape = depths.shape_of((found.server, found.model), known, wish, request_id, layer)
            wanted = _within(layer, shape.depth)
            refuse_parts(found, wish, depths.tell_all((found.server, found.model), known, wanted))
            traced = {item.layer for item in known}
            read = None if wanted is None else sorted(traced & set(wanted)) or [min(traced)]
            workers = _workers(existing(store), found, read)
            return _Download(kind, found, workers, first, end, (wish, shape, wanted))

        return await send_blocks(request, look, turns, downloads)

    return router


def _find(
    store: Store, name: str, among: TraceQuery, untold: str | None
) -> tuple[TracedRequest, TraceFormat | None]:
    """The one request of this name, which may end with the suffix of a format.

    ``among`` bounds whose traces are looked at; ``untold`` is why a worker can't trace, or None.

    Raises:
        ProblemError: there is none (404), or several requests have this id (409).
    """
    stem, dot, suffix = name.rpartition(".")
    choices: list[tuple[str, TraceFormat | None]] = [(name, None)]
    if dot and suffix in list(TraceFormat):
        choices.append((stem, TraceFormat(suffix)))
    for wanted, kind in choices:
        found = newest_of_each_id(store.traced_requests(replace(among, name=wanted)))
        if len(found) == 1:
            return found[0], kind
        if found:
            raise _several(found)
    last, _ = choices[-1]
    raise ProblemError(
        404,
        "no-such-trace",
        "No such trace",
        f"There is none of {last!r}{_where(among)}: {WHY_ABSENT[store.why_absent(last)]} "
        "GET /v1/traces lists what there is."
        + ("" if untold is None else f" A worker can't trace: {untold}"),
    )


def _several(found: list[TracedRequest]) -> ProblemError:
    """Several requests have the wanted id: what tells them apart, which is what a question must name."""
    shown = found[:MAX_LISTED_IDS]
    more = ", and more" if len(found) > len(shown) else ""
    places = sorted({(item.server, item.model, item.dp_rank) for item in found})
    named = [("server", 0), ("model", 1), ("dp_rank", 2)]
    told_apart = [name for name, at in named if len({place[at] for place in places}) > 1]
    if told_apart:
        listing = ", ".join(f"server={server} model={model} dp_rank={rank}" for server, model, rank in places)
        detail = f"Choose one by {' and '.join(told_apart)}: {listing}{more}."
    else:
        detail = f"Ask for one of {', '.join(item.request_id for item in shown)}{more}."
    detail += " GET /v1/requests/{id}/routing joins those of one request."
    return ProblemError(409, "several-traces", "Several requests have this id", detail)


def _where(among: TraceQuery) -> str:
    """Where a trace was looked for, with a blank before it; empty: everywhere."""
    parts = (("server", among.server), ("model", among.model), ("DP rank", among.dp_rank))
    named = [f"{name} {value!r}" for name, value in parts if value is not None]
    return f" of {', '.join(named)}" if named else ""


def _workers(store: Store, found: TracedRequest, layers: list[int] | None) -> list[WorkerTrace]:
    """The workers' traces of a request in the layers wanted, None: in all; nothing of them is read yet.

    Raises:
        ProblemError: it has none of these layers (404).
    """
    workers = [worker for worker in store.traces(found.number, layers) if worker.layers]
    if not workers:
        raise _unknown_layers(store, found, layers)
    return workers


def _within(layers: list[int] | None, depth: int) -> list[int] | None:
    """The layers, all of which the model has; None: all.

    Raises:
        ProblemError: it has one of them not (404).
    """
    beyond = [number for number in layers or [] if number >= depth]
    if beyond:
        raise ProblemError(
            404,
            "no-such-layer",
            "No such layer",
            f"There is no layer {beyond}; the model has 0 to {depth - 1}.",
        )
    return layers


def _unknown_layers(store: Store, found: TracedRequest, wanted: list[int] | None) -> ProblemError:
    known = sorted({layer.layer for worker in store.traces(found.number, None) for layer in worker.layers})
    return ProblemError(
        404, "no-such-layer", "No such layer", f"There is no layer {wanted}; known are {known}."
    )


class _Download:
    """A trace that was found and is to be sent.

    Args:
        kind: the format.
        found: the request.
        workers: its traces, of which nothing was read yet.
        first, end: the positions wanted.
        as_vllm: with form=vllm: what is wanted, vLLM's shape, and the decoder layers.
    """

    def __init__(
        self,
        kind: TraceFormat,
        found: TracedRequest,
        workers: list[WorkerTrace],
        first: int,
        end: int | None,
        as_vllm: tuple[Wish, VllmShape, list[int] | None] | None = None,
    ) -> None:
        self._as_vllm = as_vllm
        self._kind = kind
        self._found = found
        self._workers = workers
        self._first = first
        self._end = end

    @property
    def media_type(self) -> str:
        """Of the answer."""
        return self._kind.media_type

    @property
    def memory(self) -> int:
        """The most bytes that making and sending it takes at any time."""
        extent = Extent.of(self._workers)
        if self._as_vllm is not None:
            extent = extent.grown_to(self._as_vllm[1].depth)
        return trace_formats.memory_of(self._kind, extent, self._most_positions())

    def begin(self) -> tuple[bytes, Generator[bytes], dict[str, str]]:
        """The first block, what makes the others, and headers.

        Raises:
            ProblemError: positions beyond what can be answered (400).
        """
        try:
            routing: Shaped = put_together(self._workers, self._first, self._end, self._most_positions())
        except TooManyPositionsError as error:
            raise ProblemError(400, "too-many-positions", "Too many positions", str(error)) from error
        if self._as_vllm is not None:
            wish, shape, wanted = self._as_vllm
            routing = in_form(routing, wish, shape, wanted, self._found.request_id)
        if self._kind is TraceFormat.JSON:
            blocks = trace_formats.as_json(trace_out(self._found), routing)
        else:
            blocks = trace_tables.BINARY[self._kind](routing)
        headers = trace_formats.headers_of(self._kind, routing) | headers_of_form(routing)
        headers["X-Moescope-Request-Id"] = quote(self._found.request_id, safe=_SAFE)
        return next(blocks), blocks, headers

    def _most_positions(self) -> int:
        """As many as were asked for, or twice as many as the request can have by what is said of it."""
        if self._end is not None:
            return min(MAX_POSITIONS, max(0, self._end - self._first))
        found = self._found
        return min(MAX_POSITIONS, 2 * (found.tokens + found.cached_tokens + found.prompt_tokens) + (1 << 16))
