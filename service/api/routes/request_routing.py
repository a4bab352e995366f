"""GET /v1/requests/{id}/routing: the routing of a request, joined from the traces of all who computed it."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, replace
from typing import Annotated, Any, Final, NamedTuple

from fastapi import APIRouter, Depends, Request, Response

from moescope.service.api.limits.blocks import send_blocks
from moescope.service.api.limits.downloads import Downloads
from moescope.service.api.limits.turns import Turns
from moescope.service.api.params.checked import CheckedRoute
from moescope.service.api.params.query import LARGEST, DpRankParam, LayerParam
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
    in_form,
    incomplete,
)
from moescope.service.live.producers import why_unavailable
from moescope.service.live.state import LiveState
from moescope.service.store.interface import Store
from moescope.service.store.records import TraceQuery
from moescope.service.traces.belonging import SeveralError
from moescope.service.traces.finding import Found, find
from moescope.service.traces.forms import Shaped, VllmShape
from moescope.service.traces.joining import Joined, join
from moescope.service.traces.plan import TooManyRunsError
from moescope.service.traces.routing import MAX_POSITIONS, TooManyPositionsError
from moescope.service.traces.spans import span

_ANSWERS: Final[dict[int | str, dict[str, Any]]] = {
    200: {
        "model": RequestRouting,
        "content": {item.media_type: {} for item in TraceFormat},
        "description": "The routing.",
    },
    **documented(400, 404, 406, 409, 422, 501, 503),
}


class _Asked(NamedTuple):
    name: str
    kind: TraceFormat
    among: TraceQuery
    sample: int | None
    layers: list[int] | None
    first: int
    end: int | None
    wish: Wish


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

    def asked(self, name: str, kind: TraceFormat) -> _Asked:
        among = TraceQuery(server=self.server, model=self.model, dp_rank=self.dp_rank)
        wish = Wish(self.form, self.missing, self.decoder_layers)
        return _Asked(name, kind, among, self.sample, self.layer, self.first, self.end, wish)


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
        asked = wanted.asked(request_id, suffix)
        return await send_blocks(request, lambda: _Download.of(asked, store, state), turns, downloads)

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
        asked = wanted.asked(request_id, kind)
        return await send_blocks(request, lambda: _Download.of(asked, store, state), turns, downloads)

    return router


class _Download:
    """What was found of a request, to be joined and sent.

    Args:
        asked: the question.
        found: what may be joined.
        shape: with form=vllm vLLM's shape; else None.
    """

    def __init__(self, asked: _Asked, found: Found, shape: VllmShape | None) -> None:
        self._asked = asked
        self._found = found
        self._shape = shape

    @classmethod
    def of(cls, asked: _Asked, store: Store | None, state: LiveState) -> _Download:
        """Find it.

        Raises:
            ProblemError: there is none (404), or what there is doesn't belong together (409).
        """
        found = _find(asked, existing(store), asked.layers, state)
        if asked.wish.form is Form.MOESCOPE:
            if not found.wanted:
                raise _no_such_layer(asked.layers, f"known are {sorted(found.layers)}")
            return cls(asked, found, None)
        main = found.parts[0].request
        known = found.layers
        depths, deployment, shapes = Depths(state.producers()), (main.server, main.model), set(known.values())
        shape = depths.shape_of(deployment, shapes, asked.wish, asked.name, asked.layers)
        beyond = [number for number in asked.layers or [] if number >= shape.depth]
        if beyond:
            raise _no_such_layer(beyond, f"the model has 0 to {shape.depth - 1}")
        stages = 0 if depths.tell_all(deployment, shapes, asked.layers) else main.missing_stages
        if stages and found.may_lack_layers and asked.wish.missing is Missing.REFUSE:
            raise incomplete(main, stages, main.missing_tokens, "ask again")
        if not found.wanted:  # layers without experts only: those of one with experts tell what is computed
            found = replace(_find(asked, existing(store), [min(known)], state), asked=found.asked)
        return cls(asked, found, shape)

    @property
    def media_type(self) -> str:
        """Of the answer."""
        return self._asked.kind.media_type

    @property
    def memory(self) -> int:
        """The most bytes that making and sending it takes at any time."""
        extent = self._found.extent
        if self._shape is not None:
            extent = extent.grown_to(self._shape.depth)
        return trace_formats.memory_of(self._asked.kind, extent, self._most_positions())

    def begin(self) -> tuple[bytes, Generator[bytes], dict[str, str]]:
        """The first block, what makes the others, and headers.

        Raises:
            ProblemError: more than can be answered (400), or the traces don't belong together (409).
        """
        asked = self._asked
        try:
            joined = join(self._found, asked.first, asked.end, self._most_positions())
        except TooManyPositionsError as error:
            raise ProblemError(400, "too-many-positions", "Too many positions", str(error)) from error
        except TooManyRunsError as error:
            raise ProblemError(400, "too-many-runs", "Too many runs", str(error)) from error
        except SeveralError as error:
            raise _several(error) from error
        if self._shape is not None and asked.wish.missing is Missing.REFUSE:
            _refuse_lost_end(joined, asked.end)
        routing: Shaped = in_form(joined.routing, asked.wish, self._shape, asked.layers, asked.name)
        head = RoutingHead.of(joined)
        if asked.kind is TraceFormat.JSON:
            blocks = trace_formats.as_json(head, routing)
        elif asked.kind is TraceFormat.NPZ:
            told = head.model_dump_json(include={"parts", "missing", "missing_stages", "missing_tokens"})
            blocks = trace_formats.as_npz(routing, {"joined": told})
        else:
            blocks = trace_tables.BINARY[asked.kind](routing)
        headers = (
            trace_formats.headers_of(asked.kind, routing) | headers_of_form(routing) | headers_of_join(joined)
        )
        return next(blocks), blocks, headers

    def _most_positions(self) -> int:
        """As many as were asked for, or twice as many as the request can have by what is said of it."""
        asked = self._asked
        if asked.end is not None:
            return min(MAX_POSITIONS, max(0, asked.end - asked.first))
        tokens = max(
            item.request.tokens + item.request.cached_tokens + item.request.prompt_tokens
            for item in self._found.parts
        )
        return min(MAX_POSITIONS, 2 * tokens + (1 << 16))


def _find(asked: _Asked, store: Store, layers: list[int] | None, state: LiveState) -> Found:
    positions = span(asked.first, LARGEST if asked.end is None else asked.end)
    try:
        found = find(store, asked.name, asked.among, positions, asked.sample, layers)
    except SeveralError as error:
        raise _several(error) from error
    except LookupError as error:
        raise ProblemError(404, "no-such-sample", "No such sample", str(error.args[0])) from error
    if found is not None:
        return found
    untold = why_unavailable(state.producers(), "traces")
    why = WHY_ABSENT[store.why_absent(asked.name)]
    raise ProblemError(
        404,
        "no-such-request",
        "No such request",
        f"There is no trace of {asked.name!r} among those asked for: {why} GET /v1/traces lists what "
        "there is." + ("" if untold is None else f" A worker can't trace: {untold}"),
    )


def _refuse_lost_end(joined: Joined, end: int | None) -> None:
    """Tokens that no worker brought may be behind the last position, where nothing shows that they lack.

    Raises:
        ProblemError: so it is, or may be (409).
    """
    last, tokens = joined.routing.first + joined.routing.shape[0], joined.main.missing_tokens
    if tokens and (end is None or end > last):
        raise incomplete(joined.main, 0, tokens, f"ask again, or for those that are here with end={last}")


def _several(error: SeveralError) -> ProblemError:
    return ProblemError(
        409, "several-requests", "The traces of this id don't belong to one request", str(error)
    )


def _no_such_layer(layers: list[int] | None, known: str) -> ProblemError:
    return ProblemError(404, "no-such-layer", "No such layer", f"There is no layer {layers}; {known}.")
