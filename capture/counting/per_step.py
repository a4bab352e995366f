"""Counting on a GPU: one kernel for all layers of a step, or one for each layer where ids can't be kept."""

from __future__ import annotations

import torch

from moescope.capture.counting.kept_ids import KeptPass
from moescope.capture.counting.launch import launch_layer, launch_step, supports
from moescope.capture.counting.pointer_tables import PointerTables
from moescope.capture.counting.reference import CountBuffers
from moescope.capture.counting.strategy import ReferencesUnsafeError
from moescope.capture.seam.forward import capture_breaks
from moescope.capture.seam.rows import RowSpan


class MissedLaunchError(RuntimeError):
    """A CUDA graph was captured, or a step ran, without the launch that counts it."""


def _check(topk_ids: torch.Tensor, buffers: CountBuffers) -> None:
    """Refuse, before anything is enqueued, ids that the kernels can't read."""
    if topk_ids.dim() != 2:
        raise ValueError(f"top-k ids must be [n, top_k], got shape {tuple(topk_ids.shape)}")
    if not supports(topk_ids.dtype) or topk_ids.device != buffers.flat.device:
        raise ValueError(
            f"top-k ids must be integers on {buffers.flat.device}, got {topk_ids.dtype} on {topk_ids.device}"
        )


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

    Where vLLM splits a step into microbatches, each of them is a pass of its own, which its own last layer
    launches. vLLM runs them in turns, in a thread each of which one runs at a time, and computes all of them
    in one stream, captured in one graph.

    Args:
        buffers: what to count into.
        kept_ids_bytes: the bound, on the device, over all microbatches. With 0 each call launches.
    """

    name = "kernel-per-step"

    def __init__(self, buffers: CountBuffers, kept_ids_bytes: int) -> None:
        self._buffers = buffers
        self._tables = PointerTables(buffers.layers, buffers.flat.device, buffers.microbatches)
        self._last = len(buffers.layers) - 1
        self._bound = kept_ids_bytes
        self._passes = tuple(KeptPass() for _ in range(buffers.microbatches))
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
        for part in self._passes:
            if part.called:
                self._forget(part)
        if self._tables.has_fresh:
            self._tables.upload()
        self._in_step = True

    def end_step(self) -> None:
        """Launch for the layers of an eager pass that ended before the layer that usually is the last."""
        for part in self._passes:
            if not part.called:  # a replay of a graph
                continue
            if part.kept and part.while_capturing:
                self._forget(part)
            self._launch(part, self._buffers.flat, capturing=False)
            part.end()
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
        part = self._passes[span.microbatch]
        if part.called:
            self._refuse_overwritten(part, ordinal, topk_ids)
            self._make_way(part, ordinal, capturing, flat)
        self._refuse_shared_memory(ordinal, topk_ids)
        part.keep(ordinal, topk_ids, span, capturing)
        self._last = max(self._last, ordinal)
        if ordinal == self._last:
            self._launch(part, flat, capturing)
            part.end()
            if capturing and self._eager_parts_route is None and capture_breaks():
                self._eager_parts_route = False
        elif self._held > self._bound or (capturing and self._may_end_here()):
            part.let_go()
            self._launch(part, flat, capturing)

    @property
    def _held(self) -> int:
        """Bytes of all ids that are kept."""
        return sum(part.held for part in self._passes)

    def _may_end_here(self) -> bool:
        """Whether the pass that is captured may have no later layer in its graph."""
        return self._eager_parts_route is not False and capture_breaks()

    def _make_way(self, part: KeptPass, ordinal: int, capturing: bool, flat: torch.Tensor) -> None:
        """Launch for the ids that are kept, or drop them, if this call can't belong to the same launch."""
        if capturing != part.while_capturing:
            self._forget(part)
        elif ordinal in part.called:
            if self._in_step or ordinal != next(iter(part.called)):
                self._launch(part, flat, capturing)  # a layer that runs twice in a pass
                part.end()
            else:  # a new pass: the one before ended here
                self._last = next(reversed(part.called))
                self._forget(part)

    def _refuse_overwritten(self, part: KeptPass, ordinal: int, topk_ids: torch.Tensor) -> None:
        """In a step, a layer that runs again has not written over its own ids, which wait for a launch."""
        kept = part.kept.get(ordinal)
        if not self._in_step or kept is None or kept.ids is None or not topk_ids.numel():
            return
        if kept.ids.data_ptr() == topk_ids.data_ptr():
            self._drop_all()
            layer = self._buffers.layers[ordinal].layer
            raise ReferencesUnsafeError(f"layer {layer} runs twice in a step and writes its ids in place")

    def _drop_all(self) -> None:
        for part in self._passes:
            part.take()
            part.end()

    def _forget(self, part: KeptPass) -> None:
        """Drop ids of a pass that counts nothing; to drop ids of another pass is an error."""
        kept = part.take()
        part.end()
        if kept and (part.while_capturing or self._in_step):
            layers = [self._buffers.layers[ordinal].layer for ordinal in kept]
            where = "a CUDA graph was captured" if part.while_capturing else "a step ran"
            raise MissedLaunchError(f"{where} without counting layers {layers}")

    def _refuse_shared_memory(self, ordinal: int, topk_ids: torch.Tensor) -> None:
        address = topk_ids.data_ptr()
        if not any(part.has_at(address) for part in self._passes):
            return
        self._drop_all()
        layer = self._buffers.layers[ordinal].layer
        raise ReferencesUnsafeError(f"layer {layer} writes its ids where an earlier layer's are")

    def _launch(self, part: KeptPass, flat: torch.Tensor, capturing: bool) -> None:
        """Count the ids that are kept: one launch, or one for each type of ids if layers differ in it."""
        kept = part.take()
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
