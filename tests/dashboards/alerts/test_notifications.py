"""Each cause that the simulator plants is one notification at a real webhook, and clears.

Real here: the service, Prometheus with the shipped rules, Alertmanager with the shipped configuration, HTTP. An hour
takes a minute (see `scaled`). What takes a day, `MoescopeNewDeadExperts`, is tested by promtool only.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from tests.dashboards.alerts.causes import CAUSES, HEALTHY
from tests.dashboards.alerts.scaled import FastClock
from tests.dashboards.alerts.world import SETTINGS, World, world
from tests.dashboards.live import pin_baseline
from tests.service.conftest import Service

RECEIVERS = {"critical": "moescope-page", "warning": "moescope-warning", "info": "moescope-inform"}
HEAD_START_S = 6.0
"""While all is well: more than the five minutes that drift looks at."""
DEADLINE_S = 240.0


def group_of(name: str) -> str:
    """The label's value by which notifications about a cause are found."""
    plan = CAUSES[name].plan
    return plan.pool if CAUSES[name].replicas and CAUSES[name].alert != "MoescopeReplicaImbalance" else name


def test_each_cause_is_one_notification_and_clears(
    start_service: Callable[..., Service], tmp_path: Path
) -> None:
    clock = FastClock()
    service = start_service(use_clock=clock, **SETTINGS)
    with world(service.url, clock, tmp_path) as it:
        for name, cause in CAUSES.items():
            for number in range(1, cause.replicas + 1):
                it.deployments.start(f"{name}-sibling-{number}", _well(name))
            it.deployments.start(name, _well(name))
        it.deployments.start("healthy", HEALTHY)
        for name in (name for name, cause in CAUSES.items() if cause.pinned):
            pin_baseline(service.url, name)
        time.sleep(HEAD_START_S)
        for name, cause in CAUSES.items():
            it.deployments.start(name, cause.plan)
        mended: set[str] = set()
        deadline = time.monotonic() + DEADLINE_S
        while open_ := [name for name in CAUSES if not it.told_of(group_of(name), "resolved")]:
            assert time.monotonic() < deadline, (open_, it.receiver.notifications)
            for name in CAUSES:
                if name not in mended and it.told_of(group_of(name)):
                    it.deployments.start(name, _well(name))
                    mended.add(name)
            it.look()
            time.sleep(0.3)
        time.sleep(10.0)  # what would come after it
        for name, cause in CAUSES.items():
            _check(it, name, cause.alert, RECEIVERS[cause.severity])
        told = {value for found in it.receiver.notifications for value in found.labels.values()}
        assert told - {"test", HEALTHY.model} == {group_of(name) for name in CAUSES}


def _well(name: str):
    plan = CAUSES[name].plan
    from dataclasses import replace

    return replace(HEALTHY, ranks=plan.ranks, shape=plan.shape, pool=plan.pool)


def _check(it: World, name: str, alert: str, receiver: str) -> None:
    told = it.told_of(group_of(name))
    assert [(found.receiver, found.names) for found in told] == [(receiver, [alert])], name
    assert len(it.told_of(group_of(name), "resolved")) == 1, name
