"""What several answers of the API have in common, as types."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, Field

Partial = Annotated[
    str | None,
    Field(
        description="Why this is of a part of the deployment only, and which other name may have the rest; "
        "null: all its DP ranks are in it."
    ),
]


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
    weights: str | None = Field(
        description="Why tokens of several versions of the model's weights may be in it, or why it begins "
        "later than asked so that none are; null: neither."
    )


class Uncovered(BaseModel):
    """An MoE layer whose routing can't be seen. It has no counts, rather than zeros."""

    layer: int
    reason: str


class Absent(BaseModel):
    """MoE layers that the model's config has and that were not found in the model; they have no counts."""

    layer: int | None = Field(description="null: it isn't known which layers, nor how many.")
    reason: str


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
