"""TP=2 EP=2 without data parallelism, with blocks that shard their rows over TP as vLLM's mega MoE does."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from devkit.libraries import missing_compiler, require
from moescope.capture.wire import unpack_counts
from tests.e2e.cluster import SETTLE_SECONDS, Cluster, prompts
from tests.e2e.traces import all_traces, npz, settled

pytestmark = pytest.mark.e2e

REQUESTS = 12
COMPILED = {"VLLM_CPU_CI_ENV": "1", "TORCH_COMPILE_DISABLE": "0"}
"""vLLM then compiles the model with Dynamo and without the compiler of C++, which takes minutes."""


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_shards_without_dp_metadata_add_up(tmp_path: Path, compiled: bool) -> None:
    if compiled:
        require(missing_compiler())
    options: dict[str, Any] = {
        "expert_parallel": True,
        "max_num_batched_tokens": 64,
        "worker_class": "tests.e2e.sharding_worker.ShardingWorker",
        "env": {
            "PYTHONPATH": str(Path.cwd()),
            "MOESCOPE_TRACE_RATE": "1",
            **(COMPILED if compiled else {}),
        },
        "extra_args": (
            "--tensor-parallel-size",
            "2",
            "--distributed-executor-backend",
            "mp",
            *(["--no-enforce-eager"] if compiled else []),
        ),
    }
    with Cluster(tmp_path, options, store=tmp_path / "store") as cluster:
        assert ("DYNAMO_TRACE_ONCE" in cluster.vllm.log.read_text()) is compiled
        cluster.complete_all(prompts(REQUESTS, stride=5))
        settled(cluster)
        cluster.assert_exact()
        tokens = cluster.computed_tokens()[0]
        latest = {frame.producer.tp_rank: unpack_counts(frame.rows) for frame in cluster.relay.frames}
        assert sorted(latest) == [0, 1]
        assert (latest[0] + latest[1] == tokens).all(), latest
        # Every second token at most is in the second shard; steps of one token have none.
        assert 0 < latest[1].max() <= latest[0].min(), latest
        assert_traces_say_the_same(cluster, tokens)


def assert_traces_say_the_same(cluster: Cluster, tokens: int) -> None:
    """Both shards of each request make one trace, with a row for each of its tokens."""
    deadline = time.monotonic() + SETTLE_SECONDS
    while sum(trace["tokens"] for trace in all_traces(cluster)) != tokens and time.monotonic() < deadline:
        time.sleep(0.1)
    traces = all_traces(cluster)
    assert len(traces) == REQUESTS
    counts = {layer: np.zeros(16, np.int64) for layer in (1, 2, 3, 4)}
    for trace in traces:
        found = npz(cluster, trace["request_id"])
        experts = found["routed_experts"][found["times_computed"] > 0]
        assert experts.min() >= 0
        for index, layer in enumerate(found["layers"].tolist()):
            counts[layer] += np.bincount(experts[:, index].ravel(), minlength=16)
    histogram = {layer: found["counts"] for layer, found in cluster.layers(0).items()}
    assert {layer: found.tolist() for layer, found in counts.items()} == histogram
