"""The Triton kernels that count slots. Imported only where there is a GPU."""

from __future__ import annotations

from typing import Final

import triton
import triton.language as tl

from moescope.capture.counting.row_kernel import count_rows, count_tokens, in_64_bits
from moescope.capture.counting.trace_kernel import copy_traced
from moescope.capture.step.word import MAX_TOKENS, PHASE_SHIFT, SLOT_SHIFT

# Parts of the step's word (see `step_word`), for the kernels.
_TOKENS: Final = tl.constexpr(MAX_TOKENS)
_PHASE_SHIFT: Final = tl.constexpr(PHASE_SHIFT)
_SLOT_SHIFT: Final = tl.constexpr(SLOT_SHIFT)


def _count_step(  # type: ignore[no-untyped-def]
    table,
    step_word,
    phases,
    flat,
    num_counts,
    ep_ranks,
    max_experts,
    ring,
    ring_slots,
    ep_size,
    row_map,
    staging,
    columns,
    width,
    IDS: tl.constexpr,  # noqa: N803
    STAGED: tl.constexpr,  # noqa: N803
    MASKED: tl.constexpr,  # noqa: N803
    BINS: tl.constexpr,  # noqa: N803
    RANKS: tl.constexpr,  # noqa: N803
    BLOCK: tl.constexpr,  # noqa: N803
):
    """All layers of a table; its columns are those of `pointer_tables.Field`."""
    num_counts, max_experts, width = in_64_bits(num_counts), in_64_bits(max_experts), in_64_bits(width)
    ring_slots, ep_size = in_64_bits(ring_slots), in_64_bits(ep_size)
    layer, layers = tl.program_id(1).to(tl.int64), tl.num_programs(1).to(tl.int64)
    entry = table + layer * 8
    word = tl.load(step_word)
    tokens, phase, step_slot = word & _TOKENS, (word >> _PHASE_SHIFT) & 3, word >> _SLOT_SHIFT
    loads = ring + (step_slot * layers + layer) * ep_size
    if RANKS > 0:  # noqa: SIM102 - known when compiled
        # Empties the next step's slot; not outside of steps, whose word names none.
        if (tl.program_id(0) == 0) & (tokens > 0):
            after = tl.where(step_slot + 1 == ring_slots, 0, step_slot + 1)
            ranks = tl.arange(0, RANKS)
            nothing = tl.zeros([RANKS], tl.int32)
            tl.store(ring + (after * layers + layer) * ep_size + ranks, nothing, mask=ranks < ep_size)
    # Outside of steps no token is valid, and the addresses may be stale: nothing is read through them then.
    first_token = tl.load(entry + 2)
    rows = tl.minimum(tl.load(entry + 1), tokens - first_token)
    if rows > 0:
        if tl.program_id(0) == 0:
            of_layers = flat + 2 * num_counts + layer
            count_tokens(rows, first_token, phase, phases, of_layers, of_layers + layers, BLOCK)
        count_rows(
            tl.load(entry),
            rows,
            first_token,
            tl.load(entry + 3),
            tl.load(entry + 4),
            tl.load(entry + 5),
            flat + tl.load(entry + 6),
            num_counts,
            tl.load(entry + 7),
            phase,
            phases,
            ep_ranks + layer * max_experts,
            loads,
            IDS,
            BINS,
            RANKS,
            BLOCK,
        )
        if STAGED is not None:
            copy_traced(
                tl.load(entry),
                rows,
                first_token,
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
    layer,
    counts_start,
    num_experts,
    step_word,
    phases,
    flat,
    num_counts,
    num_layers,
    ep_ranks,
    max_experts,
    ring,
    ep_size,
    row_map,
    staging,
    columns,
    width,
    IDS: tl.constexpr,  # noqa: N803
    STAGED: tl.constexpr,  # noqa: N803
    MASKED: tl.constexpr,  # noqa: N803
    BINS: tl.constexpr,  # noqa: N803
    RANKS: tl.constexpr,  # noqa: N803
    BLOCK: tl.constexpr,  # noqa: N803
):
    """One layer, given by value."""
    address, num_rows, first_token = in_64_bits(address), in_64_bits(num_rows), in_64_bits(first_token)
    top_k, row_stride, column_stride = in_64_bits(top_k), in_64_bits(row_stride), in_64_bits(column_stride)
    layer, num_layers, num_experts = in_64_bits(layer), in_64_bits(num_layers), in_64_bits(num_experts)
    counts_start, num_counts, width = in_64_bits(counts_start), in_64_bits(num_counts), in_64_bits(width)
    max_experts, ep_size = in_64_bits(max_experts), in_64_bits(ep_size)
    word = tl.load(step_word)
    tokens, phase, step_slot = word & _TOKENS, (word >> _PHASE_SHIFT) & 3, word >> _SLOT_SHIFT
    rows = tl.minimum(num_rows, tokens - first_token)
    if rows > 0:
        if tl.program_id(0) == 0:
            of_layers = flat + 2 * num_counts + layer
            count_tokens(rows, first_token, phase, phases, of_layers, of_layers + num_layers, BLOCK)
        count_rows(
            address,
            rows,
            first_token,
            top_k,
            row_stride,
            column_stride,
            flat + counts_start,
            num_counts,
            num_experts,
            phase,
            phases,
            ep_ranks + layer * max_experts,
            ring + (step_slot * num_layers + layer) * ep_size,
            IDS,
            BINS,
            RANKS,
            BLOCK,
        )
        if STAGED is not None:
            copy_traced(
                address,
                rows,
                first_token,
                top_k,
                row_stride,
                column_stride,
                num_experts,
                row_map,
                staging,
                width,
                tl.load(columns + layer),
                IDS,
                STAGED,
                MASKED,
                BLOCK,
            )


_SIZES = ["num_counts", "max_experts", "ep_size", "width"]
# A value of 1 or one that 16 divides would compile another variant of the kernel, in the middle of serving.
step_kernel = triton.jit(_count_step, do_not_specialize=[*_SIZES, "ring_slots"])
layer_kernel = triton.jit(
    _count_layer,
    do_not_specialize=[
        *_SIZES,
        "address",
        "num_rows",
        "first_token",
        "top_k",
        "row_stride",
        "column_stride",
        "layer",
        "counts_start",
        "num_experts",
        "num_layers",
    ],
)
