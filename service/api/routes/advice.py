"""GET /v1/advice: would another placement of experts be worth it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, replace

import numpy as np
from fastapi import APIRouter

from moescope.service.advice.advise import (
    DEFAULT_FIT_SHARE,
    DEFAULT_MEMORY_PRICE,
    DEFAULT_MIN_GAIN,
    Advice,
    AdviceWish,
    advise,
)
from moescope.service.advice.short import is_short, said_of, short_words
from moescope.service.advice.verdict import name_of
from moescope.service.advice.what_if import Option
from moescope.service.api.limits.turns import Turns
from moescope.service.api.params.advice import (
    DEFAULT_START,
    AdviceStartParam,
    FitShareParam,
    GroupsParam,
    MemoryPriceParam,
    MinGainParam,
    NodesParam,
    RanksParam,
    RedundantsParam,
    answerable,
    parse_redundants,
)
from moescope.service.api.params.query import (
    Bounds,
    EndParam,
    MinTokensParam,
    ModelParam,
    PoolParam,
    ServerParam,
    WeightsParam,
    choose,
    parse_bounds,
)
from moescope.service.api.problems import documented
from moescope.service.api.schemas.advice import (
    AdviceOut,
    DriftOut,
    OptionOut,
    OwnOut,
    VerdictOut,
    WaitingOut,
    left_out_of,
)
from moescope.service.api.schemas.common import Summary, Window
from moescope.service.api.schemas.windows import (
    absent_out,
    bounds_of_weights,
    partial_of,
    partial_over_stages,
    window_out,
    words_of,
)
from moescope.service.counts.weights import WeightsWish
from moescope.service.live.state import LiveState
from moescope.service.measures.arrays import FloatArray
from moescope.service.settings import Settings
from moescope.service.windows.health import silent_stages
from moescope.service.windows.window import ModelWindow


def advice_router(state: LiveState, settings: Settings, turns: Turns) -> APIRouter:
    """The route over ``state``."""
    router = APIRouter(tags=["advice"], route_class=turns.route)

    @router.get("/v1/advice", responses=documented(400, 404, 422, 503))
    def get_advice(
        server: ServerParam = None,
        model: ModelParam = None,
        pool: PoolParam = None,
        start: AdviceStartParam = DEFAULT_START,
        end: EndParam = None,
        ranks: RanksParam = None,
        nodes: NodesParam = None,
        groups: GroupsParam = 1,
        redundant: RedundantsParam = None,
        fit_share: FitShareParam = DEFAULT_FIT_SHARE,
        min_gain: MinGainParam = DEFAULT_MIN_GAIN,
        memory_price: MemoryPriceParam = DEFAULT_MEMORY_PRICE,
        min_tokens: MinTokensParam = None,
        weights: WeightsParam = WeightsWish.LATEST,
    ) -> AdviceOut:
        """Is another placement of experts, or EPLB with so many redundant experts, worth it here?

        Placements are fitted on the first part of the window and judged on the rest, which they have not
        seen, against what the EP ranks really got there. Works whether EPLB is on or off.
        """
        deployment = choose(state, server, model, pool)
        now = state.now()
        asked = parse_bounds(start, end, now)
        bounds = bounds_of_weights(state, deployment, asked, weights)
        wish = AdviceWish(
            ranks=ranks,
            nodes=nodes,
            groups=groups,
            redundant=parse_redundants(redundant),
            fit_share=fit_share,
            min_gain=min_gain,
            memory_price=memory_price,
            min_tokens=settings.min_tokens if min_tokens is None else min_tokens,
        )
        with answerable():
            found = advise(state, deployment, bounds.start, bounds.end, wish)
        partial = partial_of(state, found.windows.pieces[-1])
        silent = silent_stages(state.producers(deployment))
        return _advice(found, bounds, _length(asked, now), min_gain, partial_over_stages(partial, silent))

    return router


def _length(asked: Bounds, now: float) -> float | None:
    """Of the window that was asked for, seconds; None: it has no begin, or that of all time."""
    return (now if asked.end is None else asked.end) - asked.start if asked.start else None


def _advice(
    found: Advice, bounds: Bounds, asked_s: float | None, min_gain: float, partial: str | None
) -> AdviceOut:
    evidence, question = found.evidence, found.question
    verdict = said_of(found.verdict, found.windows)
    fit, pieces = found.windows.fit, found.windows.pieces
    return AdviceOut(
        server=fit.server,
        model=fit.model,
        ranks=question.ranks,
        nodes=question.nodes,
        groups=question.groups,
        num_experts=evidence.experts,
        min_gain=min_gain,
        fit=_window([fit], replace(bounds, end=fit.used.end_latest)),
        held_out=_window(pieces, Bounds(fit.used.end_latest, bounds.end)),
        fit_tokens=evidence.fit_tokens,
        held_out_tokens=evidence.later_tokens,
        seconds=found.windows.seconds,
        enough=not is_short(found.windows),
        short=short_words(found.windows, asked_s),
        partial=partial,
        layers=list(evidence.layers),
        left_out=left_out_of(evidence.left_out),
        absent=absent_out(fit),
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


def _window(windows: Sequence[ModelWindow], bounds: Bounds) -> Window:
    """Windows that follow each other as one."""
    begun, ended = window_out(windows[0], bounds), window_out(windows[-1], bounds)
    weights = words_of(bounds.moved, *(window.weights for window in windows))
    return begun.model_copy(update={"used_end": ended.used_end, "weights": weights})


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
        copies_in_vain=item.in_vain,
        own=None if item.own is None else _own(item.own),
        ep_estimate=item.estimate,
        fitted_by_layer=_floats(item.fitted.by_layer),
        held_out_by_layer=_floats(item.held_out.by_layer),
    )


def _own(item: Option) -> OwnOut:
    return OwnOut(
        fitted=Summary(**asdict(item.fitted.summary)),
        held_out=Summary(**asdict(item.held_out.summary)),
        saving_fitted=item.saving_fitted,
        saving_held_out=item.saving_held_out,
        copies_to_move=item.moves,
        copies_in_vain=item.in_vain or 0,
    )


def _floats(values: FloatArray) -> list[float | None]:
    return [None if math.isnan(value) else value for value in np.asarray(values).tolist()]
