"""What capture reads off vLLM's model, configuration and groups: MoE layers, ranks, placement, step sizes."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from moescope.capture.seam.rows import Ranks, StepRows
from moescope.capture.seam.slots import SinkBuffers, SinkSlot, SourceSlot
from moescope.capture.seam.versions import installed_row, moescope_version, vllm_version
from moescope.capture.wire import MoeLayer, Placement, PlacementTable, Producer, UncoveredLayer, pack_ids

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


@dataclass(frozen=True, slots=True)
class MoeSurvey:
    """The MoE layers of a model: those that can be counted and those that can't, in rising order of layer."""

    routed: tuple[RoutedLayer, ...]
    uncovered: tuple[UncoveredLayer, ...]
    placement: Placement | None


def read_ranks(vllm_config: Any) -> Ranks:
    """This worker's data- and tensor-parallel ranks; call it once vLLM's groups exist."""
    from vllm.distributed.parallel_state import get_tp_group

    parallel = vllm_config.parallel_config
    tp = get_tp_group()
    return Ranks(parallel.data_parallel_rank, parallel.data_parallel_size, tp.rank_in_group, tp.world_size)


def read_producer(vllm_config: Any, server: str) -> Producer:
    """Who this worker is, for the frames it sends; call it once vLLM's groups exist."""
    from vllm.distributed.parallel_state import get_ep_group, get_pp_group

    ranks, pp = read_ranks(vllm_config), get_pp_group()
    ep = get_ep_group() if vllm_config.parallel_config.enable_expert_parallel else None
    return Producer(
        server=server,
        model=str(vllm_config.model_config.served_model_name)[:256],
        dp_rank=ranks.dp_rank,
        dp_size=ranks.dp_size,
        tp_rank=ranks.tp_rank,
        tp_size=ranks.tp_size,
        pp_rank=pp.rank_in_group,
        pp_size=pp.world_size,
        ep_rank=ep.rank_in_group if ep else 0,
        ep_size=ep.world_size if ep else 1,
        host=socket.gethostname(),
        pid=os.getpid(),
        vllm_version=vllm_version(),
        moescope_version=moescope_version(),
    )


def steps_compare(vllm_config: Any) -> bool:
    """Whether the loads of single steps can be told by EP rank and joined over DP ranks.

    They can't under EPLB, which moves the experts; nor with an external launcher, whose runner makes dummy
    passes without asking the worker, so that the ranks would number their steps differently.
    """
    parallel = vllm_config.parallel_config
    return not parallel.enable_eplb and str(parallel.distributed_executor_backend) != "external_launcher"


def step_rows() -> StepRows:
    """The sizes of the step under way, from vLLM's forward context; reads no tensor on a device."""
    from vllm.forward_context import get_forward_context

    metadata = get_forward_context().dp_metadata
    if metadata is None:
        return StepRows(None, None)
    return StepRows(metadata.num_tokens_across_dp_cpu.tolist(), metadata.local_sizes)


def survey_model(model: torch.nn.Module, vllm_config: Any) -> MoeSurvey:
    """Find the MoE layers of the target model. A draft model is a module of its own and is not searched."""
    from vllm.model_executor.layers.fused_moe.layer import MoERunner

    whole_model_reason = _unsupported(vllm_config)
    routed: dict[int, RoutedLayer] = {}
    uncovered: dict[int, str] = {}
    sinks = SinkBuffers()
    module: Any
    for module in model.modules():
        if isinstance(module, MoERunner):
            found = _routed_runner(module, sinks, vllm_config)
        elif _is_capture_source(module):
            found = _routed_source(module)
        else:
            continue
        layer = int(module.layer_id)
        if whole_model_reason is not None:
            found = whole_model_reason
        elif layer in routed:
            found = "two MoE blocks share this layer's index"
            del routed[layer]
        if isinstance(found, str):
            uncovered[layer] = found
        elif layer not in uncovered:
            routed[layer] = found
    covered = tuple(routed[layer] for layer in sorted(routed))
    return MoeSurvey(
        routed=covered,
        uncovered=tuple(UncoveredLayer(layer, uncovered[layer]) for layer in sorted(uncovered)),
        placement=_read_placement(covered, vllm_config),
    )


def _unsupported(vllm_config: Any) -> str | None:
    """Why no layer of this server can be counted exactly; None if layers can."""
    parallel = vllm_config.parallel_config
    if parallel.use_ubatching:
        return "micro-batching (DBO) is not supported: the callback sees slices of a step"
    if parallel.prefill_context_parallel_size > 1:
        return "prefill context parallelism is not supported: rows are split over its ranks"
    drafts = vllm_config.speculative_config
    if drafts is not None and (
        drafts.method == "ngram_gpu" or getattr(drafts, "enable_adaptive_verification", False)
    ):
        # vLLM drops drafts after a step has begun: padding would count, and tokens get phases of other rows.
        return "drafts that vLLM cuts within a step (ngram_gpu, adaptive verification) are not supported"
    return None


def _routed_runner(runner: Any, sinks: SinkBuffers, vllm_config: Any) -> RoutedLayer | str:
    """The layer of a runner and its slot, or why it can't be counted."""
    from vllm.model_executor.layers.fused_moe.router.base_router import BaseRouter
    from vllm.model_executor.layers.fused_moe.router.zero_expert_router import ZeroExpertRouter

    slot = runner.router
    if runner.is_monolithic:
        reason = _why_no_sink(runner, vllm_config)
        if reason is not None:
            return reason
        slot = SinkSlot(runner.routed_experts, _monolithic_kernel(runner).moe_config, sinks)
    elif not isinstance(slot, BaseRouter):
        return f"router {type(slot).__name__} has no callback"
    elif isinstance(slot, ZeroExpertRouter):
        return "ZeroExpertRouter reports its zero experts as expert 0"
    experts = int(runner.moe_config.num_logical_experts)
    return RoutedLayer(MoeLayer(int(runner.layer_id), experts, _top_k(runner)), slot, runner)


def _top_k(runner: Any) -> int:
    if runner.is_monolithic:
        return int(_monolithic_kernel(runner).moe_config.experts_per_token)
    return int(runner.router.top_k)


def _monolithic_kernel(runner: Any) -> Any:
    kernel = getattr(getattr(runner.routed_experts, "quant_method", None), "moe_kernel", None)
    return getattr(getattr(kernel, "impl", None), "fused_experts", None)


def _why_no_sink(runner: Any, vllm_config: Any) -> str | None:
    """Why the ids of a monolithic kernel can't be had; None if they can."""
    kernel = _monolithic_kernel(runner)
    what = f"monolithic kernel {type(kernel).__name__}: it routes inside and never calls the router"
    row = installed_row()
    if row is not None and not row.routing_sinks:
        return f"{what}; this vLLM has no routing sink"
    can_write_ids = getattr(kernel, "supports_routing_replay_capture", None)  # a layer may have no kernel
    if can_write_ids is None or not can_write_ids():
        return f"{what}; it can't write its ids to a routing sink"
    if vllm_config.parallel_config.enable_eplb:
        return f"{what}; under EPLB its ids may be those of physical experts"
    return None


def _is_capture_source(module: torch.nn.Module) -> bool:
    row = installed_row()
    if row is not None and not row.capture_sources:
        return False
    from vllm.model_executor.layers.fused_moe.routed_experts_capturer import RoutedExpertsCaptureSource

    return isinstance(module, RoutedExpertsCaptureSource)


def _routed_source(source: Any) -> RoutedLayer | str:
    """The layer of a module that routes by itself, or why it can't be counted."""
    experts, top_k = getattr(source, "num_logical_experts", None), getattr(source, "top_k", None)
    if not isinstance(experts, int) or not isinstance(top_k, int):
        return f"{type(source).__name__} routes by itself and doesn't say over how many experts"
    return RoutedLayer(MoeLayer(int(source.layer_id), experts, top_k), SourceSlot(source), source)


def _read_placement(routed: Sequence[RoutedLayer], vllm_config: Any) -> Placement | None:
    """Where the experts are; None without expert parallelism, and under EPLB, which moves them."""
    parallel = vllm_config.parallel_config
    if not routed or not parallel.enable_expert_parallel or parallel.enable_eplb:
        return None
    tables: list[PlacementTable] = []
    table_of_layer: list[int] = []
    for layer in routed:
        manager = getattr(layer.module, "expert_map_manager", None)
        if manager is None:  # a module that routes by itself holds a span of experts
            table = _span_table(layer.spec.num_experts, int(layer.module.num_local_experts))
        else:
            table = _placement_table(layer.spec.num_experts, manager)
        if table not in tables:
            tables.append(table)
        table_of_layer.append(tables.index(table))
    return Placement(version=0, tables=tables, table_of_layer=table_of_layer)


def _span_table(num_experts: int, num_local: int) -> PlacementTable:
    """Each EP rank holds the next `num_local` experts."""
    logical = range(num_experts)
    return PlacementTable(pack_ids(list(logical)), pack_ids([expert // num_local for expert in logical]))


def _placement_table(num_experts: int, manager: Any) -> PlacementTable:
    """Ask vLLM's own function, for each EP rank, which logical experts it holds."""
    from vllm.model_executor.layers.fused_moe.expert_map_manager import determine_expert_map

    logical: list[int] = []
    ep_ranks: list[int] = []
    for ep_rank in range(manager.ep_size):
        _, expert_map, _ = determine_expert_map(
            ep_size=manager.ep_size,
            ep_rank=ep_rank,
            global_num_experts=num_experts,
            expert_placement_strategy=manager.placement_strategy,
        )
        held = range(num_experts) if expert_map is None else (expert_map >= 0).nonzero().flatten().tolist()
        logical.extend(held)
        ep_ranks.extend([ep_rank] * len(held))
    return PlacementTable(pack_ids(logical), pack_ids(ep_ranks))
