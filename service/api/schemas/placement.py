"""What /v1/placement answers, as types."""

from __future__ import annotations

import msgspec

from moescope.service.api.schemas.compact import CompactAbsent, CompactUncovered


class Copy(msgspec.Struct):
    """A copy of a logical expert: the EP rank that holds it, and its number among the physical experts."""

    ep_rank: int
    physical: int


class Doubled(msgspec.Struct):
    """Several copies of one logical expert on one EP rank: they take memory and no load off that rank."""

    ep_rank: int
    expert: int
    copies: int


class Table(msgspec.Struct):
    """Of P physical experts: the logical expert that each is a copy of, and the EP rank that holds it.

    `doubles` are the EP ranks that hold several copies of one expert.
    """

    physical_to_logical: list[int]
    physical_to_ep_rank: list[int]
    doubles: list[Doubled]


class LayerPlacement(msgspec.Struct):
    """One MoE layer. `reason` says why its placement isn't known; then all but its shape is null.

    `copies` has a list for each logical expert, in order; an empty one where no copy is known. With
    form=tables it is null, and `table` is an index of `tables` instead. `doubles` are the EP ranks that hold
    several copies of one expert; null likewise, since the table has them. `version` rises with each
    rearrangement by EPLB. `since` is when the first worker told this placement (null: earlier than anything
    that the service saw), `everywhere_since` when the last one did (null: some still tell another one, or
    none); Unix seconds on the service's clock. `partial` says which workers tell another
    placement of the layer, or none; null: all tell this one.
    """

    layer: int
    num_experts: int
    physical_experts: int | None
    version: int | None
    since: float | None
    everywhere_since: float | None
    copies: list[list[Copy]] | None
    doubles: list[Doubled] | None
    table: int | None
    partial: str | None
    reason: str | None


class PlacementNow(msgspec.Struct):
    """Where the experts of a deployment are now. `tables` is null unless form=tables was asked for.

    `partial` says why some workers' word is missing: DP ranks or pipeline stages that don't report. Nobody
    tells where the experts of `uncovered` and `absent` layers are.
    """

    server: str
    model: str
    now: float
    ep_size: int
    layers: list[LayerPlacement]
    tables: list[Table] | None
    partial: str | None
    uncovered: list[CompactUncovered]
    absent: list[CompactAbsent]
