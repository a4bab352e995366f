"""Callback slots where no router calls back: monolithic kernels, and modules that route by themselves.

Each slot has the interface of vLLM's `BaseRouter`: ``capture_fn``, and ``set_capture_fn``, which takes a
callback or None. The callback gets logical expert ids, integer [n, top_k].
"""

from __future__ import annotations

from typing import Any, Final

import torch

SINK_BYTES: Final = 64 << 20
"""Memory for the ids of all monolithic kernels together; above it the layers share one buffer."""


class SinkSlot:
    """The slot of a monolithic kernel, which routes inside and writes the ids to a sink if there is one.

    With ``--enable-return-routed-experts`` vLLM makes the sinks; then these are used.
    """

    def __init__(self, routed_experts: Any, moe_config: Any, buffers: SinkBuffers) -> None:
        self._routed_experts = routed_experts
        self._moe_config = moe_config
        self._buffers = buffers

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
            self._routed_experts.routing_sink = self._buffers.make_sink(self._moe_config, capture_fn)
        else:
            sink.capture_fn = capture_fn


class SinkBuffers:
    """Makes the sinks of one model, and has them share a buffer where many would take too much memory.

    The next layer overwrites the ids in a shared buffer, so each layer is counted in its own call, by a
    kernel of its own (`KernelPerLayer`).
    """

    def __init__(self) -> None:
        self._held = 0
        self._shared: dict[torch.Size, torch.Tensor] = {}

    def make_sink(self, moe_config: Any, capture_fn: Any) -> Any:
        """vLLM's own sink for a kernel with this configuration."""
        from vllm.model_executor.layers.fused_moe.routed_experts_capturer import RoutedExpertsSink

        sink = RoutedExpertsSink(moe_config, capture_fn)
        nbytes = sink.buffer.numel() * sink.buffer.element_size()
        if self._held + nbytes > SINK_BYTES:
            sink.buffer = self._shared.setdefault(sink.buffer.shape, sink.buffer)
        else:
            self._held += nbytes
        return sink


class SourceSlot:
    """The slot of a module that routes by itself (vLLM's `RoutedExpertsCaptureSource`)."""

    def __init__(self, source: Any) -> None:
        self._source = source

    @property
    def capture_fn(self) -> Any:
        """The callback that the module's ids go to, or None."""
        return self._source.capture_fn

    def set_capture_fn(self, capture_fn: Any) -> None:
        """Have the module's ids go to this callback."""
        self._source.capture_fn = capture_fn
