"""The part of the counting kernels that counts rows of one layer. Equal to `reference.count_rows`.

Every product of sizes is in 64 bits: a number of valid tokens times top-k overflows 32 bits silently.
"""

from __future__ import annotations

from typing import Final

import triton
import triton.language as tl

from moescope.capture.step.word import Phase

_DECODE: Final = tl.constexpr(Phase.DECODE.value)
_MIXED: Final = tl.constexpr(Phase.MIXED.value)
# Cells of a table of bins by EP ranks, above which the loads of a block are not added up in such a table.
_MOST_CELLS: Final = tl.constexpr(8192)


@triton.jit
def in_64_bits(number):  # type: ignore[no-untyped-def]
    """An integer argument of a kernel as int64; Triton gives it 32 bits where its value allows.

    A sum and not a cast: the interpreter says that a value from 2**31 up to 2**32 is an int64 and holds it in
    32 bits, which a cast would leave so.
    """
    return tl.zeros([], tl.int64) + number


@triton.jit
def count_tokens(  # type: ignore[no-untyped-def]
    rows,
    first_token,
    phase,
    phases,
    prefill_rows,
    decode_rows,
    BLOCK: tl.constexpr,  # noqa: N803
):
    """Add these rows to the numbers of tokens counted in a layer, by phase."""
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
def count_rows(  # type: ignore[no-untyped-def]
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

    They are added to the layer's counts of prefill or, `num_counts` further on, of decode; and, where there
    are `RANKS`, to the loads at the step's place in the ring.
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
            if BINS * RANKS <= _MOST_CELLS:
                # Many bins of one rank would queue for one address: they are added up here first.
                ranks = tl.arange(0, RANKS)
                mine = tl.where(rank[:, None] == ranks[None, :], histogram[:, None], 0)
                load = tl.sum(mine, 0)
                tl.atomic_add(loads + ranks, load, mask=load > 0, sem="relaxed")
            else:
                tl.atomic_add(loads + rank, histogram, mask=histogram > 0, sem="relaxed")
