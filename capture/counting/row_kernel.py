"""The part of the counting kernels that counts rows of one layer. Equal to `reference.count_rows`.

Every product of sizes is in 64 bits: a number of valid tokens times top-k overflows 32 bits silently.
"""

from __future__ import annotations

from typing import Final

import triton
import triton.language as tl

from moescope.capture.counting.device_maps import NO_MAPS, MapField
from moescope.capture.seam.replica_rule import MULTIPLIER, ReplicaRule
from moescope.capture.step.word import Phase

_DECODE: Final = tl.constexpr(Phase.DECODE.value)
_MIXED: Final = tl.constexpr(Phase.MIXED.value)
# Cells of a table of bins by EP ranks, above which the loads of a block are not added up in such a table.
_MOST_CELLS: Final = tl.constexpr(8192)
# EP ranks, above which no block has a histogram of them.
_MOST_RANKS: Final = tl.constexpr(2048)
_NO_MAPS: Final = tl.constexpr(NO_MAPS)
_ROW_HASH: Final = tl.constexpr(ReplicaRule.ROW_HASH.value)
_FLAT_SLOT: Final = tl.constexpr(ReplicaRule.FLAT_SLOT.value)
_MULTIPLIER: Final = tl.constexpr(MULTIPLIER)
_PHYSICAL: Final = tl.constexpr(MapField.PHYSICAL.value)
_COPIES: Final = tl.constexpr(MapField.COPIES.value)
_STRIDE: Final = tl.constexpr(MapField.STRIDE.value)
_PER_RANK: Final = tl.constexpr(MapField.PER_RANK.value)


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
def _rank_of(  # type: ignore[no-untyped-def]
    expert,
    wanted,
    first_slot,
    top_k,
    first_row,
    ep_ranks,
    maps,
    RULE: tl.constexpr,  # noqa: N803
    BLOCK: tl.constexpr,  # noqa: N803
):
    """The EP rank of the copy that slots go to, int32; -1 where a map names none. As `LoadRing.ranks_of`.

    Where experts have several copies (rules from `ROW_HASH` on), the slots are those from `first_slot` on, of
    the rows that begin with the router's `first_row`. Else `expert` may be any experts.
    """
    if RULE == _NO_MAPS:
        rank = tl.load(ep_ranks + expert, mask=wanted, other=-1)
    else:
        at = expert * tl.load(maps + _STRIDE)
        if RULE >= _ROW_HASH:
            copies_of = tl.load(maps + _COPIES).to(tl.pointer_type(tl.int64))
            copies = tl.maximum(tl.load(copies_of + expert, mask=wanted, other=1), 1)
            within = tl.arange(0, BLOCK)
            if RULE == _FLAT_SLOT:
                at += (first_row * top_k + first_slot + within) % copies
            else:
                # Divisions of 32 bits take a fraction of the time.
                rows = ((first_slot % top_k).to(tl.int32) + within) // top_k.to(tl.int32)
                row = first_row + first_slot // top_k + rows
                place = ((row * _MULTIPLIER) & 0xFFFFFFFF).to(tl.uint32)
                at += (place % copies.to(tl.uint32)).to(tl.int64)
        physical_of = tl.load(maps + _PHYSICAL).to(tl.pointer_type(tl.int64))
        physical = tl.load(physical_of + at, mask=wanted, other=-1).to(tl.int32)
        rank = tl.where(physical >= 0, physical // tl.load(maps + _PER_RANK).to(tl.int32), -1)
    return rank


@triton.jit
def count_rows(  # type: ignore[no-untyped-def]
    address,
    rows,
    first_token,
    first_row,
    top_k,
    row_stride,
    column_stride,
    counts,
    num_counts,
    num_experts,
    phase,
    phases,
    ep_ranks,
    maps,
    loads,
    ep_slots,
    ep_cells,
    ep_size,
    IDS: tl.constexpr,  # noqa: N803
    BINS: tl.constexpr,  # noqa: N803
    RANKS: tl.constexpr,  # noqa: N803
    RULE: tl.constexpr,  # noqa: N803
    BLOCK: tl.constexpr,  # noqa: N803
):
    """Add every num_programs(0)-th block of the slots of these rows, all arguments int64.

    They are added to the layer's counts of prefill or, `num_counts` further on, of decode; and, where there
    are `RANKS`, to the loads at the step's place in the ring, and to the layer's slots by EP rank of prefill
    or, `ep_cells` further on, of decode. `RULE` is `NO_MAPS` or a `ReplicaRule`.
    """
    ids = address.to(tl.pointer_type(IDS))
    slots = rows * top_k
    contiguous = (row_stride == top_k) & (column_stride == 1)
    mixed = phase == _MIXED
    first, stride = tl.program_id(0).to(tl.int64) * BLOCK, tl.num_programs(0).to(tl.int64) * BLOCK
    if BINS > 0:
        histogram = tl.zeros([BINS], dtype=tl.int32)
        decode = tl.zeros([BINS], dtype=tl.int32)
        if RANKS > 0:
            load = tl.zeros([RANKS], dtype=tl.int32)
            of_decode = tl.zeros([RANKS], dtype=tl.int32)
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
                if RULE >= _ROW_HASH:
                    rank = _rank_of(one, counted, start, top_k, first_row, ep_ranks, maps, RULE, BLOCK)
                    held = counted & (rank >= 0) & (rank < ep_size)
                    rank = tl.where(held, rank, 0)
                    if RANKS <= _MOST_RANKS:
                        load += tl.histogram(rank, RANKS, mask=held)
                        of_decode += tl.histogram(rank, RANKS, mask=held & (of == _DECODE))
                    else:
                        half = tl.where(of == _DECODE, ep_cells, 0)
                        _add_each(loads, ep_slots, rank, half, held, BLOCK)
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
                if RULE >= _ROW_HASH:
                    rank = _rank_of(one, counted, start, top_k, first_row, ep_ranks, maps, RULE, BLOCK)
                    held = counted & (rank >= 0) & (rank < ep_size)
                    rank = tl.where(held, rank, 0)
                    if RANKS <= _MOST_RANKS:
                        load += tl.histogram(rank, RANKS, mask=held)
                    else:
                        _add_each(loads, ep_slots, rank, ep_cells * phase, held, BLOCK)
            decode = histogram * phase.to(tl.int32)
            if RANKS > 0:
                of_decode = load * phase.to(tl.int32)
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
                rank = _rank_of(expert, counted, start, top_k, first_row, ep_ranks, maps, RULE, BLOCK)
                held = counted & (rank >= 0) & (rank < ep_size)
                _add_each(loads, ep_slots, rank, half * ep_cells, held, BLOCK)
    if BINS > 0:
        bins = tl.arange(0, BINS)
        prefill = histogram - decode
        tl.atomic_add(counts + bins, prefill.to(tl.int64), mask=prefill > 0, sem="relaxed")
        tl.atomic_add(counts + num_counts + bins, decode.to(tl.int64), mask=decode > 0, sem="relaxed")
        if RANKS > 0:
            if RULE < _ROW_HASH:
                rank = _rank_of(bins, bins < num_experts, first, top_k, first_row, ep_ranks, maps, RULE, BINS)
                held = (rank >= 0) & (rank < ep_size)
                if BINS * RANKS <= _MOST_CELLS:
                    # Many bins of one rank would queue for one address: they are added up here first.
                    mine = rank[:, None] == tl.arange(0, RANKS)[None, :]
                    load = tl.sum(tl.where(mine, histogram[:, None], 0), 0)
                    of_decode = load * phase.to(tl.int32)
                    if mixed:
                        of_decode = tl.sum(tl.where(mine, decode[:, None], 0), 0)
                else:
                    tl.atomic_add(loads + rank, histogram, mask=held & (histogram > 0), sem="relaxed")
                    wide = prefill.to(tl.int64)
                    tl.atomic_add(ep_slots + rank, wide, mask=held & (prefill > 0), sem="relaxed")
                    wide = decode.to(tl.int64)
                    tl.atomic_add(ep_slots + ep_cells + rank, wide, mask=held & (decode > 0), sem="relaxed")
            ranks = tl.arange(0, RANKS)
            before = load - of_decode
            tl.atomic_add(loads + ranks, load, mask=load > 0, sem="relaxed")
            tl.atomic_add(ep_slots + ranks, before.to(tl.int64), mask=before > 0, sem="relaxed")
            wide = of_decode.to(tl.int64)
            tl.atomic_add(ep_slots + ep_cells + ranks, wide, mask=of_decode > 0, sem="relaxed")


@triton.jit
def _add_each(loads, ep_slots, rank, half, held, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: N803
    """Add slots one by one to the loads of their EP ranks, and to the slots by EP rank, `half` further on."""
    ones = tl.full([BLOCK], 1, tl.int64)
    tl.atomic_add(loads + rank, ones.to(tl.int32), mask=held, sem="relaxed")
    tl.atomic_add(ep_slots + half + rank, ones, mask=held, sem="relaxed")
