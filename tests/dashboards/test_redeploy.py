"""Deployments start again with fewer ranks, or under another name: no alert stays on a real Prometheus."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from pathlib import Path

import msgspec

from moescope.capture.wire import Frame
from moescope.service.settings import MetricsLevel
from moescope.service.simulation.fleet import Fleet
from moescope.service.simulation.plan import Plan
from moescope.service.simulation.routing import Habits, Shape
from tests.dashboards.live import Prometheus, prometheus
from tests.service.conftest import Service

ROUND_S = 0.5
SETTLED_S = 10.0
"""Twice the longest range of a quickened rule, and longer than a producer takes to be stale."""


class Stage:
    """The fleets that send at present, by the name of their deployment."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._fleets: dict[str, Fleet] = {}

    def start(self, name: str, ranks: int) -> None:
        """A deployment starts, or starts again: the former start says nothing any more."""
        plan = Plan(
            server=name,
            ranks=ranks,
            shape=Shape(layers=2, experts=8, top_k=2),
            habits=Habits(skew=0.0, drift=0.0, decode_shift=0.0),
        )
        self._fleets[name] = Fleet(plan, time.time_ns())

    def end(self, name: str) -> None:
        """A deployment's workers shut down in order: their last frames say so."""
        frames = self._fleets.pop(name).advance(0.01)
        self._post(msgspec.structs.replace(frame, ended=True) for frame in frames)

    def run(self, seconds: float) -> None:
        """All fleets that are there compute and send."""
        last, until = time.monotonic(), time.monotonic() + seconds
        while last < until:
            time.sleep(ROUND_S)
            now = time.monotonic()
            for fleet in self._fleets.values():
                self._post(fleet.advance(now - last))
            last = now

    def _post(self, frames: Iterable[Frame]) -> None:
        for frame in frames:
            assert self._service.push(frame).status_code == 200


def ratio(running: Prometheus, record: str, server: str) -> float:
    [found] = running.query(f'{record}{{server="{server}"}}')
    return float(found["value"][1])


def test_no_alert_stays_after_a_redeploy_a_rename_and_a_rolling_update(
    start_service: Callable[..., Service], tmp_path: Path
) -> None:
    service = start_service(
        use_clock=time.time,
        window_s=5.0,
        stale_after_s=3.0,
        min_tokens=1,
        metrics_level=MetricsLevel.LAYER_RANK,
    )
    stage = Stage(service)
    for name, ranks in (("shrinks", 4), ("grows", 2), ("pod-a", 2), ("old-0", 2), ("old-1", 2), ("old-2", 2)):
        stage.start(name, ranks)
    with prometheus(service.url, tmp_path) as running:
        stage.run(SETTLED_S)
        assert ratio(running, "model:moescope_ep_imbalance:ratio_rate5m", "shrinks") < 1.2
        stage.start("shrinks", 2)
        stage.start("grows", 4)
        stage.end("pod-a")
        stage.start("pod-b", 2)
        for i in range(3):
            stage.start(f"new-{i}", 2)
            stage.run(2.0)
            stage.end(f"old-{i}")
        stage.run(SETTLED_S)
        assert running.firing() == set()
        for server, ranks in (("shrinks", 2), ("grows", 4), ("pod-b", 2), ("new-2", 2)):
            for record in (
                "model:moescope_ep_imbalance:ratio_rate5m",
                "model:moescope_dp_imbalance:ratio_rate5m",
            ):
                assert ratio(running, record, server) < 1.2, (server, record)
            for record in ("dp_rank:moescope_tokens:rate5m", "ep_rank:moescope_slots:rate5m"):
                assert len(running.query(f'{record}{{server="{server}"}}')) == ranks, (server, record)
        # No counter ever went back, so each rate is the counters' growth.
        back = "resets(moescope_tokens_total[5m]) + on (server, dp_rank) resets(moescope_steps_total[5m])"
        counters = running.query(back)
        assert len(counters) == 4 + 4 + 2 * 2 + 6 * 2
        assert {float(series["value"][1]) for series in counters} == {0.0}
        # What a deployment counted before it shut down has been scraped to the last token.
        for server in ("pod-a", "old-0"):
            [scraped] = running.query(f'sum(last_over_time(moescope_tokens_total{{server="{server}"}}[5m]))')
            [told] = service.get("/v1/ranks", server=server)["deployments"]
            assert float(scraped["value"][1]) == sum(rank["tokens"] for rank in told["dp_ranks"])
