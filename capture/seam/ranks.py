"""Which worker this is: its ranks, and what it says of itself in frames."""

from __future__ import annotations

from typing import Any

import msgspec

from moescope.capture.seam.identity import read_identity, read_sizes_and_ranks
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


def resized(producer: Producer, vllm_config: Any) -> Producer:
    """Who this worker is now: elastic expert parallelism changes the numbers of DP and EP ranks as it serves.

    Raises:
        LookupError: vLLM gave this worker another rank, so that its totals would become another one's.
    """
    found = msgspec.structs.replace(producer, **read_sizes_and_ranks(vllm_config))
    if found.key != producer.key:
        raise LookupError(f"vLLM made DP rank {found.dp_rank} of DP rank {producer.dp_rank} while it serves")
    return found


def why_no_steps(vllm_config: Any) -> str | None:
    """Why the loads of single steps can't be joined over DP ranks, or None."""
    parallel = vllm_config.parallel_config
    if str(getattr(parallel, "distributed_executor_backend", None)) == "external_launcher":
        return (
            "an external launcher makes dummy passes without the worker: ranks would number steps differently"
        )
    return None
