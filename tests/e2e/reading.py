"""What the service, vLLM and the frames on the wire say of a cluster."""

from __future__ import annotations

from typing import Any

from moescope.capture.wire import Frame
from tests.e2e.cluster import Cluster


def ranks(cluster: Cluster) -> list[dict[str, Any]]:
    """The DP ranks of the only deployment, as the service lists them."""
    (deployment,) = cluster.service.get("/v1/ranks")["deployments"]
    return list(deployment["dp_ranks"])


def generated_tokens(cluster: Cluster) -> int:
    """All tokens that vLLM has generated so far."""
    return int(sum(cluster.vllm_metrics()["vllm:generation_tokens_total"].values()))


def last_frames(cluster: Cluster) -> dict[int, Frame]:
    """The latest frame of each DP rank."""
    return {frame.producer.dp_rank: frame for frame in cluster.relay.frames}


def forward_passes(frame: Frame) -> int:
    """Steps that the rank made, dummy steps included."""
    return frame.steps + frame.idle_steps
