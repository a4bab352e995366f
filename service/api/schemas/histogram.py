"""What /v1/histogram answers, as types."""

from __future__ import annotations

from pydantic import BaseModel, Field

from moescope.service.api.schemas.common import Absent, Partial, Uncovered, Window
from moescope.service.counts.phase_split import Phase


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
    not_conserved: str | None = Field(
        None,
        description="Why the counts are not those of all tokens, though no DP rank is missing: the layer's "
        "rows don't add up to them. null: they do, as far as it is known (see /v1/ranks).",
    )


class LayerCounts(BaseModel):
    """Slots of one layer in one interval."""

    layer: int
    tokens: int | None = Field(description="Tokens seen in this layer; null with counts.")
    counts: list[int] | None = Field(description="Slots per logical expert; null when the layer wasn't seen.")
    not_conserved: str | None = Field(None, description="As of a layer of the whole window.")


class Interval(BaseModel):
    """One interval of a series. Neighbours share the totals at their boundary, so that counts add up."""

    start: float = Field(description="Asked begin, Unix seconds.")
    end: float = Field(description="Asked end.")
    truncated: bool = Field(description="It began before what is kept: what came before may be missing.")
    tokens: int | None = Field(description="Tokens computed in the interval; null: not known by phase.")
    layers: list[LayerCounts]


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
    tokens: int | None = Field(description="Tokens computed in the window; null for tokens_reason.")
    tokens_reason: str | None = Field(
        description="Why the tokens of some DP rank aren't known (or not those of the phase), or null."
    )
    partial: Partial
    layers: list[LayerHistogram]
    uncovered: list[Uncovered]
    absent: list[Absent]
    series: list[Interval] | None = Field(None, description="The window in steps, when a step was asked for.")
