"""Counting on a GPU: one kernel for all layers of a step, or one for each layer where ids can't be kept."""

from __future__ import annotations

from typing import NamedTuple

import torch

from moescope.capture.counting.launch import launch_layer, launch_step, supports
from moescope.capture.counting.pointer_tables import PointerTables, table_entry
from moescope.capture.counting.reference import CountBuffers
from moescope.capture.counting.strategy import ReferencesUnsafeError
from moescope.capture.seam.rows import RowSpan


class MissedLaunchError(RuntimeError):
    """A CUDA graph was captured, or a step ran, without the launch that counts it."""


class _Kept(NamedTuple):
    topk_ids: torch.Tensor
    span: RowSpan


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

    The strategy learns which layer is the last: at first it takes the last covered layer, later the one after
    which a pass ended. An eager pass may end with another layer, since the end of the step launches what is
    left. A captured pass may not; but vLLM runs each size without a graph before it captures it, and that
    pass shows which layer is the last.
    """

    name = "kernel-per-step"

    def __init__(self, buffers: CountBuffers) -> None:
        self._buffers = buffers
        self._tables = PointerTables(buffers.layers, buffers.flat.device)
        self._last = len(buffers.layers) - 1
        self._kept: dict[int, _Kept] = {}
        self._addresses: set[int] = set()
        self._kept_while_capturing = False
        self._in_step = False

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
        self._in_step = False

    def record(self, ordinal: int, topk_ids: torch.Tensor, span: RowSpan, flat: torch.Tensor) -> None:
        """See `Strategy.record`.

        Raises:
            ReferencesUnsafeError: two layers of a pass have their ids in one place.
            MissedLaunchError: a CUDA graph was captured, or a step ran, without the launch that counts it.
        """
        _check(topk_ids, self._buffers)
        capturing = torch.cuda.is_current_stream_capturing()
        if self._kept:
            self._make_way(ordinal, capturing, flat)
        self._refuse_shared_memory(ordinal, topk_ids)
        self._kept_while_capturing = capturing
        self._kept[ordinal] = _Kept(topk_ids, span)
        self._last = max(self._last, ordinal)
        if ordinal == self._last:
            self._launch(flat, capturing)

    def _make_way(self, ordinal: int, capturing: bool, flat: torch.Tensor) -> None:
        """Launch for the ids that are kept, or drop them, if this call can't belong to the same launch."""
        if capturing != self._kept_while_capturing:
            self._forget()
        elif ordinal in self._kept:
            if self._in_step or ordinal != next(iter(self._kept)):
                self._launch(flat, capturing)  # a layer that runs twice in a pass
            else:  # a new pass: the one before ended here
                self._last = next(reversed(self._kept))
                self._forget()

    def _forget(self) -> None:
        """Drop ids of a pass that counts nothing; to drop ids of another pass is an error."""
        kept = self._take()
        if kept and (self._kept_while_capturing or self._in_step):
            layers = [self._buffers.layers[ordinal].layer for ordinal in kept]
            where = "a CUDA graph was captured" if self._kept_while_capturing else "a step ran"
            raise MissedLaunchError(f"{where} without counting layers {layers}")

    def _take(self) -> dict[int, _Kept]:
        kept, self._kept = self._kept, {}
        self._addresses.clear()
        return kept

    def _refuse_shared_memory(self, ordinal: int, topk_ids: torch.Tensor) -> None:
        address = topk_ids.data_ptr()
        if address and address in self._addresses:
            self._take()
            layer = self._buffers.layers[ordinal].layer
            raise ReferencesUnsafeError(f"layer {layer} writes its ids where an earlier layer's are")
        self._addresses.add(address)

    def _launch(self, flat: torch.Tensor, capturing: bool) -> None:
        """Count the ids that are kept: one launch, or one for each type of ids if layers differ in it."""
        kept = self._take()
        for dtype in {layer.topk_ids.dtype: None for layer in kept.values()}:
            mine = {ordinal: layer for ordinal, layer in kept.items() if layer.topk_ids.dtype == dtype}
            max_slots = max(layer.span.count * layer.topk_ids.shape[1] for layer in mine.values())
            if max_slots == 0 and self._buffers.ring is None:
                continue  # rows that another worker counts
            entries = {ordinal: table_entry(layer.topk_ids, layer.span) for ordinal, layer in mine.items()}
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
