"""What GET /v1/requests/{id}/routing answers, as types: a trace that is joined from several."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field

from moescope.service.api.schemas.trace_shapes import MAX_RUNS_TOLD, told
from moescope.service.api.schemas.traces import TraceDetail, TraceOut, WeightsOut, trace_out
from moescope.service.traces.joining import Joined, Part
from moescope.service.traces.missing import Missing
from moescope.service.traces.spans import span, together


class PartOut(BaseModel):
    """A trace that the routing is joined from, or that was looked at for it."""

    kind: Literal["main", "same_id", "taken_over"] = Field(
        description="main: the answer has its generated tokens. same_id: the same request elsewhere, "
        "such as on a prefill instance, or another attempt. taken_over: another request, whose computation "
        "the KV cache had."
    )
    request_id: str
    server: str
    model: str
    dp_rank: int
    role: str = Field(description="Of the deployment: prefill, decode, or empty.")
    positions: list[tuple[int, int]] = Field(
        description="What the answer has of it: runs of positions, the first and one past the last."
    )
    unused: Literal["", "not_needed", "nothing_shared", "unreadable"] = Field(
        description="Why the answer has nothing of it. not_needed: others have all its positions. "
        "nothing_shared: no position of the prompt that others computed too tells that it is the same prompt."
    )
    weights: list[WeightsOut] = Field(
        description="The versions of its weights, as its own workers count them."
    )
    outcome: str
    finish_reason: str = Field(description="stop, length, abort, error, repetition; empty: not told.")
    tokens: int = Field(description="Tokens computed in it, those computed again too.")
    prompt_tokens: int
    cached_tokens: int
    preemptions: int
    missing_stages: int = Field(description="Pipeline stages of which no complete trace came (yet).")
    missing_tokens: int = Field(description="Tokens that its workers computed and did not bring (yet).")
    started_at: float = Field(description="First step, Unix seconds, on its worker's clock.")
    ended_at: float

    @classmethod
    def of(cls, part: Part) -> PartOut:
        """A part as the answer tells it."""
        request = part.request
        return cls(
            kind=part.kind,
            request_id=request.request_id,
            server=request.server,
            model=request.model,
            dp_rank=request.dp_rank,
            role=request.role,
            positions=part.positions.tolist(),
            unused=part.unused,
            weights=[WeightsOut(**item._asdict()) for item in part.weights],
            outcome=request.outcome,
            finish_reason=request.finish_reason,
            tokens=request.tokens,
            prompt_tokens=request.prompt_tokens,
            cached_tokens=request.cached_tokens,
            preemptions=request.preemptions,
            missing_stages=request.missing_stages,
            missing_tokens=request.missing_tokens,
            started_at=request.started_at,
            ended_at=request.ended_at,
        )


class MissingOut(BaseModel):
    """Positions that are -1, in some layers or in all."""

    first: int
    end: int = Field(description="One past the last position.")
    why: str = Field(description="A word; docs/traces.md has them all.")
    request_id: str = Field(description="The request that computed them, where it is known; else empty.")
    layers: list[int] = Field(
        description="The layers that are missing; empty: all, or with stages_missing those that no trace has."
    )

    @classmethod
    def of(cls, missing: Missing) -> MissingOut:
        """Missing positions as the answer tells them."""
        return cls(**{**missing._asdict(), "layers": list(missing.layers)})


class _Joins(BaseModel):
    parts: list[PartOut] = Field(
        description="The traces that were joined or looked at; the first is the main one."
    )
    missing: list[MissingOut] = Field(description="The positions wanted that no trace gives, rising.")
    absent: Literal["incomplete", "expired", "evicted"] | None = Field(
        description="Why further traces of this id are not here. incomplete: not all of its parts have come. "
        "expired, evicted: one was removed. null: the store knows of no other."
    )


class RoutingHead(TraceOut, _Joins):
    """What is said of a request: of the main part, and where its routing comes from."""

    @classmethod
    def of(cls, joined: Joined) -> RoutingHead:
        """That of a joined routing."""
        return cls(
            **trace_out(joined.main).model_dump(),
            parts=[PartOut.of(part) for part in joined.parts],
            missing=[MissingOut.of(item) for item in joined.missing],
            absent=joined.absent,
        )


class RequestRouting(TraceDetail, _Joins):
    """The routing of a whole request. What is said of the request, and ``weights``, is of the main part."""


def told_of(joined: Joined) -> str:
    """Where the rows come from, and which ones nobody has, as JSON with ``parts`` and ``missing``."""
    return _Joins(
        parts=[PartOut.of(part) for part in joined.parts],
        missing=[MissingOut.of(item) for item in joined.missing],
        absent=joined.absent,
    ).model_dump_json()


def headers_of_join(joined: Joined) -> dict[str, str]:
    """How many traces the routing comes from, and the positions that are missing, as ``0-7,12``."""
    used = sum(1 for part in joined.parts if len(part.positions))
    runs = together(*(span(item.first, item.end) for item in joined.missing)).tolist()
    listed = told([(first, end) for first, end in runs[:MAX_RUNS_TOLD]], len(runs) > MAX_RUNS_TOLD)
    return {"X-Moescope-Parts": str(used), "X-Moescope-Missing": listed}
