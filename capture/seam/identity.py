"""Who a worker is, as far as vLLM tells: by name, by ranks, by versions.

It imports neither the wire nor torch: a worker whose capturer can't be imported says who it is as well.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from typing import Any

from moescope.capture.protocol import MAX_NAME, MAX_TEXT
from moescope.capture.seam.deployment import name_deployment
from moescope.capture.seam.role import read_role
from moescope.capture.seam.versions import moescope_version, vllm_version
from moescope.capture.settings.access import encodable
from moescope.capture.settings.environment import CaptureSettings

Identity = dict[str, str | int]
"""The fields of a `Producer`, by name."""


def read_identity(vllm_config: Any, settings: CaptureSettings) -> Identity:
    """Who this worker is; call it once vLLM's groups exist. Whatever vLLM doesn't tell raises.

    Only its deployment's name, its role and its start are what can be told of them.
    """
    return {
        **read_belonging(vllm_config, settings),
        "model": read_model(vllm_config),
        **read_sizes_and_ranks(vllm_config),
        "host": encodable(socket.gethostname()),
        "pid": os.getpid(),
        "vllm_version": vllm_version(),
        "moescope_version": moescope_version(),
    }


def read_belonging(vllm_config: Any, settings: CaptureSettings) -> Identity:
    """What the worker belongs to: deployment, pool, role, start; nothing raises.

    A worker that doesn't count says the same of these as it would if it counted.
    """
    found: Identity = {
        "server": name_deployment(vllm_config, settings).name,
        "pool": settings.pool,
        "role": settings.role or read_role(vllm_config),
    }
    with contextlib.suppress(Exception):
        found["start"] = encodable(str(vllm_config.instance_id))[:MAX_TEXT]
    return found


def read_model(vllm_config: Any) -> str:
    """The name under which vLLM serves the model."""
    return encodable(str(vllm_config.model_config.served_model_name))[:MAX_NAME]


def read_sizes_and_ranks(vllm_config: Any) -> Identity:
    """The worker's ranks and their sizes, from vLLM's groups, which must exist."""
    from vllm.distributed.parallel_state import get_ep_group, get_pp_group, get_tp_group

    parallel = vllm_config.parallel_config
    tp, pp = get_tp_group(), get_pp_group()
    ep = get_ep_group() if parallel.enable_expert_parallel else None
    return {
        "dp_rank": parallel.data_parallel_rank,
        "dp_size": parallel.data_parallel_size,
        "tp_rank": tp.rank_in_group,
        "tp_size": tp.world_size,
        "pp_rank": pp.rank_in_group,
        "pp_size": pp.world_size,
        "ep_rank": ep.rank_in_group if ep else 0,
        "ep_size": ep.world_size if ep else 1,
    }


def guess_identity(worker: Any, settings: CaptureSettings) -> Identity:
    """Who a worker is whose capture is off, as far as it can be told: nothing raises.

    Where vLLM's groups can't be asked, the ranks follow from the worker's number and the sizes in vLLM's
    config; without those it is the only one. A producer must have a name: an unknown model is called so.
    """
    config = getattr(worker, "vllm_config", None)
    known: Identity = {**read_belonging(config, settings), "model": "unknown"}
    with contextlib.suppress(Exception):
        known["model"] = read_model(config) or "unknown"
    known |= {"dp_rank": 0, "dp_size": 1}
    with contextlib.suppress(Exception):
        known |= _ranks_from_config(worker, config)
    with contextlib.suppress(Exception):
        known |= read_sizes_and_ranks(config)
    return known | dict(_facts())


def _ranks_from_config(worker: Any, vllm_config: Any) -> Identity:
    """vLLM numbers workers by DP rank, pipeline stage, prefill context and TP rank, or from the stage on."""
    parallel, number = vllm_config.parallel_config, int(worker.rank)
    tp, pp = int(parallel.tensor_parallel_size), int(parallel.pipeline_parallel_size)
    stage = tp * int(getattr(parallel, "prefill_context_parallel_size", 1))
    return {
        "dp_rank": int(parallel.data_parallel_rank),
        "dp_size": int(parallel.data_parallel_size),
        "tp_rank": number % tp,
        "tp_size": tp,
        "pp_rank": number // stage % pp,
        "pp_size": pp,
    }


def _facts() -> Iterator[tuple[str, str | int]]:
    """Each fact that can be had."""
    for name, read in (
        ("host", socket.gethostname),
        ("pid", os.getpid),
        ("vllm_version", vllm_version),
        ("moescope_version", moescope_version),
    ):
        with contextlib.suppress(Exception):
            found: str | int = read()
            yield name, encodable(found)[:MAX_TEXT] if isinstance(found, str) else found
