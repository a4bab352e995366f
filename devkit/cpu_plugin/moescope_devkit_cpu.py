"""What vLLM lacks to run data and expert parallelism on CPUs, supplied as a vLLM general plugin.

Test support for moescope's demo, its end-to-end tests and `make matrix`: no shipped package knows of it, and
capture never depends on it. Without it, on CPUs:

- ``--data-parallel-size 2`` dies in the first forward pass: MoE layers exchange tokens of unequal numbers
  between ranks with ``all_gatherv`` and ``reduce_scatterv``, which the CPU communicator does not have;
- ``--enable-expert-parallel`` dies in the CPU expert kernel, which ignores the expert map and indexes its
  weights with ids of experts that live on another rank;
- ``--enable-eplb`` is refused, and the CPU's router, runner and communicator have no part in it;
- with ``--pipeline-parallel-size 2`` and eager mode the second stage dies in the first forward pass;
- before vLLM 0.30 the CPU kernel routes inside and never calls the router.

All of this is mended here for correctness, not for speed. :data:`MENDED` says what of it in which release.
The router and its callbacks, which moescope observes, are vLLM's own and untouched (before 0.30 the CPU's
routing function stands in for its CUDA kernel). To start in ten seconds rather than thirty, vLLM's processes
are forked here.

vLLM calls :func:`install` in each of its processes, possibly more than once in one, and lets its exceptions
through: installing twice changes nothing, and a version that was never tried is an error, not a guess.
"""

from __future__ import annotations

import functools
import importlib.metadata
import inspect
import os
from collections.abc import Callable, Sequence
from typing import Any, Final

import torch
import torch.distributed as dist
from moescope_devkit_cpu_routing import route_in_the_router

COLLECTIVES, LOAD_BALANCER, PIPELINE, ROUTING = "collectives", "load balancer", "pipeline", "routing"
MENDED: Final[dict[tuple[int, int], tuple[str, ...]]] = {
    **{(0, minor): (ROUTING,) for minor in range(20, 30)},
    (0, 30): (COLLECTIVES,),
    (0, 31): (COLLECTIVES,),
    (0, 32): (COLLECTIVES, LOAD_BALANCER, PIPELINE),
}
"""What is mended in each release series of vLLM (major, minor); another is an error."""
_MARK: Final = "_moescope_devkit"


class UnsupportedVllmError(RuntimeError):
    """This vLLM is not one whose gaps this plugin knows."""


def install() -> None:
    """Mend this process's vLLM, unless it runs on another platform than CPUs or was mended before.

    Raises:
        UnsupportedVllmError: another version, or its insides are not as expected.
    """
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return
    version = importlib.metadata.version("vllm")
    mended = MENDED.get(tuple(int(part) for part in version.split(".")[:2]))  # type: ignore[arg-type]
    if mended is None:
        raise UnsupportedVllmError(
            f"the devkit's CPU plugin was not tried with vLLM {version}: check what that version lacks, then "
            f"add its row to MENDED"
        )
    if COLLECTIVES in mended:
        from vllm.distributed.device_communicators.base_device_communicator import DeviceCommunicatorBase
        from vllm.distributed.device_communicators.cpu_communicator import CpuCommunicator
        from vllm.model_executor.layers.fused_moe.experts.cpu_moe import CPUUnquantizedExperts

        add_collectives(CpuCommunicator, DeviceCommunicatorBase)
        add_expert_map(CPUUnquantizedExperts)
    if LOAD_BALANCER in mended:
        add_load_balancer()
    if PIPELINE in mended:
        add_pipeline()
    if ROUTING in mended:
        route_in_the_router()
    from vllm.platforms.cpu import CpuPlatform

    fork_engines(CpuPlatform)


def fork_engines(platform: type[Any]) -> None:
    """Start vLLM's processes by forking, as it does on GPUs, rather than by spawning, as it does on CPUs.

    A spawned process imports torch and vLLM anew, which is most of a start's time on few cores.
    """
    original: Callable[[Any], None] = platform.check_and_update_config
    if getattr(original, _MARK, False):
        return

    @functools.wraps(original)
    def check_and_update_config(vllm_config: Any) -> None:
        original(vllm_config)  # sets the variable to spawn
        os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "fork"

    setattr(check_and_update_config, _MARK, True)
    platform.check_and_update_config = staticmethod(check_and_update_config)


def add_load_balancer() -> None:
    """Let ``--enable-eplb`` run: its configuration, its map of logical to physical experts, its set-up."""
    from vllm.config import parallel
    from vllm.model_executor.layers.fused_moe.router import base_router
    from vllm.v1.worker.cpu_model_runner import CPUModelRunner

    if isinstance(parallel.current_platform, _LoadBalancing):
        return
    parallel.current_platform = _LoadBalancing(parallel.current_platform)
    setattr(map_to_physical, "__wrapped__", base_router.eplb_map_to_physical_and_record)  # noqa: B010
    base_router.eplb_map_to_physical_and_record = map_to_physical
    torch.accelerator.current_stream = _NothingEnqueued  # type: ignore[assignment]
    load_model: Callable[..., None] = CPUModelRunner.load_model

    @functools.wraps(load_model)
    def load_and_register(runner: Any, *args: Any, **kwargs: Any) -> None:
        from vllm.distributed.eplb.eplb_state import EplbState
        from vllm.model_executor.models.interfaces import get_mixture_of_experts_model

        load_model(runner, *args, **kwargs)
        if runner.parallel_config.enable_eplb:
            if not hasattr(torch.Event, "elapsed_time"):  # vLLM's stand-in on CPUs lacks it
                setattr(torch.Event, "elapsed_time", lambda *_: 0.0)  # noqa: B010 - for mypy
            runner._moe_model = get_mixture_of_experts_model(runner.model)
            runner.eplb_state = EplbState(runner.parallel_config, runner.device)
            runner.eplb_state.add_model(runner._moe_model, runner.model_config)

    CPUModelRunner.load_model = load_and_register


def add_pipeline() -> None:
    """Give later pipeline stages the buffers that vLLM makes in a warm-up, which eager CPUs leave out."""
    from vllm.distributed.parallel_state import get_pp_group
    from vllm.v1.worker.cpu_model_runner import CPUModelRunner

    load_model: Callable[..., None] = CPUModelRunner.load_model
    if getattr(load_model, _MARK, False):
        return

    @functools.wraps(load_model)
    def load_with_buffers(runner: Any, *args: Any, **kwargs: Any) -> None:
        load_model(runner, *args, **kwargs)
        if not get_pp_group().is_first_rank:
            runner.intermediate_tensors = runner.model.make_empty_intermediate_tensors(
                batch_size=runner.max_num_tokens, dtype=runner.model_config.dtype, device=runner.device
            )

    setattr(load_with_buffers, _MARK, True)
    CPUModelRunner.load_model = load_with_buffers


class _LoadBalancing:
    """The platform as vLLM's parallel configuration sees it: one that has a load balancer."""

    def __init__(self, platform: Any) -> None:
        self._platform = platform

    def is_cuda_alike(self) -> bool:
        return True

    def __getattr__(self, name: str) -> Any:
        return getattr(self._platform, name)


class _NothingEnqueued:
    """The current stream of a device that runs everything at once."""

    def __init__(self, *device: Any) -> None:
        """Takes any device."""

    def synchronize(self) -> None:
        """Nothing to wait for."""


def map_to_physical(
    topk_ids: torch.Tensor,
    expert_load_view: torch.Tensor,
    logical_to_physical_map: torch.Tensor,
    logical_replica_count: torch.Tensor,
    record_enabled: torch.Tensor,
    num_unpadded_tokens: torch.Tensor | None = None,
) -> torch.Tensor:
    """Do what vLLM's Triton kernel of this name does: a token takes the replica that its row's hash chooses.

    Args:
        topk_ids: logical experts [tokens, top_k].
        expert_load_view: int32 [physical experts], added to in place.
        logical_to_physical_map: [logical experts, replicas].
        logical_replica_count: [logical experts].
    """
    rows = torch.arange(len(topk_ids)).unsqueeze(1)
    replica = (rows * 2654435769 & 0xFFFFFFFF) % logical_replica_count[topk_ids.long()].clamp(min=1)
    physical = logical_to_physical_map[topk_ids.long(), replica]
    if record_enabled:
        true = len(topk_ids) if num_unpadded_tokens is None else int(num_unpadded_tokens)
        counts = torch.bincount(physical[:true].flatten(), minlength=len(expert_load_view))
        expert_load_view.add_(counts.to(expert_load_view.dtype))
    return physical.to(topk_ids.dtype)


def add_collectives(communicator: type[Any], base: type[Any]) -> None:
    """Give the communicator ``all_gatherv`` and ``reduce_scatterv``, where it only inherits the base's."""
    for name, replacement in (("all_gatherv", _all_gatherv), ("reduce_scatterv", _reduce_scatterv)):
        expected = list(inspect.signature(replacement).parameters)
        found = list(inspect.signature(getattr(base, name)).parameters)
        if found != expected:
            raise UnsupportedVllmError(f"{name} takes {found} in this vLLM, expected {expected}")
        if name not in vars(communicator):
            setattr(communicator, name, replacement)


def add_expert_map(experts: type[Any]) -> None:
    """Make the CPU expert kernel's ``apply`` honour its ``expert_map``.

    Ids become ids among this rank's experts. A slot whose expert lives elsewhere goes to local expert 0 with
    weight 0, which adds nothing: the rank that holds the expert computes it.
    """
    original: Callable[..., None] = experts.apply
    if getattr(original, _MARK, False):
        return
    parameters = inspect.signature(original).parameters
    missing = {"expert_map", "topk_ids", "topk_weights"} - set(parameters)
    if missing:
        raise UnsupportedVllmError(f"{experts.__name__}.apply has no {sorted(missing)} in this vLLM")

    @functools.wraps(original)
    def apply(self: Any, **arguments: Any) -> None:  # vLLM passes all of them by keyword
        expert_map = arguments["expert_map"]
        if expert_map is not None:
            arguments["topk_ids"], arguments["topk_weights"] = to_local_experts(
                arguments["topk_ids"], arguments["topk_weights"], expert_map
            )
        return original(self, **arguments)

    setattr(apply, _MARK, True)
    experts.apply = apply


def to_local_experts(
    ids: torch.Tensor, weights: torch.Tensor, expert_map: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and weights for this rank's kernel, as new tensors: the router's own stay as they are.

    Args:
        ids: [tokens, top_k], ids among all experts.
        weights: [tokens, top_k].
        expert_map: [experts], id among this rank's experts, or -1.
    """
    local = expert_map[ids.long()]
    elsewhere = local < 0
    return local.masked_fill(elsewhere, 0).to(ids.dtype), weights.masked_fill(elsewhere, 0)


def _all_gatherv(
    self: Any,
    input_: torch.Tensor | list[torch.Tensor],
    dim: int = 0,
    sizes: list[int] | None = None,
) -> torch.Tensor | list[torch.Tensor]:
    """The ranks' tensors, ``sizes`` long along ``dim`` (0), concatenated in the order of ranks."""
    if dim != 0:
        raise NotImplementedError(f"all_gatherv along dim {dim}")
    if isinstance(input_, torch.Tensor):
        return gather_rows([input_], sizes, self.device_group)[0]
    return gather_rows(input_, sizes, self.device_group)


def _reduce_scatterv(
    self: Any, input_: torch.Tensor, dim: int = -1, sizes: list[int] | None = None
) -> torch.Tensor:
    """This rank's span, ``sizes[rank]`` long along ``dim`` (0), of the sum of the ranks' tensors."""
    if dim != 0:
        raise NotImplementedError(f"reduce_scatterv along dim {dim}")
    return reduce_rows(input_, sizes, self.device_group)


def gather_rows(
    tensors: Sequence[torch.Tensor], sizes: Sequence[int] | None, group: dist.ProcessGroup
) -> list[torch.Tensor]:
    """Concatenate all ranks' rows, for several tensors in one exchange.

    It is done point to point: gloo's collectives take equal sizes only, and take three times as long.
    """
    rank, ranks = group.rank(), group.size()
    sizes = [len(tensors[0])] * ranks if sizes is None else sizes
    mine = [tensor.contiguous() for tensor in tensors]
    parts = [
        [
            tensor if peer == rank else tensor.new_empty((sizes[peer], *tensor.shape[1:]))
            for peer in range(ranks)
        ]
        for tensor in mine
    ]
    peers = [peer for peer in range(ranks) if peer != rank]
    exchange(
        [(tensor, peer) for tensor in mine for peer in peers],
        [(part[peer], peer) for part in parts for peer in peers],
        group,
    )
    return [torch.cat(part) for part in parts]


def reduce_rows(tensor: torch.Tensor, sizes: Sequence[int] | None, group: dist.ProcessGroup) -> torch.Tensor:
    """Sum the ranks' tensors, in the order of ranks on every rank, and keep this rank's span of rows."""
    rank, ranks = group.rank(), group.size()
    sizes = [len(tensor) // ranks] * ranks if sizes is None else sizes
    spans = list(torch.split(tensor.contiguous(), list(sizes)))
    received = [spans[rank] if peer == rank else torch.empty_like(spans[rank]) for peer in range(ranks)]
    peers = [peer for peer in range(ranks) if peer != rank]
    exchange([(spans[peer], peer) for peer in peers], [(received[peer], peer) for peer in peers], group)
    return torch.stack(received).sum(0)


def exchange(
    sends: Sequence[tuple[torch.Tensor, int]],
    receives: Sequence[tuple[torch.Tensor, int]],
    group: dist.ProcessGroup,
) -> None:
    """Send and receive (tensor, rank in group) pairs, all at once; each pair of ranks keeps its own order."""
    works = [dist.isend(part, group=group, group_dst=peer) for part, peer in sends if part.numel()]
    works += [dist.irecv(part, group=group, group_src=peer) for part, peer in receives if part.numel()]
    for work in works:
        if work is not None:
            work.wait()
