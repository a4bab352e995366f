"""What /v1/baselines and /v1/drift take and answer, as types."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from moescope.service.api.schemas.common import Absent, Partial, Window
from moescope.service.counts.phase_split import Phase
from moescope.service.counts.weights import WeightsWish
from moescope.service.verdict.model import HowFar


class PinBaseline(BaseModel):
    """A window to pin under a name. A baseline of the same name and deployment is replaced."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(
        "default",
        pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$",
        description="Lower-case letters, digits, `.`, `_`, `-`; it becomes a label of metrics.",
    )
    server: str | None = Field(None, description="vLLM deployment; needed when there are several.")
    model: str | None = Field(None, description="Model; needed when there are several.")
    start: str = Field("-1h", description="Begin of the window: Unix seconds, or relative as `-1h`.")
    end: str | None = Field(None, description="End of the window; absent: now.")
    note: str = Field("", max_length=500, description="What it is, for people.")
    weights: WeightsWish = Field(
        WeightsWish.LATEST,
        description="latest: only what was counted since the weights were changed last. all: all of it.",
    )


class BaselineOut(BaseModel):
    """A pinned baseline."""

    name: str
    server: str
    model: str
    note: str
    start: float = Field(description="Begin of its window as really used, Unix seconds.")
    end: float
    pinned_at: float
    tokens: int = Field(description="Tokens computed in the window.")
    layers: list[int]
    by_phase: bool = Field(description="Whether it tells prefill and decode apart.")


class BaselineLayer(BaseModel):
    """Slots of one layer of a baseline."""

    layer: int
    num_experts: int
    tokens: int
    counts: list[int] = Field(description="Slots per logical expert.")


class BaselineDetail(BaselineOut):
    """A pinned baseline with its counts."""

    histogram: list[BaselineLayer]


class Baselines(BaseModel):
    """All pinned baselines."""

    baselines: list[BaselineOut]


class LayerDriftOut(BaseModel):
    """How far one layer's routing is from the base's."""

    layer: int
    tokens: int
    base_tokens: int
    divergence: float | None = Field(
        description="Jensen-Shannon divergence of the experts' shares, bits, 0 to 1; null for the reason."
    )
    noise: float | None = Field(description="What two samples of one distribution of these sizes show, bits.")
    moved: float | None = Field(
        description="Share of the slots that went to other experts (total variation)."
    )
    new_dead: list[int] = Field(
        description="Experts that got nothing, where the base's share of the slots would be 20 or more."
    )
    new_hot: list[int] = Field(
        description="Experts with 3 times a fair share or more, and 1.5 times their share in the "
        "base or more, beyond chance."
    )
    hot: list[int] = Field(description="All experts with 3 times a fair share or more.")
    reason: str | None


class DriftSummaryOut(BaseModel):
    """Over the layers with a sample; null where there is none."""

    worst: float | None
    worst_layer: int | None
    median: float | None
    noise: float | None = Field(description="What sampling alone would show, median over layers.")
    moved: float | None = Field(
        description="Share of the slots that went to other experts, median over layers."
    )
    found: HowFar | None = Field(
        description="By the verdict's thresholds. drifted: 20 % of the slots or more moved, beyond sampling. "
        "little: fewer, yet beyond sampling. chance: no more than sampling shows."
    )
    new_dead: int
    new_hot: int
    layers: int


class DriftAnswer(BaseModel):
    """Routing of a window against a baseline, or against the hour before it."""

    server: str
    model: str
    window: Window
    dp_rank: int | None = Field(description="The DP rank asked for; null: all of them.")
    phase: Phase | None = Field(description="The phase asked for; null: tokens of both.")
    tokens: int | None = Field(description="Tokens computed in the window; null: not known by phase.")
    baseline: str = Field(description="Its name, or previous_hour.")
    baseline_start: float = Field(description="The base's window as really used, Unix seconds.")
    baseline_end: float
    baseline_tokens: int | None = Field(
        description="Tokens of the base; of a pinned baseline the tokens of both phases. null: not known."
    )
    min_tokens: int
    partial: Partial
    summary: DriftSummaryOut
    layers: list[LayerDriftOut]
    absent: list[Absent]
