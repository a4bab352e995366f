"""vLLM's own TRT-LLM kernel classes on a CPU: only FlashInfer's function is emulated, as far as it routes.

The classes, their driver, their exchange of tokens and the sink are vLLM's. FlashInfer's function gets the
sink's rows as ``routing_replay_out`` and writes each token's logical experts to them.
"""

from __future__ import annotations

import enum
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from vllm.model_executor.layers.fused_moe import modular_kernel as mk
from vllm.model_executor.layers.fused_moe.activation import MoEActivation
from vllm.model_executor.layers.fused_moe.config import (
    FUSED_MOE_UNQUANTIZED_CONFIG,
    FusedMoEConfig,
    FusedMoEParallelConfig,
    RoutingMethodType,
)
from vllm.model_executor.layers.fused_moe.experts.trtllm_bf16_moe import TrtLlmBf16ExpertsMonolithic
from vllm.model_executor.layers.fused_moe.layer import MoERunner
from vllm.model_executor.layers.fused_moe.prepare_finalize import naive_dp_ep
from vllm.model_executor.layers.fused_moe.prepare_finalize.no_dp_ep import (
    MoEPrepareAndFinalizeNoDPEPMonolithic,
)

EXPERTS, TOP_K, HIDDEN, MOST = 8, 2, 64, 16
CPU = torch.device("cpu")
WEIGHTS = torch.zeros(EXPERTS, 2, 128, 64)
"""In the kernel's layout; nothing reads them."""


def trtllm_bf16_moe(**given: Any) -> torch.Tensor:
    """What FlashInfer's function does for routing: it writes the first rows, int16, if it is given any."""
    out, hidden = given["routing_replay_out"], given["hidden_states"]
    if out is not None:
        assert out.dtype is torch.int16
        assert len(out) >= len(hidden), "the kernel would write beyond the buffer"
        out[: len(hidden)] = given["routing_logits"].topk(given["top_k"], dim=-1).indices.to(torch.int16)
    return torch.zeros_like(hidden)


def emulate_flashinfer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let vLLM's kernel classes find FlashInfer: they import it within a forward pass."""
    names = "Gelu Relu Silu Swiglu Geglu SwigluBias Relu2 Identity"
    package, part, core = (ModuleType(f"flashinfer{name}") for name in ("", ".fused_moe", ".fused_moe.core"))
    kinds = enum.IntEnum("ActivationType", names, start=0)  # type: ignore[misc]
    vars(part).update(trtllm_bf16_moe=trtllm_bf16_moe, ActivationType=kinds, core=core)
    vars(core).update(ActivationType=kinds)
    vars(package).update(fused_moe=part)
    for module in (package, part, core):
        monkeypatch.setitem(sys.modules, module.__name__, module)


def moe_config(dp_size: int = 1, dp_rank: int = 0) -> FusedMoEConfig:
    """vLLM's configuration of a layer, for one rank or for ranks that exchange tokens by allgather."""
    parallel = FusedMoEParallelConfig(
        tp_size=1,
        tp_rank=0,
        pcp_size=1,
        pcp_rank=0,
        dp_size=dp_size,
        dp_rank=dp_rank,
        ep_size=dp_size,
        ep_rank=dp_rank,
        sp_size=1,
        use_ep=dp_size > 1,
        all2all_backend="allgather_reducescatter",
        enable_eplb=False,
    )
    return FusedMoEConfig(
        num_experts=EXPERTS,
        experts_per_token=TOP_K,
        hidden_dim=HIDDEN,
        intermediate_size=128,
        num_local_experts=EXPERTS // dp_size,
        num_logical_experts=EXPERTS,
        activation=MoEActivation.SILU,
        device=CPU,
        routing_method=RoutingMethodType.Renormalize,
        moe_parallel_config=parallel,
        in_dtype=torch.bfloat16,
        max_num_tokens=MOST,
    )


def kernel_of(config: FusedMoEConfig) -> mk.FusedMoEKernel:
    """vLLM's kernel: its exchange of tokens, and its class of the TRT-LLM kernel."""
    exchange: Any = (
        MoEPrepareAndFinalizeNoDPEPMonolithic()
        if config.moe_parallel_config.dp_size == 1
        else naive_dp_ep.MoEPrepareAndFinalizeNaiveDPEPMonolithic()
    )
    return mk.FusedMoEKernel(exchange, TrtLlmBf16ExpertsMonolithic(config, FUSED_MOE_UNQUANTIZED_CONFIG))


class Method:
    """The part of vLLM's quantised methods that runs a kernel."""

    def __init__(self, kernel: mk.FusedMoEKernel) -> None:
        self.moe_kernel = kernel

    @property
    def is_monolithic(self) -> bool:
        return self.moe_kernel.is_monolithic


def layer(number: int, config: FusedMoEConfig | None = None, router: Any = None) -> Any:
    """A layer of vLLM's with that kernel."""
    made = MoERunner.__new__(MoERunner)
    torch.nn.Module.__init__(made)
    made.layer_name = f"model.layers.{number}.mlp.experts"
    made.moe_config = config or moe_config()
    made.router = router
    made.routed_experts = SimpleNamespace(
        quant_method=Method(kernel_of(made.moe_config)),
        expert_map_manager=SimpleNamespace(ep_size=2, placement_strategy="linear"),
        routing_sink=None,
    )
    return made


def forward(module: Any, logits: torch.Tensor) -> None:
    """Run a layer as vLLM's quantised methods do, its router first where the kernel doesn't route."""
    experts = module.routed_experts
    if not experts.quant_method.is_monolithic:
        module.router.select_experts(torch.zeros(len(logits), 1), logits)
        return
    experts.quant_method.moe_kernel.apply_monolithic(
        torch.zeros(len(logits), HIDDEN, dtype=torch.bfloat16),
        WEIGHTS,
        WEIGHTS,
        logits,
        activation=MoEActivation.SILU,
        global_num_experts=EXPERTS,
        expert_map=None,
        apply_router_weight_on_input=False,
        routing_sink=experts.routing_sink,
    )


def counts_of(logits: torch.Tensor) -> list[int]:
    """Slots by expert of some tokens."""
    return torch.bincount(logits.topk(TOP_K).indices.flatten(), minlength=EXPERTS).tolist()
