"""Where one MoE layer's ids can be had: its callback slot, or why it has none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from moescope.capture.seam.features import is_monolithic, monolithic_kernel, sink_class, source_class
from moescope.capture.seam.slots import KernelSlot, SinkBuffers, SinkSlot, SourceSlot
from moescope.capture.wire import MoeLayer

CaptureFn = Callable[[torch.Tensor], None]


@dataclass(frozen=True, slots=True)
class RoutedLayer:
    """A covered MoE layer and the callback slot that sees its logical expert ids.

    Attributes:
        router: vLLM's `BaseRouter`, or what stands in for one (see `seam.slots`).
        module: the layer's module, as in its model's ``moe_layers``.
    """

    spec: MoeLayer
    router: Any
    module: Any = None


def routed_runner(runner: Any, sinks: SinkBuffers, vllm_config: Any) -> RoutedLayer | str:
    """The layer of a runner and its slot, or why it can't be counted."""
    from vllm.model_executor.layers.fused_moe.router.base_router import BaseRouter
    from vllm.model_executor.layers.fused_moe.router.zero_expert_router import ZeroExpertRouter

    slot = runner.router
    if is_monolithic(runner):
        reason = _why_no_ids(runner, vllm_config)
        if reason is not None:
            return reason
        slot = _slot_of_kernel(runner, sinks)
    elif not isinstance(slot, BaseRouter):
        return f"router {type(slot).__name__} has no callback"
    elif isinstance(slot, ZeroExpertRouter):
        return "ZeroExpertRouter reports its zero experts as expert 0"
    experts = int(runner.moe_config.num_logical_experts)
    return RoutedLayer(MoeLayer(int(runner.layer_id), experts, _top_k(runner)), slot, runner)


def what_routes(module: Any) -> Any:
    """What routes in an MoE module now: its kernel or its router, another object once vLLM has made it anew.

    It is cheap, for each step. A module that routes by itself has neither: AttributeError.
    """
    return monolithic_kernel(module) if is_monolithic(module) else module.router


def _top_k(runner: Any) -> int:
    if is_monolithic(runner):
        return int(monolithic_kernel(runner).moe_config.experts_per_token)
    return int(runner.router.top_k)


def _slot_of_kernel(runner: Any, sinks: SinkBuffers) -> SinkSlot | KernelSlot | None:
    """The slot of a monolithic kernel that can write its ids; None if this vLLM has no slot for them."""
    experts, kernel = getattr(runner, "routed_experts", None), monolithic_kernel(runner)
    if hasattr(experts, "routing_sink") and sink_class() is not None:
        return SinkSlot(experts, kernel.moe_config, sinks, int(runner.layer_id))
    if hasattr(kernel, "set_capture_fn") and hasattr(kernel, "routing_replay_capture_fn"):
        return KernelSlot(kernel, sinks, int(runner.layer_id))
    return None


def _why_no_ids(runner: Any, vllm_config: Any) -> str | None:
    """Why the ids of a monolithic kernel can't be had; None if they can."""
    kernel = monolithic_kernel(runner)
    what = f"monolithic kernel {type(kernel).__name__}: it routes inside and never calls the router"
    can_write_ids = getattr(kernel, "supports_routing_replay_capture", None)  # a layer may have no kernel
    if can_write_ids is None or not can_write_ids():
        return f"{what}; it can't write its ids to a routing sink{_modular_backends(kernel)}"
    if _slot_of_kernel(runner, SinkBuffers()) is None:
        return f"{what}; this vLLM has no routing sink"
    if vllm_config.parallel_config.enable_eplb:
        return f"{what}; under EPLB its ids may be those of physical experts"
    return None


def _modular_backends(kernel: Any) -> str:
    """What would have the router called, for kernels of which it is known (gpt-oss on Hopper with DP=1)."""
    if type(kernel).__name__ == "OAITritonMxfp4ExpertsMonolithic":
        return "; --moe-backend marlin and --moe-backend flashinfer_cutlass are modular and would be counted"
    return "; a modular --moe-backend would be counted"


def is_capture_source(module: torch.nn.Module) -> bool:
    """Whether a module routes by itself and hands its ids over."""
    found = source_class()
    return found is not None and isinstance(module, found)


def routed_source(source: Any) -> RoutedLayer | str:
    """The layer of a module that routes by itself, or why it can't be counted."""
    experts, top_k = getattr(source, "num_logical_experts", None), getattr(source, "top_k", None)
    if not isinstance(experts, int) or not isinstance(top_k, int):
        return f"{type(source).__name__} routes by itself and doesn't say over how many experts"
    return RoutedLayer(MoeLayer(int(source.layer_id), experts, top_k), SourceSlot(source), source)
