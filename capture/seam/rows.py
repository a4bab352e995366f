"""Which rows of a router's batch belong to this worker: the row layouts of data and tensor parallelism.

A router's callback gets ``n`` rows. Whose tokens they are depends on where the kernels dispatch and combine,
and on whether the model shards its rows over the TP ranks by itself (DeepSeek-V4 and Kimi-K3 do, for their
mega MoE kernels). Nothing in the tensor tells it; only the sizes do. vLLM's own capturer assumed one layout
and crashed (vLLM #37857), and peers that assume one multiply every count by the number of DP ranks. Here each
known layout is recognised by its size, and anything else is an AssertionError with every number needed to
debug it.

Pure Python, decided on the host: no tensor is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final, NamedTuple


class Layout(StrEnum):
    """How the rows of one routing call are laid out."""

    SINGLE_DP = "single_dp"
    """No DP metadata: all rows are this replica's tokens, on every TP rank."""
    SINGLE_DP_PADDED = "single_dp_padded"
    """As `SINGLE_DP`, padded to a multiple of the TP ranks, as after gathering shards."""
    ALL_DP = "all_dp"
    """Naive dispatch: the tokens of all DP ranks, concatenated in the order of the ranks."""
    LOCAL = "local"
    """Modular kernel: this DP rank's tokens only."""
    GATHERED_SHARDS = "gathered_shards"
    """Naive dispatch of sequence-parallel shards: padded, DP-major, TP-minor."""
    TP_SHARD = "tp_shard"
    """This TP rank's padded shard of the DP rank's tokens: a modular kernel under sequence parallelism, or a
    model that shards its rows by itself."""
    NOT_TOLD = "not_told"
    """Outside of steps, where nothing counts, in a batch whose size vLLM doesn't say."""


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
    over the TP ranks, only TP rank 0 counts, and the others' spans are empty. ``microbatch`` is the number of
    the part of the step that the batch is, 0 in a step that isn't split.
    """

    layout: Layout
    start: int
    count: int
    first_token: int
    microbatch: int = 0


class Microbatch(NamedTuple):
    """The part of a step that a forward pass computes, of those that vLLM split it into (DBO).

    Attributes:
        number: 0, 1, ... in the order of the step's tokens.
        first_token: the index, among the rows of the DP rank's step, of its first row.
        is_last: whether the step's last rows, its padding among them, are in it.
    """

    number: int = 0
    first_token: int = 0
    is_last: bool = True


WHOLE: Final = Microbatch()
"""A step that isn't split."""


class StepRows(NamedTuple):
    """Sizes of the batch, as vLLM knows them during a forward pass: `locate_rows` explains each.

    In a microbatch they are the sizes of that part of the step, on all DP ranks.
    """

    tokens_across_dp: Sequence[int] | None
    shard_sizes: Sequence[int] | None
    num_tokens: int | None = None
    microbatch: Microbatch = WHOLE


_NOTHING: Final = RowSpan(Layout.NOT_TOLD, 0, 0, 0)
_WAY_OUT: Final = "MOESCOPE_ON_ERROR=disable turns capture off instead of stopping the server."


def rows_of_call(
    num_rows: int, ranks: Ranks, step: StepRows, true_tokens: int | None, capturing: bool = False
) -> RowSpan:
    """This worker's rows in a routing call of ``num_rows`` rows, by all that is known of its forward pass.

    Where vLLM says no size of the batch, the step's true number of tokens stands for it: a batch that is
    larger for its padding then fits no layout. A CUDA graph is replayed for other numbers of tokens, so while
    one is captured there is no such stand-in. Outside of steps nothing counts, so there the call has no rows.

    Args:
        num_rows: rows of the router's top-k ids.
        ranks: this worker's ranks.
        step: what the forward pass under way says of its sizes.
        true_tokens: of the step under way, on this DP rank; None outside of steps.
        capturing: whether the call becomes part of a CUDA graph.

    Raises:
        AssertionError: no known layout has this many rows; or the pass has fewer rows than the step has
            tokens: a model may run some layers in a pass of their own over a part of the rows, where row i is
            not token i. Of a step's microbatches the last one tells.
    """
    across, size, part = step.tokens_across_dp, step.num_tokens, step.microbatch
    if across is not None:
        size = across[ranks.dp_rank]
    elif size is None and ranks.dp_size == 1 and ranks.tp_size > 1 and not capturing and part == WHOLE:
        if true_tokens is None:
            return _NOTHING
        size = true_tokens
    if (
        size is not None
        and true_tokens is not None
        and part.is_last
        and part.first_token + size < true_tokens
    ):
        raise AssertionError(
            f"moescope: a forward pass of {size} rows in a step of {true_tokens} tokens: which tokens they "
            f"are can't be known; a batch of {num_rows} rows, tokens_across_dp={_as_list(across)}, {part}, "
            f"{ranks}. {_WAY_OUT}"
        )
    span = locate_rows(num_rows, ranks, across, step.shard_sizes, size)
    if part == WHOLE:
        return span
    return replace(span, first_token=span.first_token + part.first_token, microbatch=part.number)


def locate_rows(
    num_rows: int,
    ranks: Ranks,
    tokens_across_dp: Sequence[int] | None,
    shard_sizes: Sequence[int] | None = None,
    num_tokens: int | None = None,
) -> RowSpan:
    """Decide the layout of a batch of ``num_rows`` rows and find this worker's rows in it.

    With DP metadata the sizes of all ranks tell the layout. Without it (``tokens_across_dp`` None) no rows of
    other DP ranks can be in the batch, because vLLM's exchange between DP ranks needs the metadata. Then the
    step's own size N (``num_tokens``) tells whether the rows are whole on every TP rank, or a shard.

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
        num_tokens: N, rows of the step before the model shards them, padding included; read only without DP
            metadata. It may be None with one DP rank and one TP rank, where no other layout exists.

    Raises:
        AssertionError: no known layout has this many rows, or the step's size is needed and not known.
    """
    if tokens_across_dp is None:
        return _locate_by_size(num_rows, ranks, num_tokens)

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
        return _shard(shard, local, ranks)

    raise AssertionError(
        f"moescope: a batch of {num_rows} rows fits no known row layout: expected {total} (all DP ranks' "
        f"tokens), {local} (this DP rank's), {gathered} (gathered shards {_as_list(shard_sizes)}) or {shard} "
        f"(one TP rank's shard); tokens_across_dp={_as_list(tokens_across_dp)}, {ranks}. {_WAY_OUT}"
    )


def _locate_by_size(num_rows: int, ranks: Ranks, num_tokens: int | None) -> RowSpan:
    """The layout of a batch without DP metadata: by the size N of this DP rank's step."""
    if num_tokens is None:
        if ranks.dp_size > 1 or ranks.tp_size > 1:
            raise AssertionError(
                f"moescope: no DP metadata and no batch descriptor for a batch of {num_rows} rows, though "
                f"{ranks}; whose tokens they are can't be known. {_WAY_OUT}"
            )
        return _replicated(Layout.SINGLE_DP, 0, num_rows, ranks)
    shard = -(-num_tokens // ranks.tp_size)
    padded = shard * ranks.tp_size
    if num_rows == num_tokens:
        return _replicated(Layout.SINGLE_DP, 0, num_tokens, ranks)
    if num_rows == padded:
        return _replicated(Layout.SINGLE_DP_PADDED, 0, num_tokens, ranks)
    if num_rows == shard:
        return _shard(shard, num_tokens, ranks)
    raise AssertionError(
        f"moescope: a batch of {num_rows} rows fits no known row layout without DP metadata: expected "
        f"{num_tokens} (the step's tokens), {padded} (padded to whole shards) or {shard} (one TP rank's "
        f"shard); num_tokens={num_tokens}, {ranks}. {_WAY_OUT}"
    )


def _shard(rows: int, tokens: int, ranks: Ranks) -> RowSpan:
    """This TP rank's shard of `rows` rows of a DP rank's tokens, both padded as the batch is."""
    first_token = ranks.tp_rank * rows
    return RowSpan(Layout.TP_SHARD, 0, max(0, min(rows, tokens - first_token)), first_token)


def _replicated(layout: Layout, start: int, count: int, ranks: Ranks) -> RowSpan:
    """Rows that all TP ranks of the DP rank have: TP rank 0 counts them."""
    return RowSpan(layout, start, count if ranks.tp_rank == 0 else 0, 0)


def _as_list(sizes: Sequence[int] | None) -> list[int] | None:
    return None if sizes is None else list(sizes)
