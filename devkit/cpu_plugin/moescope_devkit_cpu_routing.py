"""Sends the CPU's experts of vLLM before 0.30 through vLLM's own router, as every other device's go.

There the CPU kernel routes inside (it is monolithic) and never calls the router, so moescope can't see what
it chose, and rightly says that such layers are not covered. Here the method says that it is modular: then
vLLM's runner asks the router first, whose callbacks run, and hands its choice to the method. The method runs
the same kernel with that choice in place of the kernel's own.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import torch

_LAYERS: Final = "vllm.model_executor.layers.fused_moe"
_MARK: Final = "_moescope_devkit"

Choice = tuple[torch.Tensor, torch.Tensor]


class _Kernel:
    """The CPU kernel's module: its function for routing gives the router's choice while the kernel runs."""

    def __init__(self) -> None:
        name = f"{_LAYERS}.cpu_fused_moe"  # up to 0.27
        if importlib.util.find_spec(name) is None:
            name = f"{_LAYERS}.experts.cpu_moe"
        module = importlib.import_module(name)
        self.route: Any = module.select_experts
        if hasattr(module, "CPUFusedMOE"):
            _allow_float32(module.CPUFusedMOE)
        self._chosen: Choice | None = None
        setattr(module, "select_experts", self._select_experts)  # noqa: B010 - for mypy

    @property
    def runs(self) -> bool:
        return self._chosen is not None

    @contextmanager
    def given(self, choice: Choice) -> Iterator[None]:
        self._chosen = choice
        try:
            yield
        finally:
            self._chosen = None

    def _select_experts(self, *args: Any, **kwargs: Any) -> Choice:
        choice: Choice = self.route(*args, **kwargs) if self._chosen is None else self._chosen
        return choice


def _allow_float32(experts: Any) -> None:
    """Let float32 weights take the kernel of CPUs without AMX, which 0.27 refuses where there is AMX."""
    check = experts.check_grouped_gemm

    def check_without_amx(self: Any, layer: Any) -> Any:
        has_amx = torch.cpu._is_amx_tile_supported
        if layer.w13_weight.dtype == torch.float32:
            torch.cpu._is_amx_tile_supported = lambda: False
        try:
            return check(self, layer)
        finally:
            torch.cpu._is_amx_tile_supported = has_amx

    experts.check_grouped_gemm = check_without_amx


def route_in_the_router() -> None:
    """Mend this process's vLLM; a second call changes nothing."""
    method: Any = importlib.import_module(f"{_LAYERS}.unquantized_fused_moe_method").UnquantizedFusedMoEMethod
    router: Any = importlib.import_module(f"{_LAYERS}.router.fused_topk_router").FusedTopKRouter
    if hasattr(method, _MARK):
        return
    kernel = _Kernel()

    def compute_routing(self: Any, hidden_states: Any, router_logits: Any, *_: Any, **__: Any) -> Choice:
        # vLLM's own asks a CUDA kernel.
        choice: Choice = kernel.route(
            hidden_states=hidden_states,
            router_logits=router_logits,
            top_k=self.top_k,
            use_grouped_topk=False,
            renormalize=self.renormalize,
        )
        return choice

    def apply(
        self: Any, layer: Any, x: torch.Tensor, topk_weights: torch.Tensor, topk_ids: torch.Tensor, **_: Any
    ) -> Any:
        with kernel.given((topk_weights, topk_ids)):
            return self.apply_monolithic(layer=layer, x=x, router_logits=topk_weights)

    router._compute_routing = compute_routing
    method.apply = apply
    method.is_monolithic = property(lambda _: kernel.runs)
    method.supports_internal_mk = property(lambda _: True)  # else vLLM makes a modular kernel for it
    setattr(method, _MARK, True)
