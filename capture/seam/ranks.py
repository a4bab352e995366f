"""Which worker this is: its ranks, and what it says of itself in frames."""

from __future__ import annotations

from typing import Any

import msgspec

from moescope.capture.seam.identity import read_identity
from moescope.capture.seam.rows import Ranks
from moescope.capture.wire import Producer


def read_ranks(vllm_config: Any) -> Ranks:
    """This worker's data- and tensor-parallel ranks; call it once vLLM's groups exist."""
    from vllm.distributed.parallel_state import get_tp_group

    parallel = vllm_config.parallel_config
    tp = get_tp_group()
    return Ranks(parallel.data_parallel_rank, parallel.data_parallel_size, tp.rank_in_group, tp.world_size)


def read_producer(vllm_config: Any, server: str) -> Producer:
    """Who this worker is, for the frames it sends; call it once vLLM's groups exist."""
    return msgspec.convert(read_identity(vllm_config, server), Producer)


def steps_compare(vllm_config: Any) -> bool:
    """Whether the loads of single steps can be told by EP rank and joined over DP ranks.

    They can't under EPLB, which moves the experts; nor with an external launcher, whose runner makes dummy
    passes without asking the worker, so that the ranks would number their steps differently.
    """
    parallel = vllm_config.parallel_config
    return not parallel.enable_eplb and str(parallel.distributed_executor_backend) != "external_launcher"
