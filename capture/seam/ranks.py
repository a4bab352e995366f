"""Which worker this is: its ranks, and what it says of itself in frames."""

from __future__ import annotations

import os
import socket
from typing import Any

from moescope.capture.seam.rows import Ranks
from moescope.capture.seam.versions import moescope_version, vllm_version
from moescope.capture.wire import Producer


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


def why_no_steps(vllm_config: Any) -> str | None:
    """Why the loads of single steps can't be told by EP rank and joined over DP ranks, or None."""
    parallel = vllm_config.parallel_config
    if parallel.enable_eplb:
        return "EPLB moves the experts from step to step"
    if str(getattr(parallel, "distributed_executor_backend", None)) == "external_launcher":
        return (
            "an external launcher makes dummy passes without the worker: ranks would number steps differently"
        )
    return None
