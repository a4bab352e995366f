"""What each rearrangement by EPLB promised on the loads before it, and what it gave on the loads after it.

The loads before and after differ too. So the achieved saving compares the new placement with the former one
on the same later loads, not with what the former one had earlier.

All that is of sums over a window. Ranks wait for each other in each step, so the straggler cost of the steps
before and after stands beside it: what was measured, with whatever loads there were.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import Final

import numpy as np

from moescope.service.advice.evidence import why_estimated
from moescope.service.advice.placements import PlacementArrays, from_tables, moves
from moescope.service.live.placements import DatedPlacement
from moescope.service.live.producers import Deployment, ProducerSpan
from moescope.service.live.state import LiveState
from moescope.service.measures.arrays import FloatArray
from moescope.service.measures.loads import max_and_mean
from moescope.service.windows.step_window import cost_of, straggler_cost
from moescope.service.windows.weights import changed_at
from moescope.service.windows.window import ModelWindow, merge_spans

WINDOW_S: Final = 300.0
"""Longest time before and after a rearrangement that is compared."""
SETTLE_S: Final = 5.0
"""Placements that follow each other sooner are one rearrangement: async EPLB commits layer by layer."""
_JUST_BEFORE_S: Final = 1e-3


@dataclass(frozen=True, slots=True)
class Rearrangement:
    """One rearrangement of a pipeline stage's layers.

    Attributes:
        at: when the first worker reported it, ``everywhere_at`` the last; seconds of Unix time.
        version: the placement's, afterwards.
        layers: layers that were judged.
        copies_moved: expert copies that went to ranks without one; None: the placements can't be compared.
        before, achieved: ratio of sums over EP ranks, as observed before and after it.
        predicted: ratio of sums of the new placement on the loads before it.
        otherwise: ratio of sums of the former placement on the loads after it.
        saving_predicted: 1 - predicted / before; ``saving_achieved`` 1 - achieved / otherwise.
        tokens_before, tokens_after: computed in the two windows.
        cost_before, cost_after: straggler cost over the single steps of the two windows; None: no step was
            joined. ``steps_before`` and ``steps_after`` are how many were.
        ep_estimate: why what EP ranks got before or after it is an estimate, or None.
        weights: why the loads are of several versions of the weights, or None. Each ratio holds for the loads
            it is of; but what was promised and what was given are then of unlike loads.
        reason: why the ratios are None, or None.
    """

    at: float
    everywhere_at: float
    version: int
    layers: int
    copies_moved: int | None
    before: float | None
    predicted: float | None
    achieved: float | None
    otherwise: float | None
    saving_predicted: float | None
    saving_achieved: float | None
    tokens_before: int
    tokens_after: int
    cost_before: float | None
    cost_after: float | None
    steps_before: int
    steps_after: int
    ep_estimate: str | None
    weights: str | None
    reason: str | None


def rearrangements(state: LiveState, deployment: Deployment, min_tokens: int) -> list[Rearrangement]:
    """All that are remembered, newest first.

    Raises:
        StoreError: the archive can't be read.
    """
    found = []
    known = state.placement_history(deployment)
    for _, stage in groupby(known, key=lambda item: item.pp_rank):
        settled = _settled(list(stage))
        ends = [*(after[0].at for after in settled[1:]), state.now()]
        for (before, after), end in zip(pairwise(settled), ends[1:], strict=True):
            found.append(_judge(state, deployment, before, after, end, min_tokens))
    return sorted(found, key=lambda item: item.at, reverse=True)


def _settled(known: list[DatedPlacement]) -> list[list[DatedPlacement]]:
    """Placements that follow each other at once, together."""
    runs: list[list[DatedPlacement]] = []
    for item in known:
        if runs and item.at - runs[-1][-1].at < SETTLE_S:
            runs[-1].append(item)
        else:
            runs.append([item])
    return runs


def _judge(
    state: LiveState,
    deployment: Deployment,
    former: Sequence[DatedPlacement],
    newer: Sequence[DatedPlacement],
    end: float,
    min_tokens: int,
) -> Rearrangement:
    old, new = former[-1], newer[-1]
    first, last = newer[0].at - _JUST_BEFORE_S, new.everywhere_at
    earlier = max(first - WINDOW_S, old.everywhere_at)
    spans_before = state.spans(deployment, min(earlier, first), first)
    spans_after = state.spans(deployment, last, max(last, min(end - _JUST_BEFORE_S, last + WINDOW_S)))
    before, after = merge_spans(spans_before), merge_spans(spans_after)
    stage = new.pp_rank
    costs = [_cost(spans, stage) for spans in (spans_before, spans_after)]
    layers = sorted({layer.layer for layer in new.layers} & {layer.layer for layer in old.layers})
    reason = _why_not(before, after, min_tokens)
    ratios: list[float | None] = [None] * 4
    old_arrays, new_arrays = (_as_arrays(item, layers, before.ep_size) for item in (old, new))
    if reason is None and (old_arrays is None or new_arrays is None):
        reason = "the two placements can't be compared: their layers or ranks differ"
    if reason is None and old_arrays is not None and new_arrays is not None:
        loads = [_counts(window, layers) for window in (before, after)]
        seen = [_seen(window, layers) for window in (before, after)]
        ratios = [
            _ratio(found)
            for found in (seen[0], new_arrays.loads(loads[0]), seen[1], old_arrays.loads(loads[1]))
        ]
    return Rearrangement(
        at=newer[0].at,
        everywhere_at=last,
        version=new.placement.version,
        layers=len(layers) if reason is None else 0,
        copies_moved=_moved(old_arrays, new_arrays),
        before=ratios[0],
        predicted=ratios[1],
        achieved=ratios[2],
        otherwise=ratios[3],
        saving_predicted=_saving(ratios[0], ratios[1]),
        saving_achieved=_saving(ratios[3], ratios[2]),
        tokens_before=before.tokens,
        tokens_after=after.tokens,
        cost_before=costs[0][0],
        cost_after=costs[1][0],
        steps_before=costs[0][1],
        steps_after=costs[1][1],
        ep_estimate=_estimate(before, after, layers) if reason is None else None,
        weights=_weights((before, spans_before), (after, spans_after)),
        reason=reason,
    )


def _cost(spans: Sequence[ProducerSpan], pp_rank: int) -> tuple[float | None, int]:
    """The straggler cost of a pipeline stage's joined steps, and how many these are."""
    found = cost_of([item for item in spans if item.producer.latest.producer.pp_rank == pp_rank])
    joined = sum(stage.joined for stage in found.stages.values())
    return straggler_cost(*found.sums), joined


def _why_not(before: ModelWindow, after: ModelWindow, min_tokens: int) -> str | None:
    for name, window in (("before", before), ("after", after)):
        if window.tokens < max(min_tokens, 1):
            return f"too few tokens {name} it: {window.tokens} of at least {min_tokens}"
        for layer in window.layers:
            reason = layer.not_seen or layer.ep_reason or layer.why_partial or layer.not_conserved
            if reason is not None:
                return f"layer {layer.shape.layer}, {name} it: {reason}"
    return None


def _estimate(before: ModelWindow, after: ModelWindow, layers: Sequence[int]) -> str | None:
    """Why what EP ranks got in these layers is an estimate; None: it is exact."""
    for name, window in (("before", before), ("after", after)):
        found = why_estimated(layer for layer in window.layers if layer.shape.layer in layers)
        if found is not None:
            return f"{name} it, {found}"
    return None


def _weights(
    before: tuple[ModelWindow, Sequence[ProducerSpan]], after: tuple[ModelWindow, Sequence[ProducerSpan]]
) -> str | None:
    """Why the two windows' tokens are of several versions of the weights; None: nothing says so."""
    for name, (window, _) in (("before", before), ("after", after)):
        if window.weights is not None:
            return f"{name} it: {window.weights}"
    former, present = (changed_at(item.span.last for item in spans) for _, spans in (before, after))
    if present > former:
        return "the weights were changed between the loads before it and those after it"
    return None


def _as_arrays(item: DatedPlacement, layers: Sequence[int], ranks: int) -> PlacementArrays | None:
    at = {layer.layer: i for i, layer in enumerate(item.layers)}
    experts = {item.layers[at[layer]].num_experts for layer in layers}
    if len(experts) != 1:
        return None
    tables = [item.placement.tables[item.placement.table_of_layer[at[layer]]] for layer in layers]
    return from_tables(tables, experts.pop(), ranks)


def _counts(window: ModelWindow, layers: Sequence[int]) -> FloatArray:
    """Slots per expert of these layers, float64 [L, E]."""
    by_id = {layer.shape.layer: layer.counts for layer in window.layers}
    return np.array([by_id[layer] for layer in layers], dtype=np.float64)


def _seen(window: ModelWindow, layers: Sequence[int]) -> FloatArray:
    """Slots that each EP rank got in these layers, float64 [L, G]."""
    by_id = {layer.shape.layer: layer.ep_slots[: window.ep_size] for layer in window.layers}
    return np.array([by_id[layer] for layer in layers])


def _ratio(loads: FloatArray) -> float:
    most, mean = max_and_mean(loads)
    return float(np.nansum(most) / np.nansum(mean))


def _saving(without: float | None, with_it: float | None) -> float | None:
    return None if without is None or with_it is None else 1.0 - with_it / without


def _moved(old: PlacementArrays | None, new: PlacementArrays | None) -> int | None:
    if old is None or new is None or (old.ranks, old.experts) != (new.ranks, new.experts):
        return None
    return int(moves(old, new).sum())
