"""What /v1/ranks answers, as types."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field

from moescope.service.api.schemas.common import Absent, Partial, Uncovered


class MismatchOut(BaseModel):
    """A law of conservation that a layer breaks.

    ``slots``: a worker's slots are its rows x top-k. ``rows``: the rows of a DP rank's TP workers add up to
    its tokens; ``prefill_rows`` and ``decode_rows``: so do those of each phase.
    """

    layer: int
    law: Literal["slots", "rows", "prefill_rows", "decode_rows"]
    expected: int
    got: int


class StageOut(BaseModel):
    """Whether rows add up to tokens in each layer of one pipeline stage, over its TP workers."""

    pp_rank: int
    state: Literal["holds", "broken", "unknown"] = Field(
        description="holds: in each layer, as of the last comparison. broken: not in those of `mismatches`, "
        "since the workers started. unknown: for `reason`."
    )
    reason: str | None = Field(description="Why it is unknown.")
    compared_steps: int | None = Field(
        description="Steps, dummy steps included, after which the workers were compared last; null: never."
    )
    compared_tokens: int | None = Field(description="Tokens that the DP rank had computed by then.")
    compared_age_seconds: float | None = Field(description="Time since that comparison.")
    mismatches: list[MismatchOut] = Field(
        description="Layers whose rows aren't the tokens; of unlike steps, how far off at least."
    )


class LifeOut(BaseModel):
    """One of several live processes that claim one rank; its totals are its own."""

    host: str
    pid: int
    start: str = Field(description="vLLM's id of the start of its server; empty: it doesn't tell.")
    epoch: int
    seq: int
    age_seconds: float = Field(description="Time since its newest frame was accepted.")
    tokens: int = Field(description="Tokens that it counted since its start.")
    steps: int


class ProducerOut(BaseModel):
    """One vLLM worker process that counts."""

    tp_rank: int
    pp_rank: int
    ep_rank: int
    host: str
    pid: int
    vllm_version: str
    moescope_version: str
    state: Literal["counting", "disabled", "stale", "conflict", "gone"] = Field(
        description="disabled: it stopped counting for good or never began, see state_reason. "
        "stale: it fell silent. gone: nobody waits for its frames, see gone_reason. "
        "conflict: several live processes claim this rank, see state_reason and lives."
    )
    gone_reason: str | None = Field(description="Why nobody waits for its frames any more, or null.")
    state_reason: str
    lives: list[LifeOut] = Field(
        description="Live processes that claim this rank, oldest first; empty: there is no conflict."
    )
    age_seconds: float = Field(description="Time since its newest frame was accepted.")
    started_seconds: float = Field(description="Time since its newest start.")
    epoch: int = Field(description="Start of its counting, nanoseconds of Unix time on its own clock.")
    seq: int
    restarts: int
    placement_version: int | None = Field(description="null: it doesn't know where the experts are.")
    weights_version: int = Field(description="How often its weights were changed since its counting began.")
    weights_label: str = Field(description="What vLLM was told that its weights are; empty: nothing.")
    weights_changed_at: float | None = Field(
        description="When its weights were changed last, Unix seconds on the service's clock; null: never."
    )
    strategy: str = Field(
        description="How it counts: kernel-per-step, kernel-per-layer or torch-per-layer; empty: unknown."
    )
    layers: list[int] = Field(description="MoE layers that it counts.")
    uncovered: list[Uncovered]
    absent: list[Absent] = Field(
        description="MoE layers that the model's config has and that were not found in the model."
    )
    mismatches: list[MismatchOut] = Field(description="Layers whose slots are not rows x top-k.")
    traces: dict[str, int] | None = Field(
        description="Traces: captured = delivered + dropped_<reason> + in_flight; null: none asked for."
    )
    unavailable: dict[str, str] = Field(
        description="What it can't tell, and why: phases, traces, placement, steps (loads of single "
        "steps) or drafts (accepted or rejected)."
    )
    drops: dict[str, int] = Field(description="What it lost or put off, by reason; never counts of tokens.")


class PhasesOut(BaseModel):
    """What a DP rank computed for prompts (prefill) and for what follows them (decode)."""

    prefill_tokens: int
    decode_tokens: int
    prefill_steps: int = Field(description="Steps with prefill tokens only.")
    decode_steps: int = Field(description="Steps with decode tokens only.")
    mixed_steps: int = Field(description="Steps with tokens of both phases.")


class DraftsOut(BaseModel):
    """Draft tokens of speculative decoding that a DP rank computed."""

    accepted: int = Field(description="Draft tokens that are in answers.")
    rejected: int = Field(
        description="Tokens computed in vain: drafts that were rejected, and what was computed behind "
        "the end of a request."
    )


class DpRankOut(BaseModel):
    """One data-parallel rank, over all epochs of its producers."""

    dp_rank: int
    tokens: int | None = Field(
        description="Tokens computed for requests: no padding, no dummy steps. null, like all numbers here: "
        "none of its workers ever counted."
    )
    tokens_reason: str | None = Field(
        description="Why these numbers are not those of all that it computed, but of what was counted; null: "
        "they are of all."
    )
    steps: int | None
    idle_steps: int | None = Field(description="Dummy steps, run because another DP rank had work.")
    phases: PhasesOut | None = Field(description="null: the phases of some of its tokens are not known.")
    drafts: DraftsOut | None = Field(
        description="Draft tokens among its tokens, by what became of them; null: none is known, see "
        "unavailable of its producers."
    )
    unseen_layers: list[int] = Field(
        description="Layers that it claims to cover and never saw a token in, although it computed some."
    )
    stages: list[StageOut] = Field(description="Whether rows add up to tokens, by pipeline stage.")
    producers: list[ProducerOut]


class PartOut(BaseModel):
    """Another name of the model, of the same sizes, that has some of the DP ranks which are missing here."""

    server: str
    dp_ranks: list[int]


class SilenceOut(BaseModel):
    """Nothing comes from any worker of a deployment."""

    seconds: float = Field(description="Since the newest frame of any of them.")
    ended: bool = Field(description="All of them shut down in order: that is no fault.")
    words: str = Field(description="A sentence about it, as in /v1/verdict.")


class DeploymentOut(BaseModel):
    """All ranks of one vLLM deployment and model."""

    server: str
    model: str
    pool: str | None = Field(description="Its pool (see /v1/pools); null: none was named.")
    role: Literal["prefill", "decode"] | None = Field(
        description="What it computes where prefill and decode are computed apart; null: both."
    )
    dp_size: int
    ep_size: int
    conflict: str | None = Field(
        description="Which live processes claim one rank, and what to do; null: each rank has one."
    )
    missing_dp_ranks: list[int] = Field(description="DP ranks that should exist and never reported.")
    other_parts: list[PartOut] = Field(
        description="Names that have DP ranks which are missing here: they look like parts of one deployment."
    )
    partial: Partial
    silence: SilenceOut | None = Field(
        description="No worker has sent anything for a minute or more; null: some has."
    )
    dp_ranks: list[DpRankOut]


class Ranks(BaseModel):
    """Everything that reports."""

    now: float = Field(description="Unix seconds on the service's clock.")
    deployments: list[DeploymentOut]
