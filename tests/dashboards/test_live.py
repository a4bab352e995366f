"""Boards, recording rules and alerts on a real Prometheus that scrapes a real service (simulated ranks)."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from moescope.service.client.settings import ClientSettings
from moescope.service.settings import MetricsLevel
from moescope.service.simulation.feed import Pace, Poster, feed
from moescope.service.simulation.plan import Outage, Plan
from moescope.service.simulation.routing import Habits, Shape
from tests.dashboards.boards import BOARDS
from tests.dashboards.live import pin_baseline, prometheus, recorded, without_data
from tests.service.conftest import Service

# With Mixtral's experts. Rank 2 is killed after 20 s; the hot expert keeps its EP rank the busiest.
PLAN = Plan(
    replicas=2,
    pool="chat",
    ranks=4,
    shape=Shape(layers=3, experts=8, top_k=2),
    habits=Habits(skew=0.5, hot=0.9, hot_moves_s=3600.0),
    rank_imbalance=2.0,
    draft_share=0.4,
    uncovered=(5,),
    outages=(Outage(2, 20.0),),
)
INDUCED = {
    "MoescopeRankImbalance",
    "MoescopeDpImbalance",
    "MoescopeHotExpert",
    "MoescopeOneRankHottest",
    "MoescopeUncoveredLayers",
}


def test_queries_have_data_imbalance_fires_and_a_killed_rank_is_stale(
    start_service: Callable[..., Service], tmp_path: Path
) -> None:
    service = start_service(
        use_clock=time.time, window_s=5.0, stale_after_s=3.0, metrics_level=MetricsLevel.LAYER_EXPERT
    )
    end = threading.Event()

    def on_round(_progress: object) -> None:
        if end.is_set():
            raise KeyboardInterrupt

    def run() -> None:
        with closing(Poster(service.url, ClientSettings())) as poster:
            try:
                feed(PLAN, poster, Pace(0.5, 900.0), on_round)
            except KeyboardInterrupt:
                return

    simulation = threading.Thread(target=run)
    simulation.start()
    try:
        for server in ("simulated-0", "simulated-1"):
            pin_baseline(service.url, server)
        with prometheus(service.url, tmp_path) as running:
            other = [*recorded("moescope-drift.yml"), *recorded("moescope-pools.yml")]
            running.wait(lambda: [name for name in other if not running.query(name)])
            running.wait(without_data(running, list(BOARDS.values()), "3"))
            running.wait(lambda: INDUCED - running.firing())
            running.wait(lambda: {"MoescopeStaleProducer"} - running.firing())
            quiet = {"MoescopeDown", "MoescopeConservationMismatch", "MoescopeScrapePartFailed"}
            assert not quiet & running.firing()
    finally:
        end.set()
        simulation.join(60)
