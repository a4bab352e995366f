"""GET /v1/advice: would another placement of experts be worth it; /v1/advice/placement: that placement."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Annotated, Final, Literal

import numpy as np
from fastapi import APIRouter, Query

from moescope.service.advice import export
from moescope.service.advice.advise import Advice, UnanswerableError, Wish, advise, whole_placement
from moescope.service.advice.evidence import LayerReasons
from moescope.service.advice.verdict import name_of
from moescope.service.advice.what_if import Option
from moescope.service.api.limits.turns import Turns
from moescope.service.api.params.query import (
    LARGEST,
    Bounds,
    EndParam,
    ModelParam,
    ServerParam,
    choose,
    parse_bounds,
)
from moescope.service.api.problems import ProblemError, documented
from moescope.service.api.schemas.advice import (
    AdviceOut,
    AscendMap,
    DriftOut,
    LeftOut,
    OptionOut,
    PlacementMap,
    VerdictOut,
    WaitingOut,
)
from moescope.service.api.schemas.common import Summary, Window
from moescope.service.api.schemas.windows import window_out
from moescope.service.live.state import LiveState
from moescope.service.measures.arrays import FloatArray
from moescope.service.settings import Settings
from moescope.service.windows.window import ModelWindow

DEFAULT_START: Final = "-1h"
MAX_RANKS: Final = 4096

AdviceStartParam = Annotated[
    str,
    Query(description="Begin of the whole window: Unix seconds, or relative as `-6h`.", examples=["-1h"]),
]
RanksParam = Annotated[
    int | None, Query(ge=1, le=MAX_RANKS, description="EP ranks to place on; absent: as many as there are.")
]
NodesParam = Annotated[
    int | None,
    Query(ge=1, le=MAX_RANKS, description="Nodes that the ranks are on; absent: as many as report."),
]
GroupsParam = Annotated[
    int, Query(ge=1, le=8192, description="Expert groups of the router: `n_group` of the model's config.")
]
RedundantParam = Annotated[
    list[int] | None,
    Query(
        description="Redundant experts to try with EPLB (0 to 8192); may be repeated. Absent: a sweep.",
        max_length=16,
    ),
]
FitShareParam = Annotated[
    float, Query(ge=0.05, le=0.95, description="Share of the window to fit on; the rest checks.")
]
MinGainParam = Annotated[
    float, Query(ge=0, le=1, description="Least saving of the busiest ranks' slots that is worth a change.")
]
MemoryPriceParam = Annotated[
    float,
    Query(
        ge=0, le=10, description="Saving that twice the memory for experts must bring; less in proportion."
    ),
]
MinTokensParam = Annotated[
    int | None,
    Query(ge=0, le=LARGEST, description="Fewer tokens are no sample; the service's setting when absent."),
]


def advice_router(state: LiveState, settings: Settings, turns: Turns) -> APIRouter:
    """The routes over ``state``."""
    router = APIRouter(tags=["advice"], route_class=turns.route)

    @router.get("/v1/advice", responses=documented(400, 404, 422, 503))
    def get_advice(
        server: ServerParam = None,
        model: ModelParam = None,
        start: AdviceStartParam = DEFAULT_START,
        end: EndParam = None,
        ranks: RanksParam = None,
        nodes: NodesParam = None,
        groups: GroupsParam = 1,
        redundant: RedundantParam = None,
        fit_share: FitShareParam = 0.5,
        min_gain: MinGainParam = 0.05,
        memory_price: MemoryPriceParam = 0.1,
        min_tokens: MinTokensParam = None,
    ) -> AdviceOut:
        """Is another placement of experts, or EPLB with so many redundant experts, worth it here?

        Placements are fitted on the first part of the window and judged on the rest, which they have not
        seen, against what the EP ranks really got there. Works whether EPLB is on or off.
        """
        deployment = choose(state, server, model)
        bounds = parse_bounds(start, end, state.now())
        gate = settings.min_tokens if min_tokens is None else min_tokens
        wish = Wish(ranks, nodes, groups, _checked(redundant), fit_share, min_gain, memory_price, gate)
        try:
            found = advise(state, deployment, bounds.start, bounds.end, wish)
        except UnanswerableError as error:
            raise _problem(error) from None
        return _advice(found, bounds, min_gain)

    @router.get("/v1/advice/placement", responses=documented(400, 404, 422, 503))
    def get_placement(
        server: ServerParam = None,
        model: ModelParam = None,
        start: AdviceStartParam = DEFAULT_START,
        end: EndParam = None,
        ranks: RanksParam = None,
        nodes: NodesParam = None,
        groups: GroupsParam = 1,
        strategy: Annotated[
            Literal["linear", "round_robin", "eplb"], Query(description="Which one.")
        ] = "eplb",
        redundant: Annotated[int, Query(ge=0, le=8192, description="Redundant experts, with eplb.")] = 0,
        form: Annotated[
            Literal["map", "vllm-ascend"],
            Query(
                description="map: as described below. vllm-ascend: the file that its expert_map_path takes."
            ),
        ] = "map",
        min_tokens: MinTokensParam = None,
    ) -> PlacementMap | AscendMap:
        """A placement as a map to use elsewhere, fitted on the whole window."""
        deployment = choose(state, server, model)
        bounds = parse_bounds(start, end, state.now())
        gate = settings.min_tokens if min_tokens is None else min_tokens
        wish = Wish(ranks, nodes, groups, (redundant,), 0.5, 0.0, 0.0, gate)
        try:
            window, layers, left_out, placement = whole_placement(
                state, deployment, bounds.start, bounds.end, wish, strategy
            )
        except UnanswerableError as error:
            raise _problem(error) from None
        if form == "vllm-ascend":
            return AscendMap(**export.ascend_map(placement))
        return PlacementMap(
            server=deployment[0],
            model=deployment[1],
            strategy=strategy,
            redundant=redundant if strategy == "eplb" else 0,
            window=window_out(window, bounds),
            left_out=_left_out(left_out),
            **export.placement_map(layers, placement),
        )

    return router


def _checked(redundant: list[int] | None) -> tuple[int, ...]:
    wrong = [number for number in redundant or () if not 0 <= number <= 8192]
    if wrong:
        raise ProblemError(
            400, "bad-redundant", "Not a number of experts", f"redundant is {wrong[0]}: give 0 to 8192."
        )
    return tuple(redundant or ())


def _problem(error: UnanswerableError) -> ProblemError:
    return ProblemError(400, error.kind, "This can't be answered", str(error))


def _advice(found: Advice, bounds: Bounds, min_gain: float) -> AdviceOut:
    evidence, question, verdict = found.evidence, found.question, found.verdict
    fit, pieces = found.windows.fit, found.windows.pieces
    return AdviceOut(
        server=fit.server,
        model=fit.model,
        ranks=question.ranks,
        nodes=question.nodes,
        groups=question.groups,
        num_experts=evidence.experts,
        min_gain=min_gain,
        fit=_window(fit, fit, bounds.start, fit.used.end_latest),
        held_out=_window(pieces[0], pieces[-1], fit.used.end_latest, bounds.end),
        fit_tokens=evidence.fit_tokens,
        held_out_tokens=evidence.later_tokens,
        layers=list(evidence.layers),
        left_out=_left_out(evidence.left_out),
        base=None if found.found is None else _option(found.found.base),
        options=[] if found.found is None else [_option(item) for item in found.found.options],
        drift=None if found.drift is None else DriftOut(**asdict(found.drift)),
        waiting=None if found.waiting is None else WaitingOut(**asdict(found.waiting)),
        verdict=VerdictOut(
            decision=verdict.decision,
            strategy=None if verdict.choice is None else verdict.choice.strategy,
            redundant=None if verdict.choice is None else verdict.choice.redundant,
            words=verdict.words,
            evidence=list(verdict.evidence),
        ),
    )


def _window(first: ModelWindow, last: ModelWindow, start: float | None, end: float | None) -> Window:
    """From the begin of one to the end of another."""
    begun, ended = window_out(first, Bounds(start, end)), window_out(last, Bounds(start, end))
    return begun.model_copy(update={"used_end": ended.used_end})


def _option(item: Option) -> OptionOut:
    return OptionOut(
        strategy=item.strategy,
        redundant=item.redundant,
        name=name_of(item),
        fitted=Summary(**asdict(item.fitted.summary)),
        held_out=Summary(**asdict(item.held_out.summary)),
        saving_fitted=item.saving_fitted,
        saving_held_out=item.saving_held_out,
        pieces=list(item.pieces),
        copies_to_move=item.moves,
        fitted_by_layer=_floats(item.fitted.by_layer),
        held_out_by_layer=_floats(item.held_out.by_layer),
    )


def _floats(values: FloatArray) -> list[float | None]:
    return [None if math.isnan(value) else value for value in np.asarray(values).tolist()]


def _left_out(found: LayerReasons) -> list[LeftOut]:
    return [LeftOut(layer=layer, reason=reason) for layer, reason in found.items()]
