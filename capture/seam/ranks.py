"""Which worker this is: its ranks, and what it says of itself in frames."""

from __future__ import annotations

from typing import Any

import msgspec

from moescope.capture.seam.identity import read_identity
from moescope.capture.seam.rows import Ranks
from moescope.capture.settings.environment import CaptureSettings
from moescope.capture.wire import Producer


def read_ranks(vllm_config: Any) -> Ranks:
    """This worker's data- and tensor-parallel ranks; call it once vLLM's groups exist."""
    from vllm.distributed.parallel_state import get_tp_group

    parallel = vllm_config.parallel_config
    tp = get_tp_group()
    return Ranks(parallel.data_parallel_rank, parallel.data_parallel_size, tp.rank_in_group, tp.world_size)


def read_producer(vllm_config: Any, settings: CaptureSettings) -> Producer:
    """Who this worker is, for the frames it sends; call it once vLLM's groups exist."""
    return msgspec.convert(read_identity(vllm_config, settings), Producer)


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
