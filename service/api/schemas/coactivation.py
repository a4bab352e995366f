"""What /v1/coactivation answers, as types."""

from __future__ import annotations

from typing import Final

from pydantic import BaseModel, Field

MAX_MATRIX: Final = 512
"""Most experts with which the answer has a matrix; with more it has pairs only."""


class PairOut(BaseModel):
    """Two experts that tokens took together."""

    first: int
    second: int
    tokens: int = Field(description="Tokens that took both.")
    lift: float = Field(
        description="tokens x all tokens / (tokens of first x tokens of second); 1: independent."
    )


class Coactivation(BaseModel):
    """Experts of a layer that the same tokens took, over traced requests."""

    server: str
    model: str
    layer: int
    num_experts: int
    traces: int = Field(description="Traced requests that were counted, the newest in the window.")
    truncated: bool = Field(description="There were more of them than max_traces.")
    tokens: int = Field(description="Their tokens, those computed again included.")
    counts: list[list[int]] | None = Field(
        description="[num_experts][num_experts], symmetric: tokens that took both; on the diagonal tokens "
        f"that took the one. null if there are more than {MAX_MATRIX} experts."
    )
    not_conserved: str | None = Field(
        None,
        description="Why the traces may not have all tokens: in the window the layer's "
        "rows don't add up to the tokens. null: they do, as far as it is known (see /v1/ranks).",
    )
    pairs: list[PairOut] = Field(description="Pairs of the highest lift, highest first.")
