"""What GET /v1/traces and /v1/traces/{id} answer, as types."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field

from moescope.service.store.records import TracedRequest


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
    role: str = Field(description="prefill or decode, of its deployment; empty: both, or not told.")
    pool: str = Field(description="The pool of its deployment; empty: none.")
    lora: str = Field(description="Its LoRA adapter; empty: none, or its worker doesn't tell.")
    finish_reason: str = Field(description="Why it ended, as far as its workers tell; empty: they don't.")
    accepted_drafts: int = Field(description="Tokens that were accepted drafts, as far as its workers tell.")
    rejected_drafts: int = Field(description="Rows computed for it in vain: rejected drafts.")
    missing_stages: int = Field(
        description="Pipeline stages of which no complete trace came (yet): their layers are missing."
    )
    missing_tokens: int = Field(
        description="Tokens that other tensor-parallel workers computed and did not bring (yet)."
    )


def trace_out(found: TracedRequest) -> TraceOut:
    """A stored request as answers have it."""
    return TraceOut.model_validate(
        {name: getattr(found, name) for name in TraceOut.model_fields if name != "names"}
        | {"names": list(found.names)}
    )


class TracePage(BaseModel):
    """Traced requests, newest first."""

    traces: list[TraceOut]
    next_cursor: str | None = Field(description="Give it as cursor to get the next page; null: none.")


class WeightsOut(BaseModel):
    """A version of the weights that computed tokens of a request."""

    version: int = Field(description="As the worker counts changes since its start; 0: as it loaded them.")
    first: int = Field(description="The first position that it computed.")
    end: int = Field(description="One past the last position that it computed.")


class TraceDetail(TraceOut):
    """A traced request with the experts that its tokens took."""

    first_position: int = Field(description="Position in the request of the first row of routed_experts.")
    layers: list[int] = Field(description="Decoder layers, in the order of routed_experts.")
    num_experts: list[int] = Field(description="Logical experts of each layer.")
    top_k: list[int] = Field(description="Experts that a token takes in each layer.")
    times_computed: list[int] = Field(description="How often each position was computed; 0: not at all.")
    weights: list[WeightsOut] = Field(
        description="The versions of the weights that computed it, in order. More than one: the weights "
        "were changed meanwhile."
    )
    routed_experts: list[list[list[int]]] = Field(
        description="[positions][layers][largest top_k]: logical experts; -1 where there is none."
    )
