"""What /v1/stragglers answers."""

from __future__ import annotations

from pydantic import BaseModel, Field

from moescope.service.api.schemas.common import Absent, Partial, Window

_COST = "Share of the time that an average EP rank waits for the busiest: 1 - sum of means / sum of maxes"
_WINDOWED = (
    "Share of the time that an average EP rank waits for the busiest, computed from the window's slots as if "
    "all its steps were one: lower where the busiest rank changes. null: no sample, or not all loads known."
)

_CAUSED = (
    "Waiting that each EP rank caused, in slots: the sum of max - mean where it was the busiest; ties are "
    "shared. Over ranks it adds up to max_slots - mean_slots, but for steps stored before it was counted."
)


class StageOut(BaseModel):
    """Steps of one pipeline stage, all of whose ranks step together."""

    pp_rank: int
    joined: int = Field(description="Steps in the window of which the loads of all ranks are known.")
    incomplete: int = Field(description="Steps given up in the window: some rank's loads are missing.")
    pending: int = Field(description="Steps that wait for a rank now.")
    reason: str | None = Field(description="Why no step can be joined now; null: it can.")


class StragglerLayer(BaseModel):
    """One MoE layer over the joined steps."""

    layer: int
    steps: int = Field(description="Joined steps in which the layer had any slot.")
    max_slots: int = Field(description="Sum over steps of the busiest EP rank's slots.")
    mean_slots: float = Field(description="Sum over steps of the EP ranks' mean slots.")
    straggler_cost: float | None = Field(description=f"{_COST}, over steps. null: no step.")
    windowed_straggler_share: float | None = Field(description=_WINDOWED)
    hottest: list[float] = Field(description="Steps in which each EP rank was the busiest; ties are shared.")
    caused: list[float] = Field(description=_CAUSED)
    hottest_rank: int | None = Field(
        description="The EP rank that was the busiest most often; null: no step."
    )
    not_conserved: str | None = Field(
        None,
        description="Why the loads are not those of all tokens, though no DP rank is missing: the layer's "
        "rows don't add up to them. null: they do, as far as it is known (see /v1/ranks).",
    )


class StragglerInterval(BaseModel):
    """One interval of a series."""

    start: float = Field(description="Asked begin, Unix seconds.")
    end: float = Field(description="Asked end.")
    truncated: bool = Field(description="It began before what is kept.")
    joined: int = Field(description="Joined steps, over pipeline stages.")
    incomplete: int
    straggler_cost: float | None
    windowed_straggler_share: float | None
    hottest_rank: int | None


class Stragglers(BaseModel):
    """Straggler cost of a deployment in a window."""

    server: str
    model: str
    window: Window
    ep_size: int
    partial: Partial
    stages: list[StageOut] = Field(description="By pipeline stage; empty: no loads of steps ever came.")
    straggler_cost: float | None = Field(
        description=f"{_COST}, over steps and layers: a ratio of sums. null for reason."
    )
    max_slots: int = Field(description="Sum over steps and layers of the busiest EP rank's slots.")
    mean_slots: float = Field(description="Sum over steps and layers of the EP ranks' mean slots.")
    windowed_straggler_share: float | None = Field(description=_WINDOWED)
    hottest: list[float] = Field(description="(Layer, step) pairs in which each EP rank was the busiest.")
    caused: list[float] = Field(description=_CAUSED)
    hottest_rank: int | None = Field(
        description="The EP rank that was the busiest most often; null: no step."
    )
    layers: list[StragglerLayer]
    absent: list[Absent]
    reason: str | None = Field(description="Why there is no straggler cost; null: there is.")
    series: list[StragglerInterval] | None = Field(None, description="In steps, when a step was asked for.")
