"""What /v1/trend answers, as a type."""

from __future__ import annotations

import msgspec

from moescope.service.api.schemas.compact import CompactAbsent
from moescope.service.counts.phase_split import Phase


class Trend(msgspec.Struct):
    """Intervals of `step` seconds that end at the instants `at` (Unix seconds), parallel.

    `tokens_per_second` is by DP rank of `dp_ranks`. `ratio_of_sums` and `worst` are of the imbalance ratio
    (max / mean) over EP ranks, as in /v1/balance. If a phase was asked for, all are of its tokens only; null
    where phases are not known. `not_conserved` are layers that some interval's imbalance leaves out because
    their rows don't add up to its tokens. `absent` are MoE layers that nothing
    counts. `conflict` says why intervals have no imbalance because several live processes claimed one rank.
    `ep_ranks`, with `parts=ep_ranks` or `ep_rank`, are the slots of each EP rank of `ep_rank_ids` over all
    layers as a multiple of a fair share, by rank, then by interval.
    `dp_rank` is the one that was asked for (null: all of them); then the imbalance is of where its tokens
    went. `partial` says why it is of a part of the deployment only at present; null: all its DP ranks report.
    """

    server: str
    model: str
    step: float
    dp_rank: int | None
    phase: Phase | None
    dp_ranks: list[int]
    at: list[float]
    tokens_per_second: list[list[float | None]]
    ratio_of_sums: list[float | None]
    worst: list[float | None]
    worst_layer: list[int | None]
    absent: list[CompactAbsent]
    not_conserved: list[int] = []
    partial: str | None = None
    conflict: str | None = None
    ep_rank_ids: list[int] | None = None
    ep_ranks: list[list[float | None]] | None = None
