"""What /v1/view answers, as types."""

from __future__ import annotations

import msgspec

from moescope.service.api.schemas.compact import CompactAbsent, CompactUncovered, CompactWindow
from moescope.service.api.schemas.measures import CompactMeasures
from moescope.service.counts.phase_split import Phase


class ViewPhases(msgspec.Struct):
    """What a DP rank computed by phase, as in /v1/ranks."""

    prefill_tokens: int
    decode_tokens: int
    prefill_steps: int
    decode_steps: int
    mixed_steps: int


class ViewRank(msgspec.Struct):
    """A DP rank in the window.

    `seconds` is the time that its totals really span, for tokens per second. If the rank fell silent in the
    window, the time goes on until the window's end, since the rank computed nothing after it fell silent.

    If a phase was asked for, `tokens` are its tokens and `steps` the steps with any of them. `tokens`,
    `steps` and `phases` are null where the phases of some tokens are not known. `reason` says why not even
    all tokens are known; then `tokens` and `steps` are null.
    """

    dp_rank: int
    tokens: int | None
    steps: int | None
    idle_steps: int
    present: bool
    seconds: float
    phases: ViewPhases | None
    reason: str | None


class ViewSummary(msgspec.Struct):
    """The imbalance ratio (max / mean) across layers; null when no layer has a sample."""

    worst: float | None
    worst_layer: int | None
    p50: float | None
    p90: float | None
    ratio_of_sums: float | None
    layers: int


class ViewLayer(msgspec.Struct):
    """One MoE layer; null is no sample, for the reason given. `ep_slots` is null too beside `ep_ranks`.

    `ep_estimate` says why `ep_slots` and what follows from them are an estimate; null: they are exact.
    """

    layer: int
    num_experts: int
    top_k: int
    tokens: int
    slots: int
    ep_slots: list[float] | None
    over_ep_ranks: CompactMeasures | None
    ep_reason: str | None
    ep_estimate: str | None
    over_experts: CompactMeasures | None
    reason: str | None


class ViewEpRanks(msgspec.Struct):
    """Sums over the layers that have a sample over EP ranks, one number an EP rank.

    `caused` are the slots that the other ranks waited for it, by the sums of the window: in each layer max -
    mean, for the busiest rank. `busiest` are the layers in which it was that; ranks that tie share both.
    `worst_layer` is the layer in which it caused most; null: it caused no waiting.
    """

    slots: list[float]
    caused: list[float]
    busiest: list[float]
    worst_layer: list[int | None]


class HotSpot(msgspec.Struct):
    """The busiest EP rank of a layer, and its busiest expert.

    `ep_rank` is null where loads of EP ranks are not known. `expert` is the busiest of the experts that only
    this rank holds; the busiest of all where that isn't known. `over_fair` are its slots as a multiple of a
    fair share (the layer's slots / its experts).
    """

    ep_rank: int | None
    expert: int
    over_fair: float


class View(msgspec.Struct):
    """A deployment in a window.

    `counts` are slots by expert, one list a layer; null for a layer that wasn't seen. `flows` are slots by DP
    rank (as in `dp_ranks`) and EP rank. `owners` are the EP ranks that hold each expert, one list a layer: -1
    where that isn't known, -2 where several hold a copy. `phase` is the phase that was asked for (null:
    both). `phase_reason` says why it isn't known which tokens are of that phase; then `tokens`, and what
    needs them, is null. `tokens_reason` is the reason why `tokens` is null, whatever was asked for.
    `ep_ranks` has sums over layers by EP rank, in place of the `ep_slots` of each layer.
    `hot` has the busiest EP rank and expert of each layer; null for a layer without slots.
    `conflict` says why there is no balance because several live processes claim one rank, or did in the
    window.
    `partial` says why all this is of a part of the deployment only, and which other name may have the rest;
    null: all its DP ranks are in it.
    """

    server: str
    model: str
    window: CompactWindow
    now: float
    phase: Phase | None
    phase_reason: str | None
    tokens: int | None
    tokens_reason: str | None
    partial: str | None
    conflict: str | None
    min_tokens: int
    dp_size: int
    ep_size: int
    dp_ranks: list[ViewRank]
    over_ep_ranks: ViewSummary
    over_experts: ViewSummary
    layers: list[ViewLayer]
    uncovered: list[CompactUncovered]
    absent: list[CompactAbsent]
    counts: list[list[int] | None] | None
    flows: list[list[float]] | None
    flows_reason: str | None
    owners: list[list[int] | None] | None
    ep_ranks: ViewEpRanks | None
    hot: list[HotSpot | None] | None
