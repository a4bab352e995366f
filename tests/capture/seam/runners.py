"""Modules that route, as far as a survey looks at them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from vllm.model_executor.layers.fused_moe.layer import MoERunner
from vllm.model_executor.layers.fused_moe.router.cpu_router import CPURouter


class TrtLlmLikeKernel:
    """Stands for a kernel that can't run here: it routes inside."""


def runner(
    layer: int,
    experts: int = 8,
    *,
    router: Any = None,
    monolithic: bool = False,
    kernel: Any = None,
    **placement: Any,
) -> Any:
    """A real `MoERunner` without the weights and kernels that its constructor would make."""
    made = MoERunner.__new__(MoERunner)
    torch.nn.Module.__init__(made)
    made.layer_name = f"model.layers.{layer}.mlp.experts"
    made.moe_config = SimpleNamespace(num_logical_experts=experts)
    made.router = router or CPURouter(top_k=2, global_num_experts=experts)
    holder = SimpleNamespace(impl=SimpleNamespace(fused_experts=kernel or TrtLlmLikeKernel()))
    # Modules, as those of vLLM are: torch finds them in another way than what else a module has.
    made.routed_experts, method = torch.nn.Module(), torch.nn.Module()
    method.is_monolithic, method.moe_kernel = monolithic, holder
    made.routed_experts.quant_method = method
    made.routed_experts.expert_map_manager = SimpleNamespace(
        **({"ep_size": 2, "placement_strategy": "linear"} | placement)
    )
    return made


def in_layers(*layers: torch.nn.Module | None) -> torch.nn.Module:
    """A model whose decoder layers hold these modules as ``mlp``; None: a layer of another pipeline stage."""
    from vllm.model_executor.models.utils import PPMissingLayer

    def layer(mlp: torch.nn.Module | None) -> torch.nn.Module:
        if mlp is None:
            return PPMissingLayer()
        made = torch.nn.Module()
        made.mlp = mlp
        return made

    model, inner = torch.nn.Module(), torch.nn.Module()
    inner.layers = torch.nn.ModuleList(map(layer, layers))
    model.model = inner
    return model
