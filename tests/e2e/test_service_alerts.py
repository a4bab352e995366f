"""Alerts about a service's own process: each is one notification, and clears.

Real here: services, Prometheus, Alertmanager, as in `test_notifications`.
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from devkit.processes import free_port
from moescope.capture.wire import CONTENT_TYPE
from moescope.dashboards.alert_rules import ALERTS
from tests.dashboards.alerts.fast_service import fast_service
from tests.dashboards.alerts.scaled import FastClock
from tests.dashboards.alerts.world import World, world

pytestmark = pytest.mark.e2e
DEADLINE_MINUTES = 300


class Services:
    """Services by the alert that each raises; the first life has a fault, the second one hasn't."""

    def __init__(self, clock: FastClock) -> None:
        self._clock = clock
        self._ports = {alert: free_port() for alert in FAULTS}
        self._lives = {alert: ExitStack() for alert in FAULTS}

    def url(self, alert: str) -> str:
        return f"http://127.0.0.1:{self._ports[alert]}"

    def start(self, alert: str, *, faulty: bool) -> None:
        """Begin a life of a service, after the end of the former."""
        self._lives[alert].close()
        settings = FAULTS[alert] if faulty else {}
        service = fast_service(self._clock, port=self._ports[alert], **settings)
        self._lives[alert].enter_context(service)

    def end(self, alert: str) -> None:
        self._lives[alert].close()

    def close(self) -> None:
        for life in self._lives.values():
            life.close()


FAULTS: dict[str, dict[str, object]] = {
    "MoescopeDown": {},
    "MoescopeRefusedFrames": {},
    "MoescopeScrapePartFailed": {"broken": True},
    "MoescopeSeriesOverflow": {"metrics_max_series": 5},
}


def test_each_alert_of_a_service_has_a_service_that_raises_it() -> None:
    assert set(FAULTS) == {alert.name for alert in ALERTS if alert.kind == "service"}


def test_each_fault_of_a_service_is_one_notification_and_clears(tmp_path: Path) -> None:
    clock = FastClock()
    with ExitStack() as stack:
        services = Services(clock)
        stack.callback(services.close)
        for alert in FAULTS:
            services.start(alert, faulty=True)
        first, *others = (services.url(alert) for alert in FAULTS)
        it = stack.enter_context(world(first, clock, tmp_path, tuple(others)))
        time.sleep(clock.minutes(6))
        services.end("MoescopeDown")
        groups = {alert: urlsplit(services.url(alert)).netloc for alert in FAULTS}
        mended: set[str] = set()
        deadline = time.monotonic() + clock.minutes(DEADLINE_MINUTES)
        while not all(it.told_of(group, "resolved") for group in groups.values()):
            assert time.monotonic() < deadline, it.account()
            if "MoescopeRefusedFrames" not in mended:
                _post_nonsense(services.url("MoescopeRefusedFrames"))
            for alert, group in groups.items():
                if alert not in mended and it.told_of(group):
                    mended.add(alert)
                    if alert != "MoescopeRefusedFrames":
                        services.start(alert, faulty=False)
            time.sleep(0.3)
        for alert, group in groups.items():
            _check(it, alert, group)


def _check(it: World, alert: str, group: str) -> None:
    """A service that starts again is away; on a busy machine long enough to be missed meanwhile."""
    told, over = (
        [
            each
            for each in it.told_of(group, status)
            if alert == "MoescopeDown" or each.names != ["MoescopeDown"]
        ]
        for status in ("firing", "resolved")
    )
    assert [each.names for each in told] == [[alert]], it.account()
    assert len(over) == 1, it.account()
    [raised] = told[0].alerts
    assert all("%!" not in text for text in raised["annotations"].values())


def _post_nonsense(url: str) -> None:
    answer = httpx.post(f"{url}/v1/ingest", content=b"?", headers={"content-type": CONTENT_TYPE}, timeout=60)
    assert answer.status_code == 400
