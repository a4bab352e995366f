"""What /v1/advice answers, as types."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field

from moescope.service.advice.evidence import LayerReasons
from moescope.service.api.schemas.common import Absent, Partial, Summary, Window

StrategyName = Literal["present", "linear", "round_robin", "eplb"]


class OwnOut(BaseModel):
    """Our own placement by load, with as many redundant experts as the option has.

    No EP rank has two copies of one expert while there is room elsewhere. /v1/advice/placement gives its map.
    """

    fitted: Summary
    held_out: Summary
    saving_fitted: float
    saving_held_out: float
    copies_to_move: int | None
    copies_in_vain: int


class OptionOut(BaseModel):
    """A placement of experts, and the balance over EP ranks to expect of it.

    Every figure comes twice: on the window that it was fitted on, and on the later one that it had not seen.
    """

    strategy: StrategyName = Field(
        description="present: what was observed. linear: contiguous spans. round_robin: expert e on rank e "
        "mod ranks. eplb: by load, what vLLM's default EPLB policy would make of it."
    )
    redundant: int | None = Field(description="Redundant experts of each layer; null for present.")
    name: str = Field(description="In words.")
    fitted: Summary = Field(description="Imbalance over EP ranks in the window that it was fitted on.")
    held_out: Summary = Field(description="Imbalance over EP ranks in the later window.")
    saving_fitted: float = Field(
        description="Predicted: 1 - ratio of sums / the base's, in the first window. The share of the "
        "busiest ranks' slots that it would save."
    )
    saving_held_out: float = Field(
        description="The saving in the later window, against the base there: what it is really worth."
    )
    pieces: list[float | None] = Field(
        description="Ratio of sums in each piece of the later window, in order: whether the placement ages."
    )
    copies_to_move: int | None = Field(
        description="Expert copies to send to ranks that don't hold them now, over all judged layers; null: "
        "it isn't known where the experts are now."
    )
    copies_in_vain: int | None = Field(
        description="Copies on an EP rank that has another one of the same expert, over all judged layers: "
        "memory for nothing. null: it isn't known where the experts are now."
    )
    own: OwnOut | None = Field(
        description="Our own placement, where vLLM's policy (eplb) would make copies in vain; else null."
    )
    ep_estimate: str | None = Field(
        description="Why what the EP ranks got, and so every figure here, is an estimate, of present; null: "
        "it is exact, or the option is a placement."
    )
    fitted_by_layer: list[float | None] = Field(
        description="Imbalance ratio in the first window, in the order of layers."
    )
    held_out_by_layer: list[float | None] = Field(
        description="Imbalance ratio in the later window, in the order of layers."
    )


class DriftOut(BaseModel):
    """How far the routing moved between the two windows: Jensen-Shannon divergence over experts, bits."""

    median: float = Field(description="Over layers.")
    worst: float
    worst_layer: int
    noise: float = Field(description="What sampling alone would show, median over layers.")


class WaitingOut(BaseModel):
    """Straggler cost in the later window, over single steps: what /v1/stragglers says of it."""

    cost: float = Field(description="Share of the time in experts that an average EP rank waits.")
    windowed: float = Field(description="That share from the window's sums: all that placement can mend.")
    steps: int = Field(description="Steps of which the loads of all ranks are known.")


class VerdictOut(BaseModel):
    """What to do, and why."""

    decision: Literal["worth_it", "not_worth_it", "ages_too_fast", "too_early", "no_sample"] = Field(
        description="ages_too_fast: it would have been worth it on the loads it was fitted on, and was not "
        "on later ones. too_early: the data span less than 10 minutes. no_sample: too few tokens."
    )
    strategy: StrategyName | None = Field(
        description="The recommended placement (too_early: the best so far); null: leave it as it is."
    )
    redundant: int | None = Field(description="Its redundant experts.")
    words: str
    evidence: list[str] = Field(description="The figures that the verdict rests on, a sentence each.")


class LeftOut(BaseModel):
    """A layer that could not be judged."""

    layer: int
    reason: str


def left_out_of(found: LayerReasons) -> list[LeftOut]:
    """The layers that could not be judged, with the reason of each."""
    return [LeftOut(layer=layer, reason=reason) for layer, reason in found.items()]


class AdviceOut(BaseModel):
    """Whether another placement of experts is worth it, judged by what the deployment really routed."""

    server: str
    model: str
    ranks: int = Field(description="EP ranks that experts are placed on.")
    nodes: int
    groups: int = Field(
        description="Expert groups of the router; placement keeps to nodes if nodes divide it."
    )
    num_experts: int
    min_gain: float
    fit: Window = Field(description="The window that placements were fitted on.")
    held_out: Window = Field(description="The later window that they were checked on.")
    fit_tokens: int
    held_out_tokens: int
    seconds: float = Field(description="That the data of both windows really span.")
    enough: bool = Field(description="Whether that is enough to say what a placement is worth (10 minutes).")
    short: str | None = Field(
        description="To be said first: the data span less than was asked, or too little. null: neither."
    )
    partial: Partial
    layers: list[int] = Field(description="Layers that were judged.")
    left_out: list[LeftOut]
    absent: list[Absent]
    base: OptionOut | None = Field(
        description="What savings are against: present where known, else linear; null without a sample."
    )
    options: list[OptionOut]
    drift: DriftOut | None
    waiting: WaitingOut | None = Field(description="null: no loads of single steps, or other ranks.")
    verdict: VerdictOut


class AscendDevice(BaseModel):
    """An EP rank of vllm-ascend's map."""

    device_id: int = Field(description="EP rank.")
    device_expert: list[int] = Field(description="Logical experts that it holds, in order.")


class AscendLayer(BaseModel):
    """An MoE layer of vllm-ascend's map."""

    layer_id: int = Field(description="Ordinal among the MoE layers.")
    device_count: int
    device_list: list[AscendDevice]


class AscendMap(BaseModel):
    """The file that vllm-ascend loads as ``expert_map_path``, when it is asked for."""

    moe_layer_count: int
    layer_list: list[AscendLayer]


class RearrangementOut(BaseModel):
    """A rearrangement of experts by EPLB: what it promised, and what it gave.

    Ratios are sum of max / sum of mean over layers, over EP ranks, of up to five minutes before and after.
    Costs are measured over the single steps of the same minutes, with the loads that each of them had.
    """

    at: float = Field(description="When the first worker reported it, Unix seconds on the service's clock.")
    everywhere_at: float = Field(description="When the last worker did.")
    version: int = Field(description="Version of the placement, afterwards.")
    layers: int = Field(description="Layers that were judged.")
    copies_moved: int | None = Field(description="Expert copies that went to ranks without one.")
    before: float | None = Field(description="Observed before it.")
    predicted: float | None = Field(description="The new placement on the loads before it.")
    achieved: float | None = Field(description="Observed after it.")
    otherwise: float | None = Field(description="The former placement on the loads after it.")
    saving_predicted: float | None = Field(description="1 - predicted / before.")
    saving_achieved: float | None = Field(description="1 - achieved / otherwise.")
    tokens_before: int
    tokens_after: int
    cost_before: float | None = Field(
        description="Straggler cost over the single steps before it, as in /v1/stragglers. null: no step."
    )
    cost_after: float | None = Field(description="The same over the single steps after it.")
    steps_before: int = Field(description="Steps before it of which the loads of all ranks are known.")
    steps_after: int = Field(description="The same after it.")
    ep_estimate: str | None = Field(
        description="Why what EP ranks got before or after it, and so the ratios, is an estimate; null: it "
        "is exact, or not known."
    )
    weights: str | None = Field(
        description="Why the loads before or after it, or the two of them, are of several versions of the "
        "weights; null: nothing says so."
    )
    reason: str | None = Field(description="Why ratios are null.")


class Rearrangements(BaseModel):
    """Rearrangements since the service started, newest first."""

    server: str
    model: str
    rearrangements: list[RearrangementOut]


class DoubleOut(BaseModel):
    """Several copies of one expert on one EP rank."""

    layer: int
    ep_rank: int
    expert: int
    copies: int


class PlacementMap(BaseModel):
    """A placement, fitted on the whole window. Rows are MoE layers, columns physical experts."""

    server: str
    model: str
    strategy: StrategyName
    policy: Literal["moescope", "vllm"] | None = Field(
        description="Whose placement by load: our own, or what vLLM's would be; null: it is not by load."
    )
    redundant: int
    window: Window
    partial: str | None = Field(
        description="Why this is of a part of the deployment only; null: all DP ranks and all pipeline "
        "stages that were asked for are in it."
    )
    num_logical_experts: int
    num_physical_experts: int
    num_ranks: int
    layers: list[int] = Field(description="Decoder layer of each row.")
    physical_to_logical_map: list[list[int]] = Field(
        description="[layers][physical]: as vLLM's EPLB state has it; physical expert p is on rank p // "
        "(physical / ranks) when strategy is eplb, else where physical_to_rank says."
    )
    physical_to_rank: list[list[int]] = Field(description="[layers][physical]: EP rank.")
    logical_replica_count: list[list[int]] = Field(description="[layers][logical]: copies.")
    doubles: list[DoubleOut] = Field(
        description="EP ranks with several copies of one expert, which take memory and no load off the rank."
    )
    left_out: list[LeftOut]
    absent: list[Absent]
