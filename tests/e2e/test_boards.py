"""Boards, recording rules, alerts on a real Prometheus; the service is fed by a real vLLM (DP=2, EP=2)."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from tests.dashboards.boards import BOARDS
from tests.dashboards.live import pin_baseline, prometheus, without_data
from tests.e2e.cluster import Cluster, Request, Service

pytestmark = pytest.mark.e2e

TRAFFIC = [Request(f"request {i} of some length, with words in it", 24) for i in range(8)]


ELSEWHERE = {
    ("moescope / Pools", "Divergence from the siblings"),
    ("moescope / Model", "Draft tokens per second by outcome"),
    ("moescope / Model", "Tokens computed in vain"),
}


def alone(missing: object) -> bool:
    """Whether a query needs a sibling or drafts, which one server has not; `tests/dashboards` has both."""
    return isinstance(missing, tuple) and missing[:2] in ELSEWHERE


def test_every_query_and_recording_rule_has_data(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A service of its own, with all levels; totals are cumulative, so the cluster's own misses nothing.
    monkeypatch.setenv("MOESCOPE_METRICS_LEVEL", "layer_expert")
    end = threading.Event()

    def traffic() -> None:
        while not end.is_set():
            cluster.complete_all(TRAFFIC)

    requests = threading.Thread(target=traffic)
    with Service(tmp_path / "service.log") as service, prometheus(service.url, tmp_path) as running:
        cluster.relay.target_port = service.port
        requests.start()
        try:
            pin_baseline(service.url)
            boards = list(BOARDS.values())
            missing = without_data(running, boards, "1")
            running.wait(lambda: [item for item in missing() if not alone(item)])
            ratios = running.query('moescope_layer_ep_imbalance_ratio{server="e2e"}')
            assert {item["metric"]["layer"] for item in ratios} == {"1", "2", "3", "4"}
            # The checkpoint's routers are skewed: the alerts on that fire, by the rules' own evaluation.
            induced = {"MoescopeRankImbalance", "MoescopeOneRankHottest"}
            running.wait(lambda: induced - running.firing())
            assert not {"MoescopeDown", "MoescopeConservationMismatch", "MoescopeStaleProducer"} & (
                running.firing()
            )
        finally:
            end.set()
            requests.join(300)
            cluster.relay.target_port = cluster.service.port
    cluster.assert_exact()
