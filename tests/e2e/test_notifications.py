"""Each cause that the simulator plants is one notification at a real webhook, and clears.

Real here: the services, Prometheus with the shipped rules, Alertmanager with the shipped configuration, HTTP.
An hour takes minutes (see `scaled`). Only the day before, with which `MoescopeNewDeadExperts` compares, is
written into Prometheus before it starts.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from moescope.dashboards.alert_rules import ALERTS
from tests.dashboards.alerts.causes import BALANCE, CAPTURE, HEALTHY, REPLICAS, Cause
from tests.dashboards.alerts.fast_service import fast_service
from tests.dashboards.alerts.play import TooFastError, play
from tests.dashboards.alerts.scaled import SLOWEST, FastClock, guessed_scale, write_past
from tests.dashboards.alerts.world import World, world

pytestmark = pytest.mark.e2e
RECEIVERS = {"critical": "moescope-page", "warning": "moescope-warning", "info": "moescope-inform"}
DEADLINE_MINUTES = 300
CAUSES = {**BALANCE, **CAPTURE, **REPLICAS}
ONLY_BY_PROMTOOL = {"MoescopeShortHistory"}
"""A service with too little memory, whose clock runs fast, was not made to raise it."""


def test_each_alert_about_deployments_has_a_cause_that_is_planted() -> None:
    named = {alert.name for alert in ALERTS if alert.kind != "service"}
    assert {cause.alert for cause in CAUSES.values()} == named - ONLY_BY_PROMTOOL


def test_each_cause_is_one_notification_and_clears(tmp_path: Path) -> None:
    scale = guessed_scale()
    while True:
        folder = tmp_path / f"scale-{scale}"
        folder.mkdir()
        try:
            _play_all(FastClock(scale=scale), folder)
        except TooFastError:
            scale = max(SLOWEST, scale // 2)
        else:
            return


def _play_all(clock: FastClock, folder: Path) -> None:
    newly_dead = f'cluster="test",server="newly-dead",model="{HEALTHY.model}",layer="4"'
    write_past(folder, f"moescope_layer_dead_experts{{{newly_dead}}}", 0.0, clock)
    with fast_service(clock) as url, world(url, clock, folder) as it:

        def over() -> bool:
            return all(it.told_of(cause.group(name), "resolved") for name, cause in CAUSES.items())

        play(it, url, CAUSES, over, DEADLINE_MINUTES)
        for name, cause in CAUSES.items():
            _check(it, name, cause)
        told = {value for found in it.receiver.notifications for value in found.labels.values()}
        allowed = {cause.group(name) for name, cause in CAUSES.items()}
        allowed |= {cause.plan.pool for cause in CAUSES.values()}
        assert told - {"test", HEALTHY.model} <= allowed, it.account()


def _check(it: World, name: str, cause: Cause) -> None:
    told = it.told_of(cause.group(name))
    found = [(each.receiver, each.names) for each in told]
    assert found == [(RECEIVERS[cause.severity], [cause.alert])], (name, it.account())
    assert len(it.told_of(cause.group(name), "resolved")) == 1, (name, it.account())
    [alert] = told[0].alerts
    assert not {"layer", "expert", "ep_rank", "dp_rank", "phase", "reason"} & set(alert["labels"])
    for text in alert["annotations"].values():
        assert "%!" not in text
        assert "error" not in text.lower(), text
        assert "  " not in text, text
