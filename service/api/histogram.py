"""GET /v1/histogram: slots by layer and logical expert."""

from __future__ import annotations

from fastapi import APIRouter

from moescope.service.api.models import Histogram, LayerHistogram
from moescope.service.api.params import (
    DpRankParam,
    EndParam,
    LayerParam,
    ModelParam,
    ServerParam,
    StartParam,
    parse_bounds,
)
from moescope.service.api.problems import documented
from moescope.service.api.windows import pick_layers, read_window, uncovered_out, window_out
from moescope.service.state import LiveState
from moescope.service.window import LayerWindow


def histogram_router(state: LiveState) -> APIRouter:
    """The route over ``state``."""
    router = APIRouter(tags=["queries"])

    @router.get("/v1/histogram", responses=documented(400, 404, 422))
    def histogram(
        server: ServerParam = None,
        model: ModelParam = None,
        layer: LayerParam = None,
        dp_rank: DpRankParam = None,
        start: StartParam = None,
        end: EndParam = None,
    ) -> Histogram:
        """How many slots each logical expert got: absolute counts and shares, by layer, in a window."""
        bounds = parse_bounds(start, end, state.now())
        window = read_window(state, server, model, bounds, dp_rank)
        return Histogram(
            server=window.server,
            model=window.model,
            window=window_out(window, bounds),
            dp_rank=dp_rank,
            tokens=window.tokens,
            layers=[_layer(window.layers[i]) for i in pick_layers(window, layer)],
            uncovered=uncovered_out(window),
        )

    return router


def _layer(layer: LayerWindow) -> LayerHistogram:
    reason = layer.not_seen
    counts, slots = layer.counts.sum(axis=0), int(layer.counts.sum())
    return LayerHistogram(
        layer=layer.shape.layer,
        num_experts=layer.shape.num_experts,
        top_k=layer.shape.top_k,
        dp_ranks=list(layer.dp_ranks),
        missing_dp_ranks=list(layer.missing),
        tokens=None if reason else int(layer.rows.sum()),
        slots=None if reason else slots,
        counts=None if reason else counts.tolist(),
        shares=(counts / slots).tolist() if slots else None,
        reason=reason or (None if slots else "idle: no tokens in the window"),
    )
