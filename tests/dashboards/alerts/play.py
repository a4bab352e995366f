"""Plays causes: all is well, each goes wrong, each is mended once somebody was told of it.

The rules want tokens in three minutes, of which they may see two scrapes only: there must be a frame between
any two. A machine that has too much to do for that sees other alerts than production, so a play that was too
fast for it says so, and is begun again at half the pace.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Final

from tests.dashboards.alerts.causes import HEALTHY, Cause
from tests.dashboards.alerts.scaled import SLOWEST
from tests.dashboards.alerts.world import World
from tests.dashboards.live import pin_baseline

HEAD_START_MINUTES: Final = 6
"""While all is well: more than the five minutes that drift looks at."""
AFTER_MINUTES: Final = 8
"""At the end: longer than Alertmanager waits before it tells of what is new in a group."""
LONGEST_MINUTES: Final = 1
"""From a frame of a deployment to its next: what lies between two scrapes."""


class TooFastError(Exception):
    """The machine did not keep up with the clock, which could be slower."""


def play(
    it: World, url: str, causes: Mapping[str, Cause], over: Callable[[], bool], deadline_minutes: float
) -> None:
    """Play until `over` says so.

    Args:
        it: everything that runs.
        url: of the service.
        causes: by the name of their deployment.
        over: whether all has been told that is waited for.
        deadline_minutes: the longest that it may take, there.

    Raises:
        TooFastError: if frames were so late that the rules saw what they don't see in production.
    """
    minutes = it.clock.minutes
    it.deployments.start("healthy", HEALTHY)
    for name, cause in causes.items():
        for number in range(1, cause.replicas + 1):
            it.deployments.start(f"{name}-sibling-{number}", cause.well)
        if not cause.fresh:
            it.deployments.start(name, cause.well)
    for name in (name for name, cause in causes.items() if cause.pinned):
        pin_baseline(url, name)
    time.sleep(minutes(HEAD_START_MINUTES))
    it.deployments.longest_minutes = 0.0
    for name, cause in causes.items():
        it.deployments.start(name, cause.plan)
    mended: set[str] = set()
    deadline = time.monotonic() + minutes(deadline_minutes)
    while not over():
        assert time.monotonic() < deadline, it.account()
        for name, cause in causes.items():
            if name not in mended and it.told_of(cause.group(name)):
                it.deployments.start(name, cause.well)
                mended.add(name)
        it.look()
        _keeps_up(it)
        time.sleep(0.3)
    time.sleep(minutes(AFTER_MINUTES))
    it.look()
    _keeps_up(it)


def _keeps_up(it: World) -> None:
    late = it.deployments.longest_minutes > LONGEST_MINUTES
    if late and it.clock.scale > SLOWEST:
        raise TooFastError
