"""The Triton kernels that count slots: one for all layers of a step, one for a single layer."""

from __future__ import annotations

from typing import Final

import triton
import triton.language as tl

from moescope.capture.counting.device_maps import MapField
from moescope.capture.counting.pointer_tables import Field
from moescope.capture.counting.row_kernel import count_rows, count_tokens, in_64_bits
from moescope.capture.counting.trace_kernel import copy_traced
from moescope.capture.step.word import MAX_TOKENS, PHASE_MASK, PHASE_SHIFT, PLACE_SHIFT

# What kernels know by name has to be a constexpr: parts of the step's word, and the columns of a table.
_TOKENS: Final = tl.constexpr(MAX_TOKENS)
_PHASE_SHIFT: Final = tl.constexpr(PHASE_SHIFT)
_PHASE_MASK: Final = tl.constexpr(PHASE_MASK)
_PLACE_SHIFT: Final = tl.constexpr(PLACE_SHIFT)
_FIELDS: Final = tl.constexpr(len(Field))
_ADDRESS: Final = tl.constexpr(Field.ADDRESS.value)
_ROWS: Final = tl.constexpr(Field.ROWS.value)
_FIRST_TOKEN: Final = tl.constexpr(Field.FIRST_TOKEN.value)
_TOP_K: Final = tl.constexpr(Field.TOP_K.value)
_ROW_STRIDE: Final = tl.constexpr(Field.ROW_STRIDE.value)
_COLUMN_STRIDE: Final = tl.constexpr(Field.COLUMN_STRIDE.value)
_MICROBATCH: Final = tl.constexpr(Field.MICROBATCH.value)
_COUNTS_START: Final = tl.constexpr(Field.COUNTS_START.value)
_NUM_EXPERTS: Final = tl.constexpr(Field.NUM_EXPERTS.value)
_FIRST_ROW: Final = tl.constexpr(Field.FIRST_ROW.value)
_MAP_FIELDS: Final = tl.constexpr(len(MapField))


def _count_step(  # type: ignore[no-untyped-def]
    table,
    step_word,
    phases,
    flat,
    num_counts,
    ep_ranks,
    max_experts,
    maps,
    ring,
    ring_places,
    microbatches,
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
    RULE: tl.constexpr,  # noqa: N803
    BLOCK: tl.constexpr,  # noqa: N803
):
    """Count the layers of a table, one in each program along axis 1 (see `launch.launch_step`)."""
    num_counts, max_experts, width = in_64_bits(num_counts), in_64_bits(max_experts), in_64_bits(width)
    ring_places, ep_size = in_64_bits(ring_places), in_64_bits(ep_size)
    microbatches = in_64_bits(microbatches)
    layer, layers = tl.program_id(1).to(tl.int64), tl.num_programs(1).to(tl.int64)
    entry = table + layer * _FIELDS
    word = tl.load(step_word)
    tokens, phase, place = word & _TOKENS, (word >> _PHASE_SHIFT) & _PHASE_MASK, word >> _PLACE_SHIFT
    part = place * microbatches + tl.load(entry + _MICROBATCH)
    loads = ring + (part * layers + layer) * ep_size
    if RANKS > 0:  # noqa: SIM102 - known when compiled
        # Empties the next step's place; not outside of steps, when the word names none. Of all microbatches:
        # which of them there will be is not known.
        if (tl.program_id(0) == 0) & (tokens > 0):
            after = tl.where(place + 1 == ring_places, 0, place + 1) * microbatches
            ranks = tl.arange(0, RANKS)
            nothing = tl.zeros([RANKS], tl.int32)
            for other in range(microbatches):
                at = ring + ((after + other) * layers + layer) * ep_size
                tl.store(at + ranks, nothing, mask=ranks < ep_size)
    # Outside of steps no token is valid, and the addresses may be stale: nothing is read through them then.
    first_token = tl.load(entry + _FIRST_TOKEN)
    rows = tl.minimum(tl.load(entry + _ROWS), tokens - first_token)
    if rows > 0:
        if tl.program_id(0) == 0:
            of_layers = flat + 2 * num_counts + layer
            count_tokens(rows, first_token, phase, phases, of_layers, of_layers + layers, BLOCK)
        count_rows(
            tl.load(entry + _ADDRESS),
            rows,
            first_token,
            tl.load(entry + _FIRST_ROW),
            tl.load(entry + _TOP_K),
            tl.load(entry + _ROW_STRIDE),
            tl.load(entry + _COLUMN_STRIDE),
            flat + tl.load(entry + _COUNTS_START),
            num_counts,
            tl.load(entry + _NUM_EXPERTS),
            phase,
            phases,
            ep_ranks + layer * max_experts,
            maps + layer * _MAP_FIELDS,
            loads,
            flat + 2 * (num_counts + layers) + layer * ep_size,
            layers * ep_size,
            ep_size,
            IDS,
            BINS,
            RANKS,
            RULE,
            BLOCK,
        )
        if STAGED is not None:
            copy_traced(
                tl.load(entry + _ADDRESS),
                rows,
                first_token,
                tl.load(entry + _TOP_K),
                tl.load(entry + _ROW_STRIDE),
                tl.load(entry + _COLUMN_STRIDE),
                tl.load(entry + _NUM_EXPERTS),
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
    first_row,
    microbatch,
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
    maps,
    ring,
    microbatches,
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
    RULE: tl.constexpr,  # noqa: N803
    BLOCK: tl.constexpr,  # noqa: N803
):
    """Count one layer, which the arguments describe (see `launch.launch_layer`)."""
    address, num_rows, first_token = in_64_bits(address), in_64_bits(num_rows), in_64_bits(first_token)
    top_k, row_stride, column_stride = in_64_bits(top_k), in_64_bits(row_stride), in_64_bits(column_stride)
    layer, num_layers, num_experts = in_64_bits(layer), in_64_bits(num_layers), in_64_bits(num_experts)
    counts_start, num_counts, width = in_64_bits(counts_start), in_64_bits(num_counts), in_64_bits(width)
    max_experts, ep_size, first_row = in_64_bits(max_experts), in_64_bits(ep_size), in_64_bits(first_row)
    microbatch, microbatches = in_64_bits(microbatch), in_64_bits(microbatches)
    word = tl.load(step_word)
    tokens, phase, place = word & _TOKENS, (word >> _PHASE_SHIFT) & _PHASE_MASK, word >> _PLACE_SHIFT
    rows = tl.minimum(num_rows, tokens - first_token)
    if rows > 0:
        if tl.program_id(0) == 0:
            of_layers = flat + 2 * num_counts + layer
            count_tokens(rows, first_token, phase, phases, of_layers, of_layers + num_layers, BLOCK)
        count_rows(
            address,
            rows,
            first_token,
            first_row,
            top_k,
            row_stride,
            column_stride,
            flat + counts_start,
            num_counts,
            num_experts,
            phase,
            phases,
            ep_ranks + layer * max_experts,
            maps + layer * _MAP_FIELDS,
            ring + ((place * microbatches + microbatch) * num_layers + layer) * ep_size,
            flat + 2 * (num_counts + num_layers) + layer * ep_size,
            num_layers * ep_size,
            ep_size,
            IDS,
            BINS,
            RANKS,
            RULE,
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


_SIZES = ["num_counts", "max_experts", "microbatches", "ep_size", "width"]
# A value of 1 or one that 16 divides would compile another variant of the kernel, in the middle of serving.
step_kernel = triton.jit(_count_step, do_not_specialize=[*_SIZES, "ring_places"])
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
        "first_row",
        "microbatch",
        "layer",
        "counts_start",
        "num_experts",
        "num_layers",
    ],
)
