"""Each cause that the simulator plants is one notification at a real webhook, and clears.

Real here: the services, Prometheus with the shipped rules, Alertmanager with the shipped configuration, HTTP.
An hour takes a minute (see `scaled`). Only the day before, with which `MoescopeNewDeadExperts` compares, is
written into Prometheus before it starts.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from moescope.dashboards.alert_rules import ALERTS
from tests.dashboards.alerts.causes import BALANCE, CAPTURE, HEALTHY, REPLICAS, Cause
from tests.dashboards.alerts.fast_service import fast_service
from tests.dashboards.alerts.play import play
from tests.dashboards.alerts.scaled import FastClock, write_past
from tests.dashboards.alerts.world import World, world

RECEIVERS = {"critical": "moescope-page", "warning": "moescope-warning", "info": "moescope-inform"}
DEADLINE_S = 300.0
IN_ANOTHER_TEST = {"MoescopeShortHistory"}
"""It is of the service's memory: see `test_services`."""
ALL = {"balance": BALANCE, "capture": CAPTURE, "replicas": REPLICAS}


def test_each_alert_about_deployments_has_a_cause_that_is_planted() -> None:
    planted = {cause.alert for causes in ALL.values() for cause in causes.values()}
    named = {alert.name for alert in ALERTS if alert.kind != "service"}
    assert planted == named - IN_ANOTHER_TEST


@pytest.mark.parametrize("causes", ALL.values(), ids=ALL)
def test_each_cause_is_one_notification_and_clears(causes: dict[str, Cause], tmp_path: Path) -> None:
    clock = FastClock()
    dead = (
        f'moescope_layer_dead_experts{{cluster="test",server="newly-dead",model="{HEALTHY.model}",layer="4"}}'
    )
    write_past(tmp_path, dead, 0.0, clock.began)
    with fast_service(clock) as url, world(url, clock, tmp_path) as it:

        def over() -> bool:
            return all(it.told_of(cause.group(name), "resolved") for name, cause in causes.items())

        play(it, url, causes, over, DEADLINE_S)
        for name, cause in causes.items():
            _check(it, name, cause)
        told = {value for found in it.receiver.notifications for value in found.labels.values()}
        allowed = {cause.group(name) for name, cause in causes.items()} | {
            cause.plan.pool for cause in causes.values()
        }
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
