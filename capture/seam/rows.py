"""Which rows of a router's batch belong to this worker: the row layouts of data parallelism.

A router's callback gets ``n`` rows. Whose tokens they are depends on where the kernels dispatch and combine.
Nothing in the tensor tells it; only the sizes do. vLLM's own capturer assumed one layout and crashed (vLLM
#37857), and peers that assume one multiply every count by the number of DP ranks. Here each known layout is
recognised by its size, and anything else is an AssertionError with every number needed to debug it.

Pure Python, decided on the host: no tensor is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple


class Layout(StrEnum):
    """How the rows of one routing call are laid out."""

    SINGLE_DP = "single_dp"
    """No data parallelism: all rows are this replica's tokens."""
    ALL_DP = "all_dp"
    """Naive dispatch: the tokens of all DP ranks, concatenated in the order of the ranks."""
    LOCAL = "local"
    """Modular kernel: this DP rank's tokens only."""
    GATHERED_SHARDS = "gathered_shards"
    """Naive dispatch of sequence-parallel shards: padded, DP-major, TP-minor."""
    TP_SHARD = "tp_shard"
    """Modular kernel under sequence parallelism: this TP rank's padded shard of the DP rank's tokens."""


@dataclass(frozen=True, slots=True)
class Ranks:
    """The worker's place: its data-parallel and tensor-parallel ranks and their sizes."""

    dp_rank: int = 0
    dp_size: int = 1
    tp_rank: int = 0
    tp_size: int = 1


@dataclass(frozen=True, slots=True)
class RowSpan:
    """The rows that this worker counts.

    Rows ``start .. start + count`` of the batch are the tokens ``first_token .. first_token + count`` of the
    DP rank's step. Those at or beyond the step's true number of tokens are padding; the counter masks them
    with a value that lives on the device, because a CUDA graph is captured once for many numbers of tokens.

    Every token of a DP rank is in the span of exactly one of its TP workers: where the rows are replicated
    over the TP ranks, only TP rank 0 counts, and the others' spans are empty.
    """

    layout: Layout
    start: int
    count: int
    first_token: int


class StepRows(NamedTuple):
    """Sizes of the batch on all ranks, as vLLM knows them during a forward pass (see `locate_rows`)."""

    tokens_across_dp: Sequence[int] | None
    shard_sizes: Sequence[int] | None


def locate_rows(
    num_rows: int,
    ranks: Ranks,
    tokens_across_dp: Sequence[int] | None,
    shard_sizes: Sequence[int] | None = None,
) -> RowSpan:
    """Decide the layout of a batch of ``num_rows`` rows and find this worker's rows in it.

    Two layouts may have the same size. Then both select the same rows, so it does not matter which one is
    true: the sum of all ranks equals one rank's tokens only if the others have none, and a shard equals the
    whole only for at most one token, which TP rank 0 counts in both layouts.

    Args:
        num_rows: rows of the router's top-k ids, ``n``.
        ranks: this worker's ranks.
        tokens_across_dp: tokens of each DP rank in this step, padding included, as vLLM's ``DPMetadata``
            has them; None without data parallelism.
        shard_sizes: ``DPMetadata.local_sizes``: rows of each sequence-parallel shard, padding included,
            DP-major and TP-minor; None outside vLLM's sequence-parallel context.

    Raises:
        AssertionError: no known layout has this many rows.
    """
    if tokens_across_dp is None:
        if ranks.dp_size > 1:
            raise AssertionError(
                f"moescope: no DP metadata for a batch of {num_rows} rows, though {ranks}; "
                f"whose tokens they are can't be known"
            )
        return _replicated(Layout.SINGLE_DP, 0, num_rows, ranks)

    local = tokens_across_dp[ranks.dp_rank]
    total = sum(tokens_across_dp)
    shard = -(-local // ranks.tp_size)
    gathered = sum(shard_sizes) if shard_sizes is not None else None

    if num_rows == total:
        return _replicated(Layout.ALL_DP, sum(tokens_across_dp[: ranks.dp_rank]), local, ranks)
    if num_rows == local:
        return _replicated(Layout.LOCAL, 0, local, ranks)
    if shard_sizes is not None and num_rows == gathered and len(shard_sizes) % len(tokens_across_dp) == 0:
        shards_per_dp_rank = len(shard_sizes) // len(tokens_across_dp)
        start = sum(shard_sizes[: ranks.dp_rank * shards_per_dp_rank])
        return _replicated(Layout.GATHERED_SHARDS, start, local, ranks)
    if ranks.tp_size > 1 and num_rows == shard:
        first_token = ranks.tp_rank * shard
        return RowSpan(Layout.TP_SHARD, 0, max(0, min(shard, local - first_token)), first_token)

    raise AssertionError(
        f"moescope: a batch of {num_rows} rows fits no known row layout: expected {total} (all DP ranks' "
        f"tokens), {local} (this DP rank's), {gathered} (gathered shards {_as_list(shard_sizes)}) or {shard} "
        f"(one TP rank's shard); tokens_across_dp={_as_list(tokens_across_dp)}, {ranks}. "
        f"MOESCOPE_ON_ERROR=disable turns capture off instead of stopping the server."
    )


def _replicated(layout: Layout, start: int, count: int, ranks: Ranks) -> RowSpan:
    """Rows that all TP ranks of the DP rank have: TP rank 0 counts them."""
    return RowSpan(layout, start, count if ranks.tp_rank == 0 else 0, 0)


def _as_list(sizes: Sequence[int] | None) -> list[int] | None:
    return None if sizes is None else list(sizes)
