"""Plays causes: all is well, each goes wrong, each is mended once somebody was told of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Final

from tests.dashboards.alerts.causes import HEALTHY, Cause
from tests.dashboards.alerts.scaled import minutes
from tests.dashboards.alerts.world import World
from tests.dashboards.live import pin_baseline

HEAD_START_MINUTES: Final = 6
"""While all is well: more than the five minutes that drift looks at."""
AFTER_MINUTES: Final = 8
"""At the end: longer than Alertmanager waits before it tells of what is new in a group."""


def play(it: World, url: str, causes: Mapping[str, Cause], over: Callable[[], bool], seconds: float) -> None:
    """Play until `over` says so.

    Args:
        it: everything that runs.
        url: of the service.
        causes: by the name of their deployment.
        over: whether all has been told that is waited for.
        seconds: the longest that it may take.
    """
    it.deployments.start("healthy", HEALTHY)
    for name, cause in causes.items():
        for number in range(1, cause.replicas + 1):
            it.deployments.start(f"{name}-sibling-{number}", cause.well)
        if not cause.fresh:
            it.deployments.start(name, cause.well)
    for name in (name for name, cause in causes.items() if cause.pinned):
        pin_baseline(url, name)
    time.sleep(minutes(HEAD_START_MINUTES))
    for name, cause in causes.items():
        it.deployments.start(name, cause.plan)
    mended: set[str] = set()
    deadline = time.monotonic() + seconds
    while not over():
        assert time.monotonic() < deadline, it.account()
        for name, cause in causes.items():
            if name not in mended and it.told_of(cause.group(name)):
                it.deployments.start(name, cause.well)
                mended.add(name)
        it.look()
        time.sleep(0.3)
    time.sleep(minutes(AFTER_MINUTES))
    it.look()
