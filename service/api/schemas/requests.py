"""What /v1/requests/unusual, /concentrated and /similar answer, as types."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import BaseModel, Field

from moescope.service.api.schemas.traces import TraceOut
from moescope.service.store.records import TracedRequest
from moescope.service.store.slots import MAX_COMPARED, ListedRequest
from moescope.service.traces.slot_table import Compared


class ComparedOut(BaseModel):
    """The traced requests that were compared: those that match, the newest as far as they fit."""

    requests: int = Field(description="How many they are.")
    tokens: int = Field(description="Their tokens, those computed again included.")
    left_out: int = Field(
        description="Older requests that match too and were not compared, since the slots of more don't fit "
        "into request_counts_mib."
    )
    truncated: bool = Field(description="Still older ones match; they were not even listed.")
    unreadable: int = Field(description="Requests whose traces can't be read; the service's log says why.")

    @classmethod
    def of(cls, compared: Compared, listed: Sequence[ListedRequest]) -> ComparedOut:
        """What is said of requests of this list, which has more than are compared if there are more."""
        return cls(
            requests=compared.requests,
            tokens=compared.tokens,
            left_out=compared.left_out,
            truncated=len(listed) > MAX_COMPARED,
            unreadable=compared.unreadable,
        )


class TellingOut(BaseModel):
    """An expert that the request took more often than the others did."""

    layer: int
    expert: int
    slots: int = Field(description="The request's.")
    share: float = Field(description="Of the request's slots in this layer.")
    usual_share: float = Field(description="Its likelihood in the histogram of all compared requests.")
    bits: float = Field(description="slots x log2(share / usual_share): its part of the surprise.")


class UnusualOut(BaseModel):
    """A request with unusual routing; docs/measures.md defines the measures."""

    request: TraceOut
    surprise_score: float = Field(
        description="Standard deviations above what as many slots drawn from the histogram have by chance."
    )
    divergence_bits: float = Field(
        description="Mean divergence of its shares from the histogram's less that of chance, bits per slot."
    )
    surprise_bits: float = Field(
        description="Mean negative log-likelihood of its slots under the histogram, bits per slot."
    )
    telling: list[TellingOut] = Field(description="The experts that make it so, the most telling first.")


class UnusualRequests(BaseModel):
    """The requests whose routing is most unusual, the most unusual first."""

    model: str | None = Field(description="Whose requests; null: none match.")
    compared: ComparedOut
    requests: list[UnusualOut]


class ConcentratedOut(BaseModel):
    """A request whose slots go to one EP rank more than to others."""

    request: TraceOut
    busiest_ep_rank: int
    busiest_ep_rank_share: float = Field(description="Of its slots; 1 / ep_size is even.")
    slots: int = Field(description="Its slots in the layers whose placement is known.")
    earlier_placement: bool = Field(
        description="It ended before the present placement was in force: its slots went elsewhere then."
    )


class ConcentratedRequests(BaseModel):
    """The requests most concentrated on one EP rank, by the present placement, highest first."""

    server: str
    model: str
    ep_size: int
    placed_since: float | None = Field(
        description="Since when all these layers are placed so, Unix seconds; null: since before this "
        "service's start."
    )
    partial: str | None = Field(description="Why the placement may not be so everywhere, or null.")
    unplaced_layers: list[int] = Field(description="Layers that don't count: it isn't known where they are.")
    compared: ComparedOut
    requests: list[ConcentratedOut]


class SimilarOut(BaseModel):
    """A request that is like another one."""

    request: TraceOut
    similarity: float = Field(
        description="1: the same shares of slots in every layer; 0: no expert in common."
    )
    layers: int = Field(description="Layers that both have.")


class SimilarRequests(BaseModel):
    """The requests most like one of them, the most similar first."""

    like: TraceOut
    compared: ComparedOut
    requests: list[SimilarOut]


def request_out(found: TracedRequest) -> TraceOut:
    """A traced request as answers have it."""
    return TraceOut.model_validate(found, from_attributes=True)
