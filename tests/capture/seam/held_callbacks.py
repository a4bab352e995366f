"""Monolithic kernels that hold their callbacks, as in vLLM 0.27 to 0.31."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, Final

import torch

from tests.capture.seam.runners import runner

EXPERTS: Final = 8
TOP_K: Final = 2


class HoldsItsCallback:
    """A monolithic kernel's way of handing over ids in vLLM 0.27 to 0.31, which 0.32 no longer has.

    `make matrix` runs the real one (`devkit.matrix.old_kernel`).
    """

    routing_replay_capture_fn: Any = None
    _routing_replay_buffer: torch.Tensor | None = None
    moe_config = SimpleNamespace(experts_per_token=TOP_K)

    def supports_routing_replay_capture(self) -> bool:
        return True

    def set_capture_fn(self, capture_fn: Any) -> None:
        self.routing_replay_capture_fn = capture_fn
        self._routing_replay_buffer = (
            None if capture_fn is None else torch.empty(16, TOP_K, dtype=torch.int16)
        )

    def runs(self, logits: torch.Tensor) -> None:
        if self.routing_replay_capture_fn is not None:
            assert self._routing_replay_buffer is not None
            rows = self._routing_replay_buffer[: len(logits)]
            rows.copy_(logits.topk(TOP_K, dim=-1).indices)
            self.routing_replay_capture_fn(rows)


def holding(layer: int) -> Any:
    """A layer with such a kernel."""
    return runner(layer, EXPERTS, monolithic=True, kernel=HoldsItsCallback())


def kernel_of(module: Any) -> HoldsItsCallback:
    """The kernel that a layer has now."""
    found: HoldsItsCallback = module.routed_experts.quant_method.moe_kernel.impl.fused_experts
    return found


def made_anew(module: Any) -> None:
    """Give a layer another kernel, as `process_weights_after_loading` of a quantised method does."""
    module.routed_experts.quant_method.moe_kernel.impl.fused_experts = HoldsItsCallback()
