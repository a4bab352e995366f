"""GET /v1/view: a window in one compact answer, cheap enough to ask for every second."""

from __future__ import annotations

from typing import Annotated, Final, Literal

import msgspec
import numpy as np
from fastapi import APIRouter, Query, Response

from moescope.service.api.limits.turns import Turns
from moescope.service.api.params.query import (
    Bounds,
    DpRankParam,
    EndParam,
    LayerParam,
    MinTokensParam,
    ModelParam,
    PhaseParam,
    PoolParam,
    ServerParam,
    StartParam,
    check_dp_rank,
    check_known,
    choose,
    parse_bounds,
)
from moescope.service.api.problems import documented
from moescope.service.api.schemas.compact import (
    CompactUncovered,
    answer,
    compact_absent,
    described,
    window_of,
)
from moescope.service.api.schemas.measures import values_of
from moescope.service.api.schemas.view import (
    HotSpot,
    View,
    ViewEpRanks,
    ViewLayer,
    ViewPhases,
    ViewRank,
    ViewSummary,
)
from moescope.service.api.schemas.windows import partial_of, pick_layers
from moescope.service.live.producers import ProducerSpan
from moescope.service.live.state import LiveState
from moescope.service.measures.arrays import FloatArray
from moescope.service.settings import Settings
from moescope.service.windows.assessment import Assessment, AxisBalance, assess
from moescope.service.windows.dp_to_ep_slots import dp_to_ep_slots
from moescope.service.windows.ep_rank_sums import ep_rank_sums
from moescope.service.windows.expert_ep_ranks import distinct, ep_ranks_of_experts
from moescope.service.windows.hot_spots import hot_spot
from moescope.service.windows.layer_window import LayerWindow
from moescope.service.windows.phase_window import merge_spans_of_phase, spans_of_phase
from moescope.service.windows.seconds import seconds_of
from moescope.service.windows.window import DpRank, ModelWindow

Part = Literal["counts", "flows", "owners", "ep_ranks", "hot"]
PartsParam = Annotated[
    list[Part] | None,
    Query(
        description="What to add: `counts` by expert, `flows` from DP to EP ranks, `owners` of experts, "
        "`ep_ranks`: sums over layers by EP rank in place of each layer's `ep_slots`, `hot`: the busiest EP "
        "rank and expert of each layer."
    ),
]
MAX_FLOWS: Final = 1 << 18
"""Numbers of ``flows`` in an answer, DP ranks x EP ranks: 512 by 512."""
FlowLayerParam = Annotated[
    int | None, Query(description="`flows` of this layer only; absent: of those that `layer` names.")
]


def view_router(state: LiveState, settings: Settings, turns: Turns) -> APIRouter:
    """The route over ``state``."""
    router = APIRouter(tags=["queries"], route_class=turns.route)

    @router.get("/v1/view", responses=documented(400, 404, 422, 503) | {200: described(View)})
    def view(
        server: ServerParam = None,
        model: ModelParam = None,
        pool: PoolParam = None,
        layer: LayerParam = None,
        dp_rank: DpRankParam = None,
        phase: PhaseParam = None,
        start: StartParam = None,
        end: EndParam = None,
        parts: PartsParam = None,
        flow_layer: FlowLayerParam = None,
        min_tokens: MinTokensParam = None,
    ) -> Response:
        """What the page shows of a window: the numbers of /v1/balance and /v1/histogram, each once.

        The summaries cover all layers, also when only some are asked for.
        """
        bounds = parse_bounds(start, end, state.now())
        deployment = choose(state, server, model, pool)
        spans = state.spans(deployment, bounds.start, bounds.end)
        if dp_rank is not None:
            check_dp_rank(dp_rank, (item.producer for item in spans))
        gate = settings.min_tokens if min_tokens is None else min_tokens
        found = assess(merge_spans_of_phase(spans, phase, dp_rank), gate)
        picked = pick_layers(found.window, layer)
        spans = [item for item in spans if dp_rank in (None, _rank(item))]
        result = _view(found, picked, spans, bounds, state.now(), partial_of(state, found.window, dp_rank))
        layers = [found.window.layers[i] for i in picked]
        wanted = set(parts or ())
        if "counts" in wanted:
            result.counts = _counts(layers)
        if "ep_ranks" in wanted:
            _add_ep_ranks(result, found, picked)
        if wanted & {"owners", "hot"}:
            placements = distinct(state.placements(deployment))
            owners = [ep_ranks_of_experts(item.shape, placements) for item in layers]
            result.owners = owners if "owners" in wanted else None
            if "hot" in wanted:
                loads = [found.ep_ranks.cells[i].loads for i in picked]
                result.hot = [_hot(*each) for each in zip(layers, loads, owners, strict=True)]
        if "flows" in wanted:
            _add_flows(result, found.window, spans_of_phase(spans, phase), layer, flow_layer)
        return answer(result)

    return router


def _rank(item: ProducerSpan) -> int:
    return item.producer.latest.producer.dp_rank


def _view(
    found: Assessment,
    picked: list[int],
    spans: list[ProducerSpan],
    bounds: Bounds,
    now: float,
    partial: str | None,
) -> View:
    window = found.window
    end = now if bounds.end is None else min(bounds.end, now)
    seconds: dict[int, float] = {}
    for item in spans:
        seconds[_rank(item)] = max(seconds.get(_rank(item), 0.0), seconds_of(item, end))
    return View(
        server=window.server,
        model=window.model,
        window=window_of(window, bounds),
        now=now,
        phase=window.phase,
        phase_reason=window.phase_reason,
        tokens=window.known_tokens,
        tokens_reason=window.reason,
        partial=partial,
        conflict=window.conflict,
        min_tokens=found.min_tokens,
        dp_size=window.dp_size,
        ep_size=window.ep_size,
        dp_ranks=[_rank_of(rank, seconds[rank.rank], whole=window.phase is None) for rank in window.dp_ranks],
        over_ep_ranks=_summary(found.ep_ranks),
        over_experts=_summary(found.experts),
        layers=[_layer(found, i) for i in picked],
        uncovered=[CompactUncovered(layer, reason) for layer, reason in window.uncovered.items()],
        absent=compact_absent(window.absent),
        counts=None,
        flows=None,
        flows_reason=None,
        owners=None,
        ep_ranks=None,
        hot=None,
    )


def _rank_of(rank: DpRank, seconds: float, whole: bool) -> ViewRank:
    phases = None if rank.phases is None else msgspec.convert(rank.phases, ViewPhases, from_attributes=True)
    known = rank.reason is None and (whole or phases is not None)
    return ViewRank(
        dp_rank=rank.rank,
        tokens=rank.tokens if known else None,
        steps=rank.steps if known else None,
        idle_steps=rank.idle_steps,
        present=rank.present,
        seconds=seconds,
        phases=phases,
        reason=rank.reason,
    )


def _layer(found: Assessment, i: int) -> ViewLayer:
    layer, ep, experts = found.window.layers[i], found.ep_ranks.cells[i], found.experts.cells[i]
    return ViewLayer(
        layer=layer.shape.layer,
        num_experts=layer.shape.num_experts,
        top_k=layer.shape.top_k,
        tokens=int(layer.rows.sum()),
        slots=int(layer.counts.sum()),
        ep_slots=None if ep.loads is None else ep.loads.tolist(),
        over_ep_ranks=values_of(ep.measures),
        ep_reason=ep.reason,
        ep_estimate=layer.ep_estimate,
        over_experts=values_of(experts.measures),
        reason=experts.reason,
    )


def _summary(axis: AxisBalance) -> ViewSummary:
    return msgspec.convert(axis.summary, ViewSummary, from_attributes=True)


def _counts(layers: list[LayerWindow]) -> list[list[int] | None]:
    return [None if layer.not_seen else layer.counts.tolist() for layer in layers]


def _hot(layer: LayerWindow, loads: FloatArray | None, owners: list[int] | None) -> HotSpot | None:
    found = hot_spot(layer.counts, loads, owners)
    return None if found is None or layer.not_seen else HotSpot(found.rank, found.expert, found.over_fair)


def _add_ep_ranks(result: View, found: Assessment, picked: list[int]) -> None:
    """Add sums by EP rank, and leave out what they are the sums of."""
    cells = [(found.window.layers[i].shape.layer, found.ep_ranks.cells[i]) for i in picked]
    sums = ep_rank_sums(
        [(layer, cell.loads) for layer, cell in cells if cell.measures and cell.loads is not None]
    )
    result.ep_ranks = ViewEpRanks(
        sums.slots.tolist(), sums.caused.tolist(), sums.busiest.tolist(), sums.worst_layer
    )
    for layer in result.layers:
        layer.ep_slots = None


def _add_flows(
    result: View,
    window: ModelWindow,
    spans: list[ProducerSpan],
    asked: list[int] | None,
    only: int | None,
) -> None:
    """Add flows if the EP rank of every slot is known, else the reason why it is not."""
    if only is not None:
        check_known("layer", [only], [layer.shape.layer for layer in window.layers])
        asked = [only]
    layers = [window.layers[i] for i in pick_layers(window, asked)]
    reasons = (
        layer.ep_reason or layer.phase_reason or layer.not_seen or layer.why_partial or layer.not_conserved
        for layer in layers
    )
    result.flows_reason = next((reason for reason in reasons if reason), None)
    sides = len(window.dp_ranks), window.ep_size
    if result.flows_reason is None and sides[0] * sides[1] > MAX_FLOWS:
        result.flows_reason = (
            f"{sides[0]:,} DP ranks by {sides[1]:,} EP ranks are more than {MAX_FLOWS:,} numbers; dp_rank= "
            "of /v1/view asks for those of one DP rank"
        )
    if result.flows_reason is None:
        ranks = [rank.rank for rank in window.dp_ranks]
        flows = dp_to_ep_slots(spans, ranks, [layer.shape.layer for layer in layers], window.ep_size)
        result.flows = np.round(flows, 3).tolist()
