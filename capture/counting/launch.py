"""Launches of the counting kernels: their grids and their arguments."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import torch
import triton
import triton.language as tl

from moescope.capture.counting.device_maps import NO_MAPS
from moescope.capture.counting.kernels import layer_kernel, step_kernel
from moescope.capture.counting.pointer_tables import table_entry
from moescope.capture.counting.reference import CountBuffers
from moescope.capture.counting.trace_kernel import traced_arguments
from moescope.capture.seam.replica_rule import ReplicaRule
from moescope.capture.seam.rows import RowSpan

BLOCK: Final = 1024
"""Slots that one program counts at a time."""
MAX_BLOCKS: Final = 32
"""Programs per layer, at most. With more blocks each program counts several, and adds to the counts once."""
MIN_BINS: Final = 128
MIN_LANES: Final = 64
"""Bins of a block's histogram of EP ranks, at least."""
MAX_BINS: Final = 2048
"""Above this number of experts a block's histogram would outgrow the block: slots are added one by one."""

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


def launch_step(
    table: torch.Tensor,
    buffers: CountBuffers,
    flat: torch.Tensor,
    ids_dtype: torch.dtype,
    max_slots: int,
) -> None:
    """Count the layers of a pointer table in one launch on the current stream; never synchronises.

    It also empties the place of the next step in the ring of loads, if there is one.

    Args:
        table: int64 [L, len(Field)] on the device (see `pointer_tables`); layers without rows are left out.
        buffers: what says how many tokens are true, of which phase they are, and where loads go.
        flat: added to in place, laid out as ``buffers.flat``.
        ids_dtype: of all layers' ids.
        max_slots: no layer of the table has more slots.

    Raises:
        KeyError: ids of a type that `supports` refuses.
    """
    ring = _ring_of(buffers)
    step_kernel[(num_blocks(max_slots), table.shape[0])](
        table,
        buffers.step_word,
        buffers.phases,
        flat,
        buffers.num_counts,
        ring.ep_ranks,
        ring.max_experts,
        ring.maps,
        ring.loads,
        ring.places,
        ring.microbatches,
        ring.ep_size,
        **traced_arguments(buffers.traced, buffers.step_word),
        IDS=_IDS[ids_dtype],
        BINS=num_bins(buffers.max_experts),
        RANKS=ring.lanes,
        RULE=ring.rule,
        BLOCK=BLOCK,
    )


def launch_layer(
    topk_ids: torch.Tensor, span: RowSpan, buffers: CountBuffers, ordinal: int, flat: torch.Tensor
) -> None:
    """Count one layer in a launch on the current stream; never synchronises.

    Unlike `launch_step` it empties no place in the ring of loads.

    Args:
        topk_ids: logical expert ids [n, top_k].
        span: the rows of `topk_ids` that this worker counts.
        buffers: what says how many tokens are true, of which phase they are, and where loads go.
        ordinal: of the layer, in ``buffers.layers``.
        flat: added to in place, laid out as ``buffers.flat``.

    Raises:
        KeyError: ids of a type that `supports` refuses.
    """
    entry, ring = table_entry(topk_ids, span), _ring_of(buffers)
    layer_kernel[(num_blocks(span.count * topk_ids.shape[1]),)](
        *entry,
        ordinal,
        buffers.starts[ordinal],
        buffers.layers[ordinal].num_experts,
        buffers.step_word,
        buffers.phases,
        flat,
        buffers.num_counts,
        len(buffers.layers),
        ring.ep_ranks,
        ring.max_experts,
        ring.maps,
        ring.loads,
        ring.microbatches,
        ring.ep_size,
        **traced_arguments(buffers.traced, buffers.step_word),
        IDS=_IDS[topk_ids.dtype],
        BINS=num_bins(buffers.max_experts),
        RANKS=ring.lanes,
        RULE=ring.rule,
        BLOCK=BLOCK,
    )


class _Ring(NamedTuple):
    """The ring of loads as the kernels take it. Without one `lanes` is 0, and the kernels ignore it."""

    ep_ranks: torch.Tensor
    max_experts: int
    maps: torch.Tensor
    loads: torch.Tensor
    places: int
    microbatches: int
    ep_size: int
    lanes: int
    rule: int


def _ring_of(buffers: CountBuffers) -> _Ring:
    ring = buffers.ring
    if ring is None:
        return _Ring(buffers.flat, 0, buffers.flat, buffers.flat, 0, 0, 0, 0, NO_MAPS)
    places, microbatches, _, ep_size = ring.loads.shape
    lanes = int(triton.next_power_of_2(ep_size))
    maps, rule = buffers.flat, NO_MAPS
    if ring.maps is not None:
        maps, rule = ring.maps.table, int(ring.maps.rule)
    if rule >= ReplicaRule.ROW_HASH:
        lanes = max(lanes, MIN_LANES)
    return _Ring(
        ring.ep_ranks,
        ring.ep_ranks.shape[1],
        maps,
        ring.loads,
        places,
        microbatches,
        ep_size,
        lanes,
        rule,
    )
