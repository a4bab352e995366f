"""The same requests give the same tokens with capture on and off; and stopping leaves nothing behind."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from tests.e2e.cluster import DP2_EP2, Cluster, Request

pytestmark = pytest.mark.e2e

REQUESTS = [Request(f"{index} is the number of this prompt " * (1 + index % 3), 24) for index in range(10)]


def test_tokens_are_the_same_with_capture_on_and_off(cluster: Cluster, tmp_path: Path) -> None:
    with_capture = cluster.complete_all(REQUESTS, concurrency=1)
    with Cluster(tmp_path, DP2_EP2, capture=False) as plain:
        without = plain.complete_all(REQUESTS, concurrency=1)
        assert plain.relay.frames == []
    assert with_capture == without
    assert len({tuple(tokens) for tokens in without}) > 5  # not one degenerate text


def test_without_any_service_vllm_serves_and_stops_cleanly(tmp_path: Path) -> None:
    options = {**DP2_EP2, "env": {"MOESCOPE_ENDPOINT": "http://127.0.0.1:1"}}
    with Cluster(tmp_path, options) as cluster:
        cluster.complete_all(REQUESTS[:4])
        processes = cluster.vllm.processes()
        log = cluster.vllm.log
    assert processes
    assert not [process for process in processes if still_runs(process)]
    assert "can't be reached" in log.read_text()


def still_runs(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def test_the_last_counts_leave_before_the_server_ends(tmp_path: Path) -> None:
    """The interval is an hour: only the flush at a shutdown can bring them, and vLLM has to give it time."""
    options = {**DP2_EP2, "data_parallel_size": 1, "expert_parallel": False}
    options |= {"env": {"MOESCOPE_INTERVAL": "3600"}, "extra_args": ("--shutdown-timeout", "10")}
    with Cluster(tmp_path, options) as cluster:
        cluster.complete(Request("a last request", 30))
        expected = cluster.computed_tokens()
        cluster.vllm.stop()
        assert cluster.settled(expected) == expected
        [deployment] = cluster.service.get("/v1/ranks")["deployments"]
        [worker] = deployment["dp_ranks"][0]["producers"]
        assert worker["gone_reason"] == "all workers of the deployment have shut down in order"
