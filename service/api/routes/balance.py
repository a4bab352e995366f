"""GET /v1/balance: who is the bottleneck, in which layer, by how much."""

from __future__ import annotations

from dataclasses import asdict

from fastapi import APIRouter

from moescope.service.api.limits.turns import Turns
from moescope.service.api.params.query import (
    DpRankParam,
    EndParam,
    LayerParam,
    MinTokensParam,
    ModelParam,
    PhaseParam,
    PoolParam,
    ServerParam,
    StartParam,
    parse_bounds,
)
from moescope.service.api.problems import documented
from moescope.service.api.schemas.balance import Balance, Cell, LayerBalance, Summaries
from moescope.service.api.schemas.common import Summary
from moescope.service.api.schemas.measures import Measures, values_of
from moescope.service.api.schemas.windows import (
    absent_out,
    partial_of,
    pick_layers,
    read_window,
    uncovered_out,
    window_out,
)
from moescope.service.live.state import LiveState
from moescope.service.measures import summary as across
from moescope.service.settings import Settings
from moescope.service.windows import assessment


def balance_router(state: LiveState, settings: Settings, turns: Turns) -> APIRouter:
    """The route over ``state``."""
    router = APIRouter(tags=["queries"], route_class=turns.route)

    @router.get("/v1/balance", responses=documented(400, 404, 422, 503))
    def get_balance(
        server: ServerParam = None,
        model: ModelParam = None,
        pool: PoolParam = None,
        layer: LayerParam = None,
        dp_rank: DpRankParam = None,
        phase: PhaseParam = None,
        start: StartParam = None,
        end: EndParam = None,
        min_tokens: MinTokensParam = None,
    ) -> Balance:
        """Balance of every layer over EP ranks, DP ranks and experts, and its summary across all layers.

        The summaries cover all layers, also when only some are asked for. Of one DP rank it tells where that
        rank's tokens went; over DP ranks there is nothing to balance then.
        """
        bounds = parse_bounds(start, end, state.now())
        window = read_window(state, server, model, bounds, dp_rank, phase, pool)
        gate = settings.min_tokens if min_tokens is None else min_tokens
        found = assessment.assess(window, gate)
        return Balance(
            server=window.server,
            model=window.model,
            window=window_out(window, bounds),
            min_tokens=gate,
            dp_rank=dp_rank,
            phase=phase,
            phase_reason=window.phase_reason,
            tokens=window.known_tokens,
            tokens_reason=window.reason,
            conflict=window.conflict,
            dp_ranks=list(found.dp_rank_ids),
            missing_dp_ranks=window.missing_dp_ranks,
            partial=partial_of(state, window, dp_rank),
            dp_tokens=_cell(found.dp_tokens),
            summary=Summaries(
                over_ep_ranks=_summary(found.ep_ranks.summary),
                over_dp_ranks=_summary(found.dp_ranks.summary),
                over_experts=_summary(found.experts.summary),
            ),
            layers=[_layer(found, i) for i in pick_layers(window, layer)],
            uncovered=uncovered_out(window),
            absent=absent_out(window),
        )

    return router


def _layer(found: assessment.Assessment, i: int) -> LayerBalance:
    layer = found.window.layers[i]
    return LayerBalance(
        layer=layer.shape.layer,
        tokens=int(layer.rows.sum()),
        over_ep_ranks=_cell(found.ep_ranks.cells[i]),
        ep_estimate=found.window.layers[i].ep_estimate,
        over_dp_ranks=_cell(found.dp_ranks.cells[i]),
        over_experts=_cell(found.experts.cells[i]),
    )


def _cell(cell: assessment.Cell) -> Cell:
    measures = values_of(cell.measures)
    return Cell(
        loads=None if cell.loads is None else cell.loads.tolist(),
        measures=None if measures is None else Measures(measures),
        reason=cell.reason,
    )


def _summary(summary: across.Summary) -> Summary:
    return Summary(**asdict(summary))
