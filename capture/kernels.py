"""The Triton kernels that count slots. Imported only where there is a GPU; equal to `counting.count_rows`.

Every product of sizes is in 64 bits: a number of valid tokens times top-k overflows 32 bits silently for the
large values that mean "no padding".
"""

from __future__ import annotations

from typing import Any, Final

import torch
import triton
import triton.language as tl

from moescope.capture.layout import RowSpan
from moescope.capture.pointer_tables import table_entry
from moescope.capture.trace_kernel import copy_traced, traced_arguments
from moescope.capture.trace_staging import TraceStaging

BLOCK: Final = 1024
"""Slots that one program counts at a time."""
MAX_BLOCKS: Final = 32
"""Programs per layer at most; beyond that each counts several blocks, and adds to the counts once."""
MIN_BINS: Final = 128
MAX_BINS: Final = 2048
"""Above this number of experts a block's histogram is larger than the block: each slot is added by itself."""

_IDS: Final[dict[torch.dtype, Any]] = {
    torch.int64: tl.int64,
    torch.int32: tl.int32,
    torch.uint32: tl.uint32,
    torch.int16: tl.int16,
    torch.uint16: tl.uint16,
    torch.int8: tl.int8,
    torch.uint8: tl.uint8,
}


def supports(dtype: torch.dtype) -> bool:
    """Whether ids of this type can be counted by the kernel."""
    return dtype in _IDS


def num_bins(max_experts: int) -> int:
    """Bins of a block's histogram for layers of at most this many experts; 0 for none (`MAX_BINS`)."""
    bins = max(MIN_BINS, int(triton.next_power_of_2(max_experts)))
    return bins if bins <= MAX_BINS else 0


def num_blocks(slots: int) -> int:
    """Programs per layer for layers of at most this many slots."""
    return max(1, min(MAX_BLOCKS, -(-slots // BLOCK)))


@triton.jit
def _count_rows(  # type: ignore[no-untyped-def]
    address,
    rows,
    top_k,
    row_stride,
    column_stride,
    counts,
    num_experts,
    IDS: tl.constexpr,  # noqa: N803
    BINS: tl.constexpr,  # noqa: N803
    BLOCK: tl.constexpr,  # noqa: N803
):
    """Add every num_programs(0)-th block of the slots of these rows, all arguments int64, to the counts."""
    ids = address.to(tl.pointer_type(IDS))
    slots = rows * top_k
    contiguous = (row_stride == top_k) & (column_stride == 1)
    if BINS > 0:
        histogram = tl.zeros([BINS], dtype=tl.int32)
    first = tl.program_id(0).to(tl.int64) * BLOCK
    for start in range(first, slots, tl.num_programs(0).to(tl.int64) * BLOCK):
        slot = start + tl.arange(0, BLOCK).to(tl.int64)
        offsets = slot
        if not contiguous:
            offsets = (slot // top_k) * row_stride + (slot % top_k) * column_stride
        expert = tl.load(ids + offsets, mask=slot < slots, other=0).to(tl.int64)
        counted = (slot < slots) & (expert >= 0) & (expert < num_experts)
        if BINS > 0:
            histogram += tl.histogram(tl.where(counted, expert, 0).to(tl.int32), BINS, mask=counted)
        else:
            tl.atomic_add(counts + expert, tl.full([BLOCK], 1, tl.int64), mask=counted, sem="relaxed")
    if BINS > 0:
        bins = tl.arange(0, BINS)
        tl.atomic_add(counts + bins, histogram.to(tl.int64), mask=histogram > 0, sem="relaxed")


def _count_step(  # type: ignore[no-untyped-def]
    table,
    num_valid,
    flat,
    num_counts,
    row_map,
    staging,
    columns,
    width,
    IDS: tl.constexpr,  # noqa: N803
    STAGED: tl.constexpr,  # noqa: N803
    MASKED: tl.constexpr,  # noqa: N803
    BINS: tl.constexpr,  # noqa: N803
    BLOCK: tl.constexpr,  # noqa: N803
):
    """All layers of a table; its columns are those of `pointer_tables.Field`."""
    layer = tl.program_id(1).to(tl.int64)
    entry = table + layer * 8
    valid = tl.load(num_valid)
    # Outside of steps no token is valid, and the addresses may be stale: nothing is read through them then.
    rows = tl.minimum(tl.load(entry + 1), valid - tl.load(entry + 2))
    if rows > 0:
        if tl.program_id(0) == 0:
            tl.atomic_add(flat + num_counts + layer, rows, sem="relaxed")
        _count_rows(
            tl.load(entry),
            rows,
            tl.load(entry + 3),
            tl.load(entry + 4),
            tl.load(entry + 5),
            flat + tl.load(entry + 6),
            tl.load(entry + 7),
            IDS,
            BINS,
            BLOCK,
        )
        if STAGED is not None:
            copy_traced(
                tl.load(entry),
                rows,
                tl.load(entry + 2),
                tl.load(entry + 3),
                tl.load(entry + 4),
                tl.load(entry + 5),
                tl.load(entry + 7),
                row_map,
                staging,
                width,
                tl.load(columns + layer),
                IDS,
                STAGED,
                MASKED,
                BLOCK,
            )


def _count_layer(  # type: ignore[no-untyped-def]
    address,
    num_rows,
    first_token,
    top_k,
    row_stride,
    column_stride,
    counts_start,
    num_experts,
    rows_index,
    num_valid,
    flat,
    row_map,
    staging,
    columns,
    width,
    layer,
    IDS: tl.constexpr,  # noqa: N803
    STAGED: tl.constexpr,  # noqa: N803
    MASKED: tl.constexpr,  # noqa: N803
    BINS: tl.constexpr,  # noqa: N803
    BLOCK: tl.constexpr,  # noqa: N803
):
    """One layer, given by value."""
    rows = tl.minimum(num_rows.to(tl.int64), tl.load(num_valid) - first_token)
    if rows > 0:
        if tl.program_id(0) == 0:
            tl.atomic_add(flat + rows_index, rows, sem="relaxed")
        _count_rows(
            address,
            rows,
            top_k.to(tl.int64),
            row_stride.to(tl.int64),
            column_stride.to(tl.int64),
            flat + counts_start,
            num_experts.to(tl.int64),
            IDS,
            BINS,
            BLOCK,
        )
        if STAGED is not None:
            copy_traced(
                address,
                rows,
                first_token.to(tl.int64),
                top_k.to(tl.int64),
                row_stride.to(tl.int64),
                column_stride.to(tl.int64),
                num_experts.to(tl.int64),
                row_map,
                staging,
                width.to(tl.int64),
                tl.load(columns + layer),
                IDS,
                STAGED,
                MASKED,
                BLOCK,
            )


# A value of 1 or one that 16 divides would compile another variant of the kernel, in the middle of serving.
_step_kernel = triton.jit(_count_step, do_not_specialize=["num_counts", "width"])
_layer_kernel = triton.jit(
    _count_layer,
    do_not_specialize=[
        "address",
        "num_rows",
        "first_token",
        "top_k",
        "row_stride",
        "column_stride",
        "counts_start",
        "num_experts",
        "rows_index",
        "width",
        "layer",
    ],
)


def launch_step(
    table: torch.Tensor,
    num_valid: torch.Tensor,
    flat: torch.Tensor,
    ids_dtype: torch.dtype,
    max_slots: int,
    bins: int,
    traced: TraceStaging | None = None,
) -> None:
    """Count the layers of a pointer table in one launch on the current stream; never synchronises.

    Args:
        table: int64 [L, 8] on the device (see `pointer_tables.Field`); a layer without rows is left out.
        num_valid: int64 [1], the step's true number of tokens.
        flat: int64 [S + L], added to in place (see `CountBuffers.flat`).
        ids_dtype: of all layers' ids.
        max_slots: no layer of the table has more slots.
        bins: see `num_bins`.
        traced: where the traced rows of the step go, or None.

    Raises:
        KeyError: ids of a type that `supports` refuses.
    """
    layers = table.shape[0]
    _step_kernel[(num_blocks(max_slots), layers)](
        table,
        num_valid,
        flat,
        flat.numel() - layers,
        **traced_arguments(traced, num_valid),
        IDS=_IDS[ids_dtype],
        BINS=bins,
        BLOCK=BLOCK,
    )


def launch_layer(
    topk_ids: torch.Tensor,
    span: RowSpan,
    num_valid: torch.Tensor,
    flat: torch.Tensor,
    counts_start: int,
    num_experts: int,
    rows_index: int,
    bins: int,
    ordinal: int = 0,
    traced: TraceStaging | None = None,
) -> None:
    """Count one layer's rows `span` of ids [n, top_k]; everything else as for `launch_step`.

    Its counts are at ``counts_start`` of `flat`, and its number of tokens at ``rows_index``; `ordinal` says
    where its traced rows go.

    Raises:
        KeyError: ids of a type that `supports` refuses.
    """
    entry = table_entry(topk_ids, span)
    _layer_kernel[(num_blocks(span.count * topk_ids.shape[1]),)](
        *entry,
        counts_start,
        num_experts,
        rows_index,
        num_valid,
        flat,
        **traced_arguments(traced, num_valid),
        layer=ordinal,
        IDS=_IDS[topk_ids.dtype],
        BINS=bins,
        BLOCK=BLOCK,
    )
