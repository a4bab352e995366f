"""A stand-in for vLLM's mega MoE on CPUs: a block that shards its rows over TP and routes by itself.

DeepSeek-V4 and Kimi-K3 do so with ``--moe-backend deep_gemm_mega_moe``, which needs GPUs that few have: each
TP rank routes ``ceil(N / tp)`` rows of the batch, padded, and hands the ids to a module with vLLM's interface
of a capture source (`RoutedExpertsCaptureSource`), with DP metadata or without. Here Qwen3-MoE gets such
blocks, with the weights of its own checkpoints; each EP rank holds a span of the experts.

Test support: `install` replaces the class that the model makes its blocks of, in the process that calls it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch.nn.functional import pad, silu
from vllm.distributed import (
    get_ep_group,
    get_tensor_model_parallel_rank,
    get_tensor_model_parallel_world_size,
    tensor_model_parallel_all_gather,
    tensor_model_parallel_all_reduce,
)
from vllm.model_executor.layers.linear import ReplicatedLinear
from vllm.model_executor.models import qwen3_moe
from vllm.model_executor.models.utils import extract_layer_index


def install() -> None:
    """Have Qwen3-MoE models that are made from now on shard their MoE rows."""
    qwen3_moe.Qwen3MoeSparseMoeBlock = ShardedMoeBlock


def shard_rows(rows: torch.Tensor, tp_rank: int, tp_size: int) -> torch.Tensor:
    """This TP rank's part of rows [N, width]: [ceil(N / tp_size), width], zeros where it ends beyond N."""
    size = (rows.shape[0] + tp_size - 1) // tp_size
    whole = pad(rows, (0, 0, 0, size * tp_size - rows.shape[0]))
    return whole.view(tp_size, size, rows.shape[1])[tp_rank]


class ShardedExperts(torch.nn.Module):
    """The experts of one layer: takes this TP rank's shard and its ids, and returns the shard's outputs.

    Attributes:
        capture_fn: vLLM's callback slot of a capture source, called with the ids of each forward pass.
    """

    def __init__(self, config: Any, prefix: str) -> None:
        super().__init__()
        self.layer_id = extract_layer_index(prefix)
        self.capture_fn: Callable[[torch.Tensor], None] | None = None
        self.num_logical_experts = int(config.num_experts)
        self.top_k = int(config.num_experts_per_tok)
        ep = get_ep_group()
        self.num_local_experts = self.num_logical_experts // ep.world_size
        self._first = ep.rank_in_group * self.num_local_experts
        self._tp_rank = get_tensor_model_parallel_rank()
        width, hidden = config.moe_intermediate_size, config.hidden_size
        self.w13_weight = _parameter(self.num_local_experts, 2, width, hidden)
        self.w2_weight = _parameter(self.num_local_experts, hidden, width)

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> Iterator[str]:
        """Take this rank's experts of a checkpoint, whose names are such as ``3.gate_proj.weight``."""
        for name, weight in weights:
            expert, projection, _ = name.split(".")
            local = int(expert) - self._first
            if not 0 <= local < self.num_local_experts:
                continue
            if projection == "down_proj":
                self.w2_weight.data[local].copy_(weight)
                yield "w2_weight"
            else:
                self.w13_weight.data[local, ("gate_proj", "up_proj").index(projection)].copy_(weight)
                yield "w13_weight"

    def forward(self, shard: torch.Tensor, weights: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """Outputs [n, hidden] of the rows [n, hidden] that go to experts `ids` [n, top_k]."""
        if self.capture_fn is not None:
            self.capture_fn(ids)
        rows = tensor_model_parallel_all_gather(shard, 0)
        gates = torch.zeros(shard.shape[0], self.num_logical_experts, dtype=shard.dtype)
        gates = tensor_model_parallel_all_gather(gates.scatter(1, ids, weights), 0)
        mine = gates[:, self._first : self._first + self.num_local_experts]
        inner = torch.einsum("nh,esih->nesi", rows, self.w13_weight)
        outputs = torch.einsum("nei,ehi,ne->nh", silu(inner[:, :, 0]) * inner[:, :, 1], self.w2_weight, mine)
        summed = tensor_model_parallel_all_reduce(outputs)
        of_shard: torch.Tensor = summed.view(-1, shard.shape[0], shard.shape[1])[self._tp_rank]
        return of_shard


class ShardedMoeBlock(torch.nn.Module):
    """In place of ``Qwen3MoeSparseMoeBlock``: routes this TP rank's shard only; hidden states [N, hidden]."""

    def __init__(self, vllm_config: Any, prefix: str = "", **_: Any) -> None:
        super().__init__()
        config = vllm_config.model_config.hf_text_config
        self._tp_rank = get_tensor_model_parallel_rank()
        self._tp_size = get_tensor_model_parallel_world_size()
        self.gate = ReplicatedLinear(
            config.hidden_size, config.num_experts, bias=False, prefix=f"{prefix}.gate"
        )
        self.experts = ShardedExperts(config, f"{prefix}.experts")
        self.n_logical_experts = self.n_physical_experts = self.n_routed_experts = config.num_experts
        self.n_local_physical_experts = self.experts.num_local_experts
        self.n_redundant_experts = 0

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """The block's outputs for all rows, on every TP rank."""
        shard = shard_rows(hidden_states, self._tp_rank, self._tp_size)
        logits, _ = self.gate(shard)
        weights, ids = torch.topk(torch.softmax(logits, -1), self.experts.top_k, dim=-1)
        outputs = self.experts(shard, weights / weights.sum(-1, keepdim=True), ids)
        whole: torch.Tensor = tensor_model_parallel_all_gather(outputs, 0)
        return whole[: hidden_states.shape[0]]


def _parameter(*sizes: int) -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.empty(*sizes), requires_grad=False)
