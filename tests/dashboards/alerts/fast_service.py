"""A service whose clock runs fast, in a process of its own.

``python -m tests.dashboards.alerts.fast_service BEGAN SCALE SETTINGS`` prints its address and runs until
its input ends. One process that both computes what all fleets do and takes their frames is too slow for an
hour in minutes. With ``BROKEN_PART`` as last word one part of the metrics fails, which can't be caused
otherwise.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final
from unittest.mock import patch

from moescope.service.metrics.collector import RoutingCollector
from tests.dashboards.alerts.scaled import FastClock
from tests.service.conftest import Clock, open_service

SETTINGS: Final[dict[str, Any]] = {
    "window_s": 300.0,
    "stale_after_s": 300.0,
    "expire_after_s": 86400.0,
    "min_tokens": 1,
    "metrics_level": "layer_expert",
    "max_frames_per_s": 1e6,
}
BROKEN_PART: Final = "history"


@contextmanager
def fast_service(clock: FastClock, *, broken: bool = False, **settings: Any) -> Iterator[str]:
    """The address of a service with this clock, and with `SETTINGS` unless others are given."""
    words = [
        repr(clock.began),
        repr(clock.scale),
        json.dumps(SETTINGS | settings),
        *([BROKEN_PART] if broken else []),
    ]
    command = [sys.executable, "-m", "tests.dashboards.alerts.fast_service", *words]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        assert url.startswith("http://"), "the service did not start"
        try:
            yield url
        finally:
            process.stdin.close()
            process.wait(60)


def _main(began: str, scale: str, settings: str, broken: str = "") -> None:
    if broken:
        patch.object(RoutingCollector, f"_{broken}", side_effect=RuntimeError("planted")).start()
    service, end = open_service(Clock(), FastClock(float(began), float(scale)), **json.loads(settings))
    print(service.url, flush=True)
    sys.stdin.read()
    end()


if __name__ == "__main__":
    _main(*sys.argv[1:])
