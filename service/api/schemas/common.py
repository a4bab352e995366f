"""What the API answers, as types; ``/docs`` shows them."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field

from moescope.service.api.schemas.measures import Measures
from moescope.service.counts.phase_split import Phase


class Receipt(BaseModel):
    """Answer to a frame."""

    result: Literal["accepted", "duplicate", "stale"] = Field(
        description="accepted: counted. duplicate: this seq was here before. stale: a later one was. "
        "All three leave the totals right; none needs to be sent again."
    )
    epoch: int = Field(description="The frame's epoch.")
    seq: int = Field(description="The frame's seq.")


class Span(BaseModel):
    """Earliest and latest instant among the producers, which report one after the other; Unix seconds."""

    earliest: float
    latest: float


class Window(BaseModel):
    """The window asked for and the one answered; instants are Unix seconds on the service's clock."""

    start: float | None = Field(description="Asked begin; null: since the producers started.")
    end: float | None = Field(description="Asked end; null: now.")
    used_start: Span = Field(description="When the totals that were subtracted were true.")
    used_end: Span = Field(description="When the totals that they were subtracted from were true.")
    truncated: bool = Field(description="The window began before what the service remembers.")


class Uncovered(BaseModel):
    """An MoE layer whose routing can't be seen. It has no counts, rather than zeros."""

    layer: int
    reason: str


class MismatchOut(BaseModel):
    """A law of conservation that a layer breaks: ``slots`` = rows x top-k, ``rows`` = tokens."""

    layer: int
    law: Literal["slots", "rows"]
    expected: int
    got: int


class ProducerOut(BaseModel):
    """One vLLM worker process that counts."""

    tp_rank: int
    pp_rank: int
    ep_rank: int
    host: str
    pid: int
    vllm_version: str
    moescope_version: str
    state: Literal["counting", "disabled", "stale"] = Field(
        description="disabled: it stopped counting for good, see state_reason. stale: it fell silent."
    )
    state_reason: str
    age_seconds: float = Field(description="Time since its newest frame was accepted.")
    epoch: int = Field(description="Start of its counting, nanoseconds of Unix time on its own clock.")
    seq: int
    restarts: int
    placement_version: int | None = Field(description="null: it doesn't know where the experts are.")
    strategy: str = Field(
        description="How it counts: kernel-per-step, kernel-per-layer or torch-per-layer; empty: unknown."
    )
    layers: list[int] = Field(description="MoE layers that it counts.")
    uncovered: list[Uncovered]
    mismatches: list[MismatchOut] = Field(description="Layers whose counts don't add up.")
    traces: dict[str, int] | None = Field(
        description="Traces: captured = delivered + dropped_<reason> + in_flight; null: none asked for."
    )
    drops: dict[str, int] = Field(description="What it lost or put off, by reason; never counts of tokens.")


class PhasesOut(BaseModel):
    """What a DP rank computed for prompts (prefill) and for what follows them (decode)."""

    prefill_tokens: int
    decode_tokens: int
    prefill_steps: int = Field(description="Steps with prefill tokens only.")
    decode_steps: int = Field(description="Steps with decode tokens only.")
    mixed_steps: int = Field(description="Steps with tokens of both phases.")


class DpRankOut(BaseModel):
    """One data-parallel rank, over all epochs of its producers."""

    dp_rank: int
    tokens: int = Field(description="Tokens computed for requests: no padding, no dummy steps.")
    steps: int
    idle_steps: int = Field(description="Dummy steps, run because another DP rank had work.")
    phases: PhasesOut | None = Field(description="null: the phases of some of its tokens are not known.")
    unseen_layers: list[int] = Field(
        description="Layers that it claims to cover and never saw a token in, although it computed some."
    )
    producers: list[ProducerOut]


class DeploymentOut(BaseModel):
    """All ranks of one vLLM deployment and model."""

    server: str
    model: str
    dp_size: int
    ep_size: int
    missing_dp_ranks: list[int] = Field(description="DP ranks that should exist and never reported.")
    dp_ranks: list[DpRankOut]


class Ranks(BaseModel):
    """Everything that reports."""

    deployments: list[DeploymentOut]


class LayerHistogram(BaseModel):
    """Slots by logical expert in one layer; a slot is one (token, chosen expert) pair."""

    layer: int = Field(description="Decoder layer index, as in the model's config.")
    num_experts: int
    top_k: int
    dp_ranks: list[int] = Field(description="DP ranks whose tokens are in the counts.")
    missing_dp_ranks: list[int] = Field(
        description="DP ranks that computed tokens which this layer can't show."
    )
    tokens: int | None = Field(description="Tokens seen in this layer; null with counts.")
    slots: int | None = Field(description="Sum of counts; null with counts.")
    counts: list[int] | None = Field(description="Slots per logical expert; null when the layer wasn't seen.")
    shares: list[float] | None = Field(description="counts / slots; null when there are no slots.")
    reason: str | None = Field(description="Why counts or shares are null.")


class Histogram(BaseModel):
    """Slots by layer and logical expert in a window."""

    server: str
    model: str
    window: Window
    dp_rank: int | None = Field(description="The DP rank asked for; null: all of them.")
    phase: Phase | None = Field(description="The phase asked for; null: tokens of both.")
    phase_reason: str | None = Field(
        description="Why it isn't known which tokens are of the phase; null: it is, or none was asked for."
    )
    tokens: int | None = Field(description="Tokens computed in the window; null for phase_reason.")
    layers: list[LayerHistogram]
    uncovered: list[Uncovered]
    series: list[Interval] | None = Field(None, description="The window in steps, when a step was asked for.")


class LayerCounts(BaseModel):
    """Slots of one layer in one interval."""

    layer: int
    tokens: int | None = Field(description="Tokens seen in this layer; null with counts.")
    counts: list[int] | None = Field(description="Slots per logical expert; null when the layer wasn't seen.")


class Interval(BaseModel):
    """One interval of a series. Neighbours share the totals at their boundary, so that counts add up."""

    start: float = Field(description="Asked begin, Unix seconds.")
    end: float = Field(description="Asked end.")
    truncated: bool = Field(description="It began before what is kept: what came before may be missing.")
    tokens: int | None = Field(description="Tokens computed in the interval; null: not known by phase.")
    layers: list[LayerCounts]


class TraceReceipt(BaseModel):
    """Answer to a part of a trace: it is kept. Sending it again changes nothing."""

    trace: int
    part: int
    parts: int


class TraceOut(BaseModel):
    """A traced request."""

    request_id: str = Field(description="vLLM's internal id, which is unique.")
    names: list[str] = Field(description="All ids that find it: the completion's id and X-Request-Id too.")
    server: str
    model: str
    dp_rank: int
    outcome: Literal["ended", "cut_off"] = Field(
        description="ended: vLLM was done with it, finished or aborted. cut_off: its worker was shut down."
    )
    tokens: int = Field(description="Tokens computed for it, those computed again after a preemption too.")
    prompt_tokens: int
    cached_tokens: int = Field(description="Leading positions that a prefix cache had: not computed.")
    preemptions: int
    started_at: float = Field(description="First step, Unix seconds, on its worker's clock.")
    ended_at: float
    stored_at: float = Field(description="When the service got it, Unix seconds.")


class TracePage(BaseModel):
    """Traced requests, newest first."""

    traces: list[TraceOut]
    next_cursor: str | None = Field(description="Give it as cursor to get the next page; null: none.")


class Cell(BaseModel):
    """One layer along one axis."""

    loads: list[float] | None = Field(description="Slots (or tokens) each got; null: not known.")
    measures: Measures | None = Field(description="null: no sample, for the reason given.")
    reason: str | None


class Summary(BaseModel):
    """The imbalance ratio across layers; null when no layer has a sample."""

    worst: float | None
    worst_layer: int | None
    p50: float | None
    p90: float | None
    ratio_of_sums: float | None = Field(
        description="Sum over layers of max / sum over layers of mean: estimates the straggler's cost."
    )
    layers: int = Field(description="Layers that had a sample.")


class LayerBalance(BaseModel):
    """Balance of one layer along three axes; loads are slots."""

    layer: int
    tokens: int = Field(description="Tokens seen in this layer.")
    over_ep_ranks: Cell = Field(description="Who got the slots: the GPUs that hold the experts.")
    over_dp_ranks: Cell = Field(description="Whose tokens they were, in the order of dp_ranks.")
    over_experts: Cell = Field(description="Which logical experts they chose.")


class Summaries(BaseModel):
    """One summary an axis."""

    over_ep_ranks: Summary
    over_dp_ranks: Summary
    over_experts: Summary


class Balance(BaseModel):
    """Balance of a deployment in a window."""

    server: str
    model: str
    window: Window
    min_tokens: int = Field(description="Fewer tokens than this are no sample.")
    phase: Phase | None = Field(description="The phase asked for; null: tokens of both.")
    phase_reason: str | None = Field(
        description="Why it isn't known which tokens are of the phase; null: it is, or none was asked for."
    )
    tokens: int | None = Field(description="Tokens computed in the window; null for phase_reason.")
    dp_ranks: list[int] = Field(description="DP ranks that took part.")
    missing_dp_ranks: list[int] = Field(description="DP ranks that should exist and never reported.")
    dp_tokens: Cell = Field(description="Tokens of each DP rank, in the order of dp_ranks.")
    summary: Summaries
    layers: list[LayerBalance]
    uncovered: list[Uncovered]
