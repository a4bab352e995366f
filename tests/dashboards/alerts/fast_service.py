"""A service whose clock runs fast, in a process of its own.

``python -m tests.dashboards.alerts.fast_service BEGAN`` prints its address and runs until its input ends. One
process that both computes what all fleets do and takes their frames is too slow for an hour in a minute.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tests.dashboards.alerts.scaled import FastClock
from tests.service.conftest import Clock, open_service

SETTINGS: dict[str, Any] = {
    "window_s": 300.0,
    "stale_after_s": 300.0,
    "expire_after_s": 86400.0,
    "min_tokens": 1,
    "metrics_level": "layer_expert",
    "max_frames_per_s": 1e6,
}


@contextmanager
def fast_service(clock: FastClock) -> Iterator[str]:
    """The address of a service with `SETTINGS` and this clock."""
    command = [sys.executable, "-m", "tests.dashboards.alerts.fast_service", repr(clock.began)]
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


def _main() -> None:
    service, end = open_service(Clock(), FastClock(float(sys.argv[1])), **SETTINGS)
    print(service.url, flush=True)
    sys.stdin.read()
    end()


if __name__ == "__main__":
    _main()
