"""What /v1/requests/histogram answers, as types."""

from __future__ import annotations

from pydantic import BaseModel, Field

from moescope.service.api.schemas.requests import ComparedOut


class AdapterLayer(BaseModel):
    """Slots of one layer."""

    layer: int
    num_experts: int
    top_k: int
    counts: list[int] = Field(description="Slots per logical expert.")


class AdapterHistogram(BaseModel):
    """Slots of the traced requests of one LoRA adapter."""

    lora: str | None = Field(
        description="The adapter; empty: requests of none, or whose worker doesn't tell it; null: all "
        "adapters that have no histogram of their own here."
    )
    adapters: int = Field(description="How many adapters these are: 1, or as many as null stands for.")
    requests: int
    tokens: int
    layers: list[AdapterLayer]


class AdapterHistograms(BaseModel):
    """Slots by layer and logical expert of traced requests, apart by LoRA adapter."""

    model: str | None = Field(description="Whose requests; null: none match.")
    compared: ComparedOut
    counted_tokens: int | None = Field(
        description="All tokens that the same deployments computed in the window, traced or not; null: not "
        "known, or only some requests were asked about (dp_rank, min_tokens, weights_version, lora, base)."
    )
    adapters: list[AdapterHistogram] = Field(
        description="Requests of no adapter first, then the adapters of most tokens, all others last."
    )
