"""What /v1/balance answers, as types."""

from __future__ import annotations

from pydantic import BaseModel, Field

from moescope.service.api.schemas.common import Absent, Partial, Summary, Uncovered, Window
from moescope.service.api.schemas.measures import Measures
from moescope.service.counts.phase_split import Phase


class Cell(BaseModel):
    """One layer along one axis."""

    loads: list[float] | None = Field(description="Slots (or tokens) each got; null: not known.")
    measures: Measures | None = Field(description="null: no sample, for the reason given.")
    reason: str | None


class LayerBalance(BaseModel):
    """Balance of one layer along three axes; loads are slots."""

    layer: int
    tokens: int = Field(description="Tokens seen in this layer.")
    over_ep_ranks: Cell = Field(description="Who got the slots: the GPUs that hold the experts.")
    over_dp_ranks: Cell = Field(description="Whose tokens they were, in the order of dp_ranks.")
    over_experts: Cell = Field(description="Which logical experts they chose.")
    ep_estimate: str | None = Field(
        None,
        description="Why the loads of EP ranks are an estimate: slots of replicated experts that a worker "
        "doesn't count by copy. null: they are exact.",
    )


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
    dp_rank: int | None = Field(description="The DP rank asked for; null: all of them.")
    phase: Phase | None = Field(description="The phase asked for; null: tokens of both.")
    phase_reason: str | None = Field(
        description="Why it isn't known which tokens are of the phase; null: it is, or none was asked for."
    )
    tokens: int | None = Field(description="Tokens computed in the window; null for tokens_reason.")
    tokens_reason: str | None = Field(
        description="Why the tokens of some DP rank aren't known (or not those of the phase), or null."
    )
    conflict: str | None = Field(
        None,
        description="Why all this is not of one deployment alone, so that there is no balance: several live "
        "processes claim one rank, or did in the window; with the remedy. null: none did.",
    )
    dp_ranks: list[int] = Field(description="DP ranks that took part.")
    missing_dp_ranks: list[int] = Field(description="DP ranks that should exist and never reported.")
    partial: Partial
    dp_tokens: Cell = Field(description="Tokens of each DP rank, in the order of dp_ranks.")
    summary: Summaries
    layers: list[LayerBalance]
    uncovered: list[Uncovered]
    absent: list[Absent]
