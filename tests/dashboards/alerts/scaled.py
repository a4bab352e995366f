"""An hour in one minute and a half, or in eight: rules, Alertmanager and the service's clock, all alike.

Each duration of the rules and of Alertmanager's configuration is divided by the clock's scale, and the
service's clock runs so many times as fast. So the order of events is that of production: an alert which waits
for 15 minutes and one that waits for 10 stay as far apart. Thresholds of rates are not scaled: Prometheus
sees so many times as many tokens a second, so that the floors of traffic are reached.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import yaml

from tests.dashboards.alerts.alertmanager import AT_HOME, CONFIG
from tests.dashboards.live import RULES, Prometheus
from tests.dashboards.promtool import promtool
from tests.prometheus import running_prometheus

_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION = r"\b(\d+)([smhd])\b"


SLOWEST: Final = 8
"""An hour in under eight minutes: too fast for no machine."""


def guessed_scale() -> int:
    """40, or less on a machine that has much else to do, where seconds must not be a quarter of an hour."""
    running = int(Path("/proc/loadavg").read_text().split()[3].partition("/")[0])
    load = max(os.getloadavg()[0], running, 0.1)
    return max(15, min(40, round(60 * (os.cpu_count() or 1) / load)))


class FastClock:
    """Unix time that passes faster from a moment on.

    Args:
        began: that moment; None: now.
        scale: as many times as fast as other clocks; None: `guessed_scale()`.
    """

    def __init__(self, began: float | None = None, scale: float | None = None) -> None:
        self.began = time.time() if began is None else began
        self.scale = guessed_scale() if scale is None else scale

    def __call__(self) -> float:
        return self.began + self.scale * (time.time() - self.began)

    def minutes(self, count: float) -> float:
        """Seconds here for so many minutes there."""
        return 60 * count / self.scale


def scaled(text: str, scale: float) -> str:
    """Rules or a configuration of Alertmanager, with each duration divided by `scale`.

    Rounds of frames take a second at most: a replica that is live here has sent within five.
    """

    def shorter(found: re.Match[str]) -> str:
        return f"{max(1, round(1000 * int(found[1]) * _UNITS[found[2]] / scale))}ms"

    def of_line(line: str) -> str:
        if re.match(r"\s*(- )?(for|keep_firing_for|interval|\w+_(wait|interval)):", line):
            return re.sub(_DURATION, shorter, line)
        line = re.sub(r"\[[\w:]+\]", lambda found: re.sub(_DURATION, shorter, found[0]), line)
        return re.sub(r"offset \w+", lambda found: re.sub(_DURATION, shorter, found[0]), line)

    text = "\n".join(of_line(line) for line in text.split("\n"))
    return re.sub(r"(moescope_snapshot_age_seconds[^<>\n]*[<>] )(60|15)\b", r"\g<1>300", text)


def alertmanager_config(receiver: str, scale: float) -> str:
    """The shipped configuration, scaled, that notifies this receiver."""
    text = CONFIG.read_text()
    assert text.count(AT_HOME) == 3
    return scaled(text.replace(AT_HOME, receiver), scale)


def write_past(folder: Path, series: str, value: float, clock: FastClock) -> None:
    """Let Prometheus have a series' value for a day and more, as if it had scraped it.

    Args:
        folder: Prometheus' own.
        series: name and labels.
        value: the same at all times.
        clock: the test's; the past ends where it began.
    """
    times = (clock.began - seconds for seconds in range(int(30 * 3600 / clock.scale), 0, -15))
    name = series.partition("{")[0]
    lines = [f"# TYPE {name} gauge", *(f"{series} {value} {when:.3f}" for when in times), "# EOF"]
    text = folder / "past.txt"
    text.write_text("\n".join(lines) + "\n")
    done = promtool("tsdb", "create-blocks-from", "openmetrics", text, folder / "data")
    assert done.returncode == 0, done.stdout + done.stderr


@contextmanager
def prometheus(targets: list[str], alertmanager: str, folder: Path, clock: FastClock) -> Iterator[Prometheus]:
    """Scrapes services each minute there, as job ``moescope`` of cluster ``test``, with scaled rules."""
    for path in RULES.glob("*.yml"):
        (folder / path.name).write_text(scaled(path.read_text(), clock.scale))
    minute, half = (f"{round(1000 * clock.minutes(count))}ms" for count in (1, 0.5))
    config = {
        "global": {"scrape_interval": minute, "scrape_timeout": minute, "evaluation_interval": half},
        "rule_files": [str(folder / "moescope-*.yml")],
        "alerting": {"alertmanagers": [{"static_configs": [{"targets": [alertmanager]}]}]},
        "scrape_configs": [
            {
                "job_name": "moescope",
                "static_configs": [{"targets": targets, "labels": {"cluster": "test"}}],
            }
        ],
    }
    with running_prometheus(yaml.safe_dump(config), folder) as client:
        yield Prometheus(client)
