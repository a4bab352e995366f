"""GET /v1/compare: how the routing of two windows, or of two deployments of one shape, differs."""

from __future__ import annotations

from typing import Annotated

import numpy as np
from fastapi import APIRouter, Query, Response

from moescope.service.api.limits.turns import Turns
from moescope.service.api.params.query import (
    LARGEST,
    Bounds,
    DpRankParam,
    EndParam,
    LayerParam,
    ModelParam,
    PhaseParam,
    PoolParam,
    ServerParam,
    StartParam,
    check_known,
    parse_bounds,
)
from moescope.service.api.problems import ProblemError, documented
from moescope.service.api.schemas.compact import answer, compact_absent, described, window_of
from moescope.service.api.schemas.compare import Comparison, LayerDifference, Side
from moescope.service.api.schemas.windows import partial_of, read_window
from moescope.service.counts.phase_split import Phase
from moescope.service.live.state import LiveState
from moescope.service.measures.divergence import jensen_shannon
from moescope.service.windows.layer_window import LayerWindow
from moescope.service.windows.window import ModelWindow

BaseServerParam = Annotated[
    str | None, Query(description="The base's deployment; without it and base_model: the window's.")
]
BaseModelParam = Annotated[
    str | None, Query(description="The base's model; without it and base_server: the window's.")
]
BaseDpRankParam = Annotated[
    int | None, Query(ge=0, le=LARGEST, description="The base's DP rank; absent: that of `dp_rank`.")
]
BasePhaseParam = Annotated[Phase | None, Query(description="The base's phase; absent: that of `phase`.")]
BaseStartParam = Annotated[str | None, Query(description="Begin of the base's window, written as `start`.")]
BaseEndParam = Annotated[str | None, Query(description="End of the base's window, written as `start`.")]


def compare_router(state: LiveState, turns: Turns) -> APIRouter:
    """The route over ``state``."""
    router = APIRouter(tags=["queries"], route_class=turns.route)

    @router.get("/v1/compare", responses=documented(400, 404, 422, 503) | {200: described(Comparison)})
    def compare(
        server: ServerParam = None,
        model: ModelParam = None,
        pool: PoolParam = None,
        layer: LayerParam = None,
        dp_rank: DpRankParam = None,
        phase: PhaseParam = None,
        start: StartParam = None,
        end: EndParam = None,
        base_server: BaseServerParam = None,
        base_model: BaseModelParam = None,
        base_dp_rank: BaseDpRankParam = None,
        base_phase: BasePhaseParam = None,
        base_start: BaseStartParam = None,
        base_end: BaseEndParam = None,
    ) -> Response:
        """Shares of every expert in a window, less those in a base window; how far apart each layer is."""
        now = state.now()
        bounds, base_bounds = parse_bounds(start, end, now), parse_bounds(base_start, base_end, now)
        window = read_window(state, server, model, bounds, dp_rank, phase, pool)
        other = (base_server, base_model)
        server, model = (window.server, window.model) if other == (None, None) else other
        base_rank = dp_rank if base_dp_rank is None else base_dp_rank
        base = read_window(state, server, model, base_bounds, base_rank, base_phase or phase)
        differences = _layers(window, base)
        if layer:
            check_known("layer", layer, [item.layer for item in differences])
            differences = [item for item in differences if item.layer in layer]
        result = Comparison(
            side=_side(window, bounds, partial_of(state, window, dp_rank)),
            base=_side(base, base_bounds, partial_of(state, base, dp_rank)),
            layers=differences,
        )
        return answer(result)

    return router


def _side(window: ModelWindow, bounds: Bounds, partial: str | None) -> Side:
    return Side(
        server=window.server,
        model=window.model,
        window=window_of(window, bounds),
        phase=window.phase,
        tokens=window.known_tokens,
        partial=partial,
        absent=compact_absent(window.absent),
    )


def _layers(window: ModelWindow, base: ModelWindow) -> list[LayerDifference]:
    """The layers that both windows have.

    Raises:
        ProblemError: no layer of both has the same number of experts.
    """
    others = {layer.shape.layer: layer for layer in base.layers}
    pairs = [(layer, others[layer.shape.layer]) for layer in window.layers if layer.shape.layer in others]
    alike = [(a, b) for a, b in pairs if a.shape.num_experts == b.shape.num_experts]
    if not alike and window.layers:
        raise ProblemError(
            400,
            "not-comparable",
            "These two can't be compared",
            f"{window.model} and {base.model} share no layer with the same number of experts: choose models "
            "of one shape, or two windows of one.",
        )
    return [_layer(a, b) for a, b in alike]


def _layer(layer: LayerWindow, base: LayerWindow) -> LayerDifference:
    counts, others = layer.counts, base.counts
    unknown = layer.phase_reason or base.phase_reason
    reason = unknown or layer.not_seen or base.not_seen
    if reason is None and not counts.sum():
        reason = "idle: no tokens in the window"
    if reason is None and not others.sum():
        reason = "idle: no tokens in the base's window"
    reason = reason or layer.not_conserved or base.not_conserved
    result = LayerDifference(
        layer=layer.shape.layer,
        num_experts=layer.shape.num_experts,
        tokens=int(layer.rows.sum()),
        base_tokens=int(base.rows.sum()),
        divergence=None,
        difference=None,
        reason=reason,
    )
    if reason is None:
        result.divergence = float(jensen_shannon(counts, others))
        result.difference = np.round(counts / counts.sum() - others / others.sum(), 9).tolist()
    return result
