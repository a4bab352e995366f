"""Callback slots where no router calls back: monolithic kernels, and modules that route by themselves.

Each slot has the interface of vLLM's `BaseRouter`: ``capture_fn``, and ``set_capture_fn``, which takes a
callback or None. The callback gets logical expert ids, integer [n, top_k].
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable
from typing import Any, Final

import torch

from moescope.capture.seam.features import sink_class

SINK_BYTES: Final = 64 << 20
"""Memory for the ids of all monolithic kernels together; above it the layers share one buffer."""


class SinkSlot:
    """The slot of a monolithic kernel, which routes inside and writes the ids to a sink if there is one.

    With ``--enable-return-routed-experts`` vLLM makes the sinks; then these are used.
    """

    def __init__(self, routed_experts: Any, moe_config: Any, buffers: SinkBuffers, layer: int) -> None:
        self._layer = layer
        self._routed_experts = routed_experts
        self._moe_config = moe_config
        self._buffers = buffers
        self._made: Any = None

    @property
    def holder(self) -> Any:
        """What holds the callback."""
        return self._routed_experts

    @property
    def capture_fn(self) -> Any:
        """The callback that the kernel's ids go to, or None."""
        sink = self._routed_experts.routing_sink
        return None if sink is None else sink.capture_fn

    def set_capture_fn(self, capture_fn: Any) -> None:
        """Have the kernel's ids go to this callback; None takes the sink away."""
        sink = self._routed_experts.routing_sink
        if capture_fn is None:
            self._routed_experts.routing_sink = None
        elif sink is None:
            if self._made is None:
                self._made = self._buffers.make_sink(self._moe_config, capture_fn, self._layer)
            self._made.capture_fn = capture_fn
            self._routed_experts.routing_sink = self._made
        else:
            sink.capture_fn = capture_fn


class KernelSlot:
    """The slot of a monolithic kernel that holds its callback and a buffer (vLLM 0.27 to 0.31).

    Once vLLM has made another kernel, nothing here keeps this one in memory; its slot is empty then.
    """

    def __init__(self, kernel: Any, buffers: SinkBuffers, layer: int) -> None:
        self._kernel = weakly(kernel)
        self._buffers = buffers
        self._layer = layer
        self._buffer: torch.Tensor | None = None

    @property
    def holder(self) -> Any:
        """What holds the callback."""
        return self._kernel()

    @property
    def capture_fn(self) -> Any:
        """The callback that the kernel's ids go to, or None."""
        return getattr(self._kernel(), "routing_replay_capture_fn", None)

    def set_capture_fn(self, capture_fn: Any) -> None:
        """Have the kernel's ids go to this callback, into a buffer; None takes both away from the kernel.

        The kernel has one buffer for good, which stays in memory: captured graphs write to it.
        """
        kernel = self._kernel()
        if kernel is None:
            return
        found = getattr(kernel, "_routing_replay_buffer", None)
        if found is not None and found is not self._buffer:
            self._buffers.keep(self._layer, found)
            self._buffer = found
        kernel.set_capture_fn(capture_fn)
        if capture_fn is not None:
            if self._buffer is None:
                made = _of_all_ranks(kernel._routing_replay_buffer, kernel.moe_config)
                self._buffer = self._buffers.hold(self._layer, made)
            kernel._routing_replay_buffer = self._buffer


def _of_all_ranks(buffer: torch.Tensor, moe_config: Any) -> torch.Tensor:
    """A kernel's buffer, or a larger one that also holds the rows which other ranks send here.

    vLLM 0.27 makes it for this rank's rows only, and raises when the kernel gets more.
    """
    ranks = "ep_size" if getattr(moe_config, "use_ep", False) else "dp_size"
    rows = int(getattr(moe_config, "max_num_tokens", 0)) * int(getattr(moe_config, ranks, 1))
    return buffer if rows <= len(buffer) else buffer.new_empty((rows, buffer.shape[1]))


def holder_of(slot: Any) -> Any:
    """The object of vLLM's that holds a slot's callback: two slots are the same if it is the same."""
    return getattr(slot, "holder", slot)


def weakly(thing: Any) -> Callable[[], Any]:
    """What gives an object of vLLM's, or None once it is gone: it isn't kept in memory."""
    try:
        return weakref.ref(thing)
    except TypeError:  # None, or one that can't be referred to weakly
        return lambda: thing


def writes_in_place(slot: Any) -> bool:
    """Whether a slot hands over all ids of its layer in one place, so that the next call overwrites them."""
    return isinstance(slot, SinkSlot | KernelSlot)


class SinkBuffers:
    """Makes the sinks of one model, and has them share a buffer where many would take too much memory.

    The next layer overwrites the ids in a shared buffer, so each layer is counted in its own call, by a
    kernel of its own (`KernelPerLayer`).

    A layer's buffer goes from kernel to kernel as vLLM makes them anew: CUDA graphs go on writing to it. One
    that is too small for a later kernel stays in memory for them.
    """

    def __init__(self) -> None:
        self._held = 0
        self._shared: dict[torch.Size, torch.Tensor] = {}
        self._users: Counter[torch.Size] = Counter()
        self._of_layer: dict[int, torch.Tensor] = {}
        self._earlier: list[torch.Tensor] = []

    @property
    def shares(self) -> bool:
        """Whether several layers have one buffer."""
        return any(users > 1 for users in self._users.values())

    def make_sink(self, moe_config: Any, capture_fn: Any, layer: int) -> Any:
        """vLLM's own sink for a kernel with this configuration."""
        sink = sink_class()(moe_config, capture_fn)
        sink.buffer = self.hold(layer, sink.buffer)
        return sink

    def hold(self, layer: int, buffer: torch.Tensor) -> torch.Tensor:
        """The layer's buffer if it has a fitting one; else this one, or a shared one of its shape."""
        held = self._of_layer.get(layer)
        if held is None or not _fits(held, buffer):
            held = self._own_or_shared(buffer)
            self.keep(layer, held)
        return held

    def keep(self, layer: int, buffer: torch.Tensor) -> None:
        """Keep a buffer in memory that the layer's kernels write to from now on."""
        earlier = self._of_layer.get(layer)
        if earlier is not None and earlier is not buffer:
            self._earlier.append(earlier)
        self._of_layer[layer] = buffer

    def _own_or_shared(self, buffer: torch.Tensor) -> torch.Tensor:
        if self._held + buffer.nbytes > SINK_BYTES:
            self._users[buffer.shape] += 1
            return self._shared.setdefault(buffer.shape, buffer)
        self._held += buffer.nbytes
        return buffer


def _fits(held: torch.Tensor, buffer: torch.Tensor) -> bool:
    """Whether a buffer, [rows, top_k], can take another one's place."""
    alike = (held.dtype, held.device, held.shape[1:]) == (buffer.dtype, buffer.device, buffer.shape[1:])
    return alike and len(held) >= len(buffer)


class SourceSlot:
    """The slot of a module that routes by itself (vLLM's `RoutedExpertsCaptureSource`)."""

    def __init__(self, source: Any) -> None:
        self._source = source

    @property
    def holder(self) -> Any:
        """What holds the callback."""
        return self._source

    @property
    def capture_fn(self) -> Any:
        """The callback that the module's ids go to, or None."""
        return self._source.capture_fn

    def set_capture_fn(self, capture_fn: Any) -> None:
        """Have the module's ids go to this callback."""
        self._source.capture_fn = capture_fn
