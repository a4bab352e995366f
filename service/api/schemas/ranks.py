"""What /v1/ranks answers, as types."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field

from moescope.service.api.schemas.common import Absent, Uncovered


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
    absent: list[Absent] = Field(
        description="MoE layers that the model's config has and that were not found in the model."
    )
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
