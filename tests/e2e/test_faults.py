"""The service restarted, frames doubled and reordered, the service down: totals equal, vLLM serves on."""

from __future__ import annotations

import re
from datetime import datetime, timedelta

import pytest

from tests.e2e.cluster import Cluster, Request

pytestmark = pytest.mark.e2e


def requests(tag: str, number: int = 12) -> list[Request]:
    return [Request(f"{tag} {index} " + "words " * (index % 5), 10 + index) for index in range(number)]


def test_frames_doubled_and_reordered(cluster: Cluster) -> None:
    cluster.relay.disorder = True
    cluster.relay.replies.clear()
    try:
        cluster.complete_all(requests("disorder"))
        cluster.settled_when_idle()
    finally:
        cluster.relay.disorder = False
    assert len(cluster.relay.replies) >= 4
    assert all(status == 200 for status, _ in cluster.relay.replies), cluster.relay.replies
    cluster.assert_exact()


def test_the_service_restarted_in_mid_run(cluster: Cluster) -> None:
    cluster.complete_all(requests("before"))
    cluster.assert_exact()
    cluster.service.kill()
    cluster.complete_all(requests("while it is dead"))
    cluster.restart_service()
    cluster.complete_all(requests("after"))
    cluster.assert_exact()


def test_vllm_serves_on_while_the_service_is_down_and_does_not_flood_the_log(cluster: Cluster) -> None:
    before = len(cluster.vllm.log.read_text())
    cluster.relay.down = True
    try:
        for number in range(3):
            cluster.complete_all(requests(f"down {number}"))
    finally:
        cluster.relay.down = False
    cluster.assert_exact()
    new_lines = cluster.vllm.log.read_text()[before:].splitlines()
    assert_said_once_a_minute([line for line in new_lines if "answered 503" in line])


def test_balance_of_a_live_run_follows_from_the_placement(cluster: Cluster) -> None:
    cluster.assert_exact()
    balance = cluster.service.get("/v1/balance")
    layers = {layer["layer"]: layer for layer in balance["layers"]}
    for layer, histogram in merged(cluster).items():
        loads = [sum(histogram[:8]), sum(histogram[8:])]  # linear placement over two EP ranks
        measured = layers[layer]["over_ep_ranks"]
        assert measured["loads"] == loads
        assert measured["measures"]["imbalance_ratio"] == pytest.approx(max(loads) / (sum(loads) / 2))
    assert balance["summary"]["over_ep_ranks"]["worst"] > 1.1  # the checkpoint's routers are skewed


def merged(cluster: Cluster) -> dict[int, list[int]]:
    both = [cluster.layers(0), cluster.layers(1)]
    return {
        layer: [a + b for a, b in zip(both[0][layer]["counts"], both[1][layer]["counts"], strict=True)]
        for layer in both[0]
    }


def assert_said_once_a_minute(lines: list[str]) -> None:
    """Lines of vLLM's log: there are some, and those of one process are a minute apart."""
    assert lines
    said_at: dict[str, datetime] = {}
    for line in lines:
        [(process, at)] = re.findall(r"pid=(\d+)\) \w+ (\d\d-\d\d \d\d:\d\d:\d\d) ", line)
        now = datetime.strptime(f"2000-{at}", "%Y-%m-%d %H:%M:%S")
        assert now - said_at.get(process, datetime.min) > timedelta(seconds=58), lines
        said_at[process] = now
