"""The Triton kernels that count slots. Imported only where there is a GPU; equal to `counting.count_rows`.

Every product of sizes is in 64 bits: a number of valid tokens times top-k overflows 32 bits silently.
"""

from __future__ import annotations

from typing import Final

import triton
import triton.language as tl

from moescope.capture.step_word import MAX_TOKENS, PHASE_SHIFT, SLOT_SHIFT, Phase
from moescope.capture.trace_kernel import copy_traced

# Parts of the step's word (see `step_word`), for the kernels.
_TOKENS: Final = tl.constexpr(MAX_TOKENS)
_PHASE_SHIFT: Final = tl.constexpr(PHASE_SHIFT)
_SLOT_SHIFT: Final = tl.constexpr(SLOT_SHIFT)
_DECODE: Final = tl.constexpr(Phase.DECODE.value)
_MIXED: Final = tl.constexpr(Phase.MIXED.value)


@triton.jit
def _count_tokens(  # type: ignore[no-untyped-def]
    rows,
    first_token,
    phase,
    phases,
    prefill_rows,
    decode_rows,
    BLOCK: tl.constexpr,  # noqa: N803
):
    """Add these rows to the tokens counted in a layer, by phase."""
    decode = rows * phase
    if phase == _MIXED:
        decode = tl.zeros([], tl.int64)
        for start in range(0, rows, BLOCK):
            token = start + tl.arange(0, BLOCK).to(tl.int64)
            of = tl.load(phases + first_token + token, mask=token < rows, other=0)
            decode += tl.sum((of == _DECODE).to(tl.int64), 0)
    tl.atomic_add(prefill_rows, rows - decode, sem="relaxed")
    tl.atomic_add(decode_rows, decode, sem="relaxed")


@triton.jit
def _count_rows(  # type: ignore[no-untyped-def]
    address,
    rows,
    first_token,
    top_k,
    row_stride,
    column_stride,
    counts,
    num_counts,
    num_experts,
    phase,
    phases,
    ep_ranks,
    loads,
    IDS: tl.constexpr,  # noqa: N803
    BINS: tl.constexpr,  # noqa: N803
    RANKS: tl.constexpr,  # noqa: N803
    BLOCK: tl.constexpr,  # noqa: N803
):
    """Add every num_programs(0)-th block of the slots of these rows, all arguments int64.

    To the layer's counts of prefill or, `num_counts` further on, of decode; and, where there are `RANKS`, to
    the loads of the step's slot in the ring.
    """
    ids = address.to(tl.pointer_type(IDS))
    slots = rows * top_k
    contiguous = (row_stride == top_k) & (column_stride == 1)
    mixed = phase == _MIXED
    first, stride = tl.program_id(0).to(tl.int64) * BLOCK, tl.num_programs(0).to(tl.int64) * BLOCK
    if BINS > 0:
        histogram = tl.zeros([BINS], dtype=tl.int32)
        decode = tl.zeros([BINS], dtype=tl.int32)
        if mixed:
            for start in range(first, slots, stride):
                slot = start + tl.arange(0, BLOCK).to(tl.int64)
                offsets = (slot // top_k) * row_stride + (slot % top_k) * column_stride
                expert = tl.load(ids + offsets, mask=slot < slots, other=0).to(tl.int64)
                counted = (slot < slots) & (expert >= 0) & (expert < num_experts)
                one = tl.where(counted, expert, 0).to(tl.int32)
                of = tl.load(phases + first_token + slot // top_k, mask=counted, other=0)
                histogram += tl.histogram(one, BINS, mask=counted)
                decode += tl.histogram(one, BINS, mask=counted & (of == _DECODE))
        else:
            for start in range(first, slots, stride):
                slot = start + tl.arange(0, BLOCK).to(tl.int64)
                offsets = slot
                if not contiguous:
                    offsets = (slot // top_k) * row_stride + (slot % top_k) * column_stride
                expert = tl.load(ids + offsets, mask=slot < slots, other=0).to(tl.int64)
                counted = (slot < slots) & (expert >= 0) & (expert < num_experts)
                one = tl.where(counted, expert, 0).to(tl.int32)
                histogram += tl.histogram(one, BINS, mask=counted)
            decode = histogram * phase.to(tl.int32)
    else:
        for start in range(first, slots, stride):
            slot = start + tl.arange(0, BLOCK).to(tl.int64)
            offsets = (slot // top_k) * row_stride + (slot % top_k) * column_stride
            expert = tl.load(ids + offsets, mask=slot < slots, other=0).to(tl.int64)
            counted = (slot < slots) & (expert >= 0) & (expert < num_experts)
            half = tl.full([BLOCK], 0, tl.int64) + phase
            if mixed:
                half = tl.load(phases + first_token + slot // top_k, mask=counted, other=0).to(tl.int64)
            ones = tl.full([BLOCK], 1, tl.int64)
            tl.atomic_add(counts + half * num_counts + expert, ones, mask=counted, sem="relaxed")
            if RANKS > 0:
                rank = tl.load(ep_ranks + expert, mask=counted, other=0)
                tl.atomic_add(loads + rank, ones.to(tl.int32), mask=counted, sem="relaxed")
    if BINS > 0:
        bins = tl.arange(0, BINS)
        prefill = histogram - decode
        tl.atomic_add(counts + bins, prefill.to(tl.int64), mask=prefill > 0, sem="relaxed")
        tl.atomic_add(counts + num_counts + bins, decode.to(tl.int64), mask=decode > 0, sem="relaxed")
        if RANKS > 0:
            rank = tl.load(ep_ranks + bins, mask=bins < num_experts, other=0)
            if BINS * RANKS <= 8192:
                # Many bins of one rank would queue for one address: they are added up here first.
                ranks = tl.arange(0, RANKS)
                mine = tl.where(rank[:, None] == ranks[None, :], histogram[:, None], 0)
                load = tl.sum(mine, 0)
                tl.atomic_add(loads + ranks, load, mask=load > 0, sem="relaxed")
            else:
                tl.atomic_add(loads + rank, histogram, mask=histogram > 0, sem="relaxed")


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
            _count_tokens(rows, first_token, phase, phases, of_layers, of_layers + layers, BLOCK)
        _count_rows(
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
    word = tl.load(step_word)
    tokens, phase, step_slot = word & _TOKENS, (word >> _PHASE_SHIFT) & 3, word >> _SLOT_SHIFT
    rows = tl.minimum(num_rows.to(tl.int64), tokens - first_token)
    if rows > 0:
        if tl.program_id(0) == 0:
            of_layers = flat + 2 * num_counts + layer
            _count_tokens(
                rows, first_token.to(tl.int64), phase, phases, of_layers, of_layers + num_layers, BLOCK
            )
        _count_rows(
            address,
            rows,
            first_token.to(tl.int64),
            top_k.to(tl.int64),
            row_stride.to(tl.int64),
            column_stride.to(tl.int64),
            flat + counts_start,
            num_counts,
            num_experts.to(tl.int64),
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
