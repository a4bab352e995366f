"""What /v1/compare answers, as types."""

from __future__ import annotations

import msgspec

from moescope.service.api.schemas.compact import CompactAbsent, CompactWindow
from moescope.service.counts.phase_split import Phase


class Side(msgspec.Struct):
    """One of the two windows; `partial` says why it is of a part of the deployment only, or is null."""

    server: str
    model: str
    window: CompactWindow
    phase: Phase | None
    tokens: int | None
    partial: str | None
    absent: list[CompactAbsent]


class LayerDifference(msgspec.Struct):
    """One layer in both.

    `divergence` is the Jensen-Shannon divergence of the shares in bits, from 0 to 1; null, for the reason
    given, where one of them has no slots. `difference` is share minus the base's share, by logical expert.
    """

    layer: int
    num_experts: int
    tokens: int
    base_tokens: int
    divergence: float | None
    difference: list[float] | None
    reason: str | None


class Comparison(msgspec.Struct):
    """The window asked for against the base."""

    side: Side
    base: Side
    layers: list[LayerDifference]
