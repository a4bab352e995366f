"""GET /v1/requests/{id}/routing: the routing of a request, joined from the traces of all who computed it."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, Request, Response

from moescope.service.api.limits.blocks import send_blocks
from moescope.service.api.limits.downloads import Downloads
from moescope.service.api.limits.turns import Turns
from moescope.service.api.params.checked import CheckedRoute
from moescope.service.api.params.query import DpRankParam, LayerParam
from moescope.service.api.params.stored import WHY_ABSENT, existing
from moescope.service.api.params.traced import (
    EndPositionParam,
    FirstParam,
    SampleParam,
    TraceModelParam,
    TraceServerParam,
)
from moescope.service.api.problems import ProblemError, documented
from moescope.service.api.schemas import trace_formats, trace_tables
from moescope.service.api.schemas.joined_reading import Asked, Looked, look_for
from moescope.service.api.schemas.request_routing import RequestRouting, RoutingHead, headers_of_join
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
)
from moescope.service.live.producers import why_unavailable
from moescope.service.live.state import LiveState
from moescope.service.store.interface import Store
from moescope.service.store.records import TraceQuery
from moescope.service.traces.routing import MAX_POSITIONS

_ANSWERS: Final[dict[int | str, dict[str, Any]]] = {
    200: {
        "model": RequestRouting,
        "content": {item.media_type: {} for item in TraceFormat},
        "description": "The routing.",
    },
    **documented(400, 404, 406, 409, 422, 501, 503),
}


@dataclass(frozen=True)
class _Wanted:
    """The parameters of the two routes; each is documented where it is declared."""

    server: TraceServerParam = None
    model: TraceModelParam = None
    dp_rank: DpRankParam = None
    sample: SampleParam = None
    layer: LayerParam = None
    first: FirstParam = 0
    end: EndPositionParam = None
    form: FormParam = Form.MOESCOPE
    missing: MissingParam = Missing.REFUSE
    decoder_layers: DecoderLayersParam = None

    def asked(self, name: str) -> Asked:
        among = TraceQuery(server=self.server, model=self.model, dp_rank=self.dp_rank)
        wish = Wish(self.form, self.missing, self.decoder_layers)
        return Asked(name, among, self.sample, self.layer, self.first, self.end, wish)


_WantedParam = Annotated[_Wanted, Depends()]


def request_routing_router(
    state: LiveState, store: Store | None, turns: Turns, downloads: Downloads
) -> APIRouter:
    """The route that answers from ``store``; ``state`` tells which workers can't trace."""
    router = APIRouter(tags=["traces"], route_class=CheckedRoute)

    # The id may have a dot and a slash, so the suffix is part of the route.
    @router.get(
        "/v1/requests/{request_id:path}/routing.{suffix}", response_class=Response, responses=_ANSWERS
    )
    async def request_routing_as(
        request: Request,
        request_id: str,
        suffix: TraceFormat,
        wanted: _WantedParam,
    ) -> Response:
        """The same as a file: routing.json, .npz, .parquet, .arrow or .raw."""
        asked = wanted.asked(request_id)
        return await send_blocks(request, lambda: _Download.of(asked, suffix, store, state), turns, downloads)

    @router.get("/v1/requests/{request_id:path}/routing", response_class=Response, responses=_ANSWERS)
    async def request_routing(
        request: Request,
        request_id: str,
        wanted: _WantedParam,
    ) -> Response:
        """The logical experts of all positions of a request, whoever computed them.

        The traces of prefill and decode instances, of all workers, and of earlier requests whose computation
        the KV cache had are joined: each position comes from one of them, as `parts` says. What nobody has is
        -1, and `missing` says why. The format is chosen by Accept, or by a suffix: routing.npz. Traces that
        don't belong together are a 409 that says how to choose.
        """
        kind = trace_formats.negotiate(request.headers.get("accept", ""))
        asked = wanted.asked(request_id)
        return await send_blocks(request, lambda: _Download.of(asked, kind, store, state), turns, downloads)

    return router


class _Download:
    """What was found of a request, to be joined and sent in a format."""

    def __init__(self, looked: Looked, kind: TraceFormat) -> None:
        self._looked = looked
        self._kind = kind

    @classmethod
    def of(cls, asked: Asked, kind: TraceFormat, store: Store | None, state: LiveState) -> _Download:
        """Find it.

        Raises:
            ProblemError: there is none (404), or what there is doesn't belong together (409).
        """
        looked = look_for(asked, existing(store), Depths(state.producers()))
        if looked is None:
            raise _no_such_request(asked.name, existing(store), state)
        return cls(looked, kind)

    @property
    def media_type(self) -> str:
        """Of the answer."""
        return self._kind.media_type

    @property
    def memory(self) -> int:
        """The most bytes that making and sending it takes at any time."""
        return trace_formats.memory_of(self._kind, self._looked.extent, self._most_positions())

    def begin(self) -> tuple[bytes, Generator[bytes], dict[str, str]]:
        """The first block, what makes the others, and headers.

        Raises:
            ProblemError: see :meth:`Looked.read`.
        """
        joined, routing = self._looked.read(self._most_positions())
        head = RoutingHead.of(joined)
        if self._kind is TraceFormat.JSON:
            blocks = trace_formats.as_json(head, routing)
        elif self._kind is TraceFormat.NPZ:
            blocks = trace_formats.as_npz(routing, {"joined": head.model_dump_json()})
        else:
            blocks = trace_tables.BINARY[self._kind](routing)
        headers = (
            trace_formats.headers_of(self._kind, routing) | headers_of_form(routing) | headers_of_join(joined)
        )
        return next(blocks), blocks, headers

    def _most_positions(self) -> int:
        """As many as were asked for, or twice as many as the request can have by what is said of it."""
        asked = self._looked.asked
        if asked.end is not None:
            return min(MAX_POSITIONS, max(0, asked.end - asked.first))
        tokens = max(
            item.request.tokens + item.request.cached_tokens + item.request.prompt_tokens
            for item in self._looked.found.parts
        )
        return min(MAX_POSITIONS, 2 * tokens + (1 << 16))


def _no_such_request(name: str, store: Store, state: LiveState) -> ProblemError:
    untold = why_unavailable(state.producers(), "traces")
    return ProblemError(
        404,
        "no-such-request",
        "No such request",
        f"There is no trace of {name!r} among those asked for: {WHY_ABSENT[store.why_absent(name)]} "
        "GET /v1/traces lists what there is."
        + ("" if untold is None else f" A worker can't trace: {untold}"),
    )
