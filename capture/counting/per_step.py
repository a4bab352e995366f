"""Counting on a GPU: one kernel for all layers of a step, or one for each layer where ids can't be kept."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch.multiprocessing.reductions import StorageWeakRef

from moescope.capture.counting.launch import launch_layer, launch_step, supports
from moescope.capture.counting.pointer_tables import PointerTables, TableEntry, table_entry
from moescope.capture.counting.reference import CountBuffers
from moescope.capture.counting.strategy import ReferencesUnsafeError
from moescope.capture.seam.forward import capture_breaks
from moescope.capture.seam.rows import RowSpan


class MissedLaunchError(RuntimeError):
    """A CUDA graph was captured, or a step ran, without the launch that counts it."""


class _Kept(NamedTuple):
    """A layer that the next launch counts; `ids` is None where none of its rows are this worker's."""

    entry: TableEntry
    dtype: torch.dtype
    slots: int
    ids: torch.Tensor | None


def _check(topk_ids: torch.Tensor, buffers: CountBuffers) -> None:
    """Refuse, before anything is enqueued, ids that the kernels can't read."""
    if topk_ids.dim() != 2:
        raise ValueError(f"top-k ids must be [n, top_k], got shape {tuple(topk_ids.shape)}")
    if not supports(topk_ids.dtype) or topk_ids.device != buffers.flat.device:
        raise ValueError(
            f"top-k ids must be integers on {buffers.flat.device}, got {topk_ids.dtype} on {topk_ids.device}"
        )


def held_bytes(topk_ids: torch.Tensor) -> int:
    """Memory that a reference to ids [n, top_k] holds: from the first of them to the last."""
    if topk_ids.numel() == 0:
        return 0
    last = sum((size - 1) * stride for size, stride in zip(topk_ids.shape, topk_ids.stride(), strict=True))
    return int((last + 1) * topk_ids.element_size())


class KernelPerStep:
    """Keeps the ids of a pass's layers and counts them all in one kernel, launched by the last layer's call.

    While a reference is kept, the ids' memory is not used for anything else. In eager mode the allocator sees
    to that. The memory of a CUDA graph is laid out during capture, when the references are kept as well; the
    pieces of a piecewise graph are captured one after the other from one pool, so it holds for them too.
    After the launch the memory is free for what follows in the stream. Other graphs may share it: they replay
    before or after, never in between.

    Ids that are kept never take more than a bound: beyond it the launch comes early, within the step or the
    graph, and what is left of the pass gets a launch of its own.

    The strategy learns which layer is the last: at first it takes the last covered layer, later the one after
    which a pass ended. An eager pass may end with another layer, since the end of the step launches what is
    left. A captured pass may not; but vLLM runs each size without a graph before it captures it, and that
    pass shows which layer is the last.

    vLLM may interrupt the capture of a graph to run a part of the model eagerly, which then runs eagerly in
    each replay too (`seam.forward.capture_breaks`). If that part routes, the last captured layer is not known
    beforehand. So in such a graph each call launches, until one pass was captured whose eager parts don't
    route.

    Args:
        buffers: what to count into.
        kept_ids_bytes: the bound, on the device. With 0 each call launches.
    """

    name = "kernel-per-step"

    def __init__(self, buffers: CountBuffers, kept_ids_bytes: int) -> None:
        self._buffers = buffers
        self._tables = PointerTables(buffers.layers, buffers.flat.device)
        self._last = len(buffers.layers) - 1
        self._bound = kept_ids_bytes
        self._held = 0
        self._kept: dict[int, _Kept] = {}
        self._called: dict[int, None] = {}
        self._addresses: dict[int, StorageWeakRef | None] = {}
        self._kept_while_capturing = False
        self._in_step = False
        self._eager_parts_route: bool | None = None

    @property
    def num_bytes(self) -> int:
        """Device memory of the tables of pointers."""
        return self._tables.num_bytes

    def begin_step(self) -> None:
        """Forget the ids that a pass outside of steps has left, and upload the tables of new graphs.

        Raises:
            MissedLaunchError: a CUDA graph was captured without its launch.
        """
        self._forget()
        self._tables.upload()
        self._in_step = True

    def end_step(self) -> None:
        """Launch for the layers of an eager pass that ended before the layer that usually is the last."""
        if self._kept and self._kept_while_capturing:
            self._forget()
        self._launch(self._buffers.flat, capturing=False)
        self._end_pass()
        self._in_step = False

    def record(self, ordinal: int, topk_ids: torch.Tensor, span: RowSpan, flat: torch.Tensor) -> None:
        """See `Strategy.record`.

        Raises:
            ReferencesUnsafeError: two layers of a pass have their ids in one place.
            MissedLaunchError: a CUDA graph was captured, or a step ran, without the launch that counts it.
        """
        _check(topk_ids, self._buffers)
        capturing = torch.cuda.is_current_stream_capturing()
        if not (capturing or self._in_step) and capture_breaks():
            self._eager_parts_route = True  # it is called again in each replay; nothing counts now
            return
        if self._called:
            self._refuse_overwritten(ordinal, topk_ids)
            self._make_way(ordinal, capturing, flat)
        self._refuse_shared_memory(ordinal, topk_ids)
        self._kept_while_capturing = capturing
        self._called[ordinal] = None
        self._keep(ordinal, topk_ids, span)
        self._last = max(self._last, ordinal)
        if ordinal == self._last:
            self._launch(flat, capturing)
            self._end_pass()
            if capturing and self._eager_parts_route is None and capture_breaks():
                self._eager_parts_route = False
        elif self._held > self._bound or (capturing and self._may_end_here()):
            self._launch_early(flat, capturing)

    def _may_end_here(self) -> bool:
        """Whether the pass that is captured may have no later layer in its graph."""
        return self._eager_parts_route is not False and capture_breaks()

    def _keep(self, ordinal: int, topk_ids: torch.Tensor, span: RowSpan) -> None:
        ids = topk_ids if span.count else None
        entry, slots = table_entry(topk_ids, span), span.count * topk_ids.shape[1]
        self._kept[ordinal] = _Kept(entry, topk_ids.dtype, slots, ids)
        if ids is not None:
            self._held += held_bytes(ids)
            self._addresses[ids.data_ptr()] = None

    def _make_way(self, ordinal: int, capturing: bool, flat: torch.Tensor) -> None:
        """Launch for the ids that are kept, or drop them, if this call can't belong to the same launch."""
        if capturing != self._kept_while_capturing:
            self._forget()
        elif ordinal in self._called:
            if self._in_step or ordinal != next(iter(self._called)):
                self._launch(flat, capturing)  # a layer that runs twice in a pass
                self._end_pass()
            else:  # a new pass: the one before ended here
                self._last = next(reversed(self._called))
                self._forget()

    def _refuse_overwritten(self, ordinal: int, topk_ids: torch.Tensor) -> None:
        """In a step, a layer that runs again has not written over its own ids, which wait for a launch."""
        kept = self._kept.get(ordinal)
        if not self._in_step or kept is None or kept.ids is None or not topk_ids.numel():
            return
        if kept.ids.data_ptr() == topk_ids.data_ptr():
            self._take()
            self._end_pass()
            layer = self._buffers.layers[ordinal].layer
            raise ReferencesUnsafeError(f"layer {layer} runs twice in a step and writes its ids in place")

    def _forget(self) -> None:
        """Drop ids of a pass that counts nothing; to drop ids of another pass is an error."""
        kept = self._take()
        self._end_pass()
        if kept and (self._kept_while_capturing or self._in_step):
            layers = [self._buffers.layers[ordinal].layer for ordinal in kept]
            where = "a CUDA graph was captured" if self._kept_while_capturing else "a step ran"
            raise MissedLaunchError(f"{where} without counting layers {layers}")

    def _take(self) -> dict[int, _Kept]:
        kept, self._kept = self._kept, {}
        self._held = 0
        return kept

    def _end_pass(self) -> None:
        self._called.clear()
        self._addresses.clear()

    def _refuse_shared_memory(self, ordinal: int, topk_ids: torch.Tensor) -> None:
        address = topk_ids.data_ptr()
        if not address or address not in self._addresses:
            return
        launched = self._addresses[address]
        if launched is not None and launched.expired():  # type: ignore[no-untyped-call]
            return  # counted before, and the memory was freed since
        self._take()
        self._end_pass()
        layer = self._buffers.layers[ordinal].layer
        raise ReferencesUnsafeError(f"layer {layer} writes its ids where an earlier layer's are")

    def _launch_early(self, flat: torch.Tensor, capturing: bool) -> None:
        """Count what is kept and let it go, in the middle of a pass.

        A later layer may get the memory that this frees. If it gets memory that is not free, routers write to
        one place for several layers.
        """
        for layer in self._kept.values():
            if layer.ids is not None:
                storage = StorageWeakRef(layer.ids.untyped_storage())  # type: ignore[no-untyped-call]
                self._addresses[layer.ids.data_ptr()] = storage
        self._launch(flat, capturing)

    def _launch(self, flat: torch.Tensor, capturing: bool) -> None:
        """Count the ids that are kept: one launch, or one for each type of ids if layers differ in it."""
        kept = self._take()
        for dtype in {layer.dtype: None for layer in kept.values()}:
            mine = {ordinal: layer for ordinal, layer in kept.items() if layer.dtype == dtype}
            max_slots = max(layer.slots for layer in mine.values())
            if max_slots == 0 and self._buffers.ring is None:
                continue  # rows that another worker counts
            entries = {ordinal: layer.entry for ordinal, layer in mine.items()}
            table = self._tables.for_graph(entries) if capturing else self._tables.for_now(entries)
            launch_step(table, self._buffers, flat, dtype, max_slots)


class KernelPerLayer:
    """One kernel in each routing call, so that no ids are kept.

    For routers that write the ids of all layers to one address, and for calls traced into a compiled graph,
    which uses the ids' memory for something else once the call has returned.
    """

    name = "kernel-per-layer"

    def __init__(self, buffers: CountBuffers) -> None:
        self._buffers = buffers

    @property
    def num_bytes(self) -> int:
        """0: nothing is held."""
        return 0

    def begin_step(self) -> None:
        """Empty the step's place in the ring of loads."""
        if self._buffers.ring is not None:
            self._buffers.ring.zero()

    def record(self, ordinal: int, topk_ids: torch.Tensor, span: RowSpan, flat: torch.Tensor) -> None:
        """See `Strategy.record`."""
        _check(topk_ids, self._buffers)
        if span.count == 0:
            return
        launch_layer(topk_ids, span, self._buffers, ordinal, flat)

    def end_step(self) -> None:
        """Nothing is kept between routing calls."""
