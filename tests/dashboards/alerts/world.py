"""Deployments with planted causes, Prometheus, Alertmanager and who is notified: an hour in minutes."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field, replace
from itertools import repeat
from pathlib import Path
from urllib.parse import urlsplit

from moescope.capture.wire import encode_frame
from moescope.service.client.settings import ClientSettings
from moescope.service.simulation.feed import Poster
from moescope.service.simulation.fleet import Fleet
from moescope.service.simulation.plan import Plan
from tests.dashboards.alerts.alertmanager import Notification, Receiver, running_alertmanager
from tests.dashboards.alerts.scaled import FastClock, alertmanager_config, prometheus
from tests.dashboards.live import Prometheus

ROUND_S = 30.0
"""From frame to frame of each worker, there: so that there is one between any two scrapes, a minute apart."""
SENDERS = 4
"""That send at a time: on a busy machine each answer is waited for, however little work it is."""


class Deployments:
    """All fleets that report to one service; a thread lets them compute and send."""

    def __init__(self, url: str, clock: FastClock) -> None:
        self._url, self._clock = url, clock
        self._lock = threading.Lock()
        self._fleets: dict[str, Fleet] = {}
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.longest_minutes = 0.0
        """The most, there, from a round's begin to that of the next: as long a deployment said nothing."""
        self.failed: list[BaseException] = []

    def start(self, name: str, plan: Plan) -> None:
        """A deployment starts, or starts again with another plan; the former workers say nothing any more."""
        fleet = Fleet(replace(plan, server=name), int(self._clock() * 1e9))
        with self._lock:
            self._fleets[name] = fleet

    def end(self, name: str) -> None:
        """A deployment falls silent for good."""
        with self._lock:
            del self._fleets[name]

    def __enter__(self) -> Deployments:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_error: object) -> None:
        self._end.set()
        self._thread.join(60)
        assert kind or not self.failed, self.failed  # what ended it before is told by itself

    def _run(self) -> None:
        last = self._clock()
        with ExitStack() as stack:
            pool = stack.enter_context(ThreadPoolExecutor(SENDERS))
            posters = [
                stack.enter_context(closing(Poster(self._url, ClientSettings()))) for _ in range(SENDERS)
            ]
            while not self._end.wait(max(0.0, (ROUND_S - (self._clock() - last)) / self._clock.scale)):
                now = self._clock()
                with self._lock:
                    fleets = list(self._fleets.values())
                shares = [fleets[first::SENDERS] for first in range(SENDERS)]
                try:
                    list(pool.map(_send, posters, shares, repeat(now - last)))
                except Exception as error:  # noqa: BLE001 the test shows it
                    self.failed.append(error)
                self.longest_minutes = max(self.longest_minutes, (now - last) / 60)
                last = now


def _send(poster: Poster, fleets: list[Fleet], seconds: float) -> None:
    """Let fleets compute for so long, and send what they say."""
    for fleet in fleets:
        for frame in fleet.advance(seconds):
            poster.post(encode_frame(frame))
            fleet.delivered(frame)


@dataclass
class World:
    """All of it, running."""

    deployments: Deployments
    prometheus: Prometheus
    receiver: Receiver
    clock: FastClock
    raised: set[frozenset[tuple[str, str]]] = field(default_factory=set)
    """The labels of all alerts that fired, as often as :meth:`look` looked."""

    def look(self) -> None:
        """Note which alerts fire."""
        answer = self.prometheus.client.get("/api/v1/alerts").json()
        self.raised |= {
            frozenset(item["labels"].items())
            for item in answer["data"]["alerts"]
            if item["state"] == "firing"
        }

    def account(self) -> str:
        """All notifications, a line each, for whom a test fails."""
        lines = [
            f"{found.receiver} {found.status} {sorted(found.labels.values())} {found.names}"
            for found in self.receiver.notifications
        ]
        return "\n".join([*lines, f"the longest round took {self.deployments.longest_minutes:.1f} minutes"])

    def told_of(self, name: str, status: str = "firing") -> list[Notification]:
        """The notifications about a deployment, a pool or an instance."""
        return [
            found
            for found in self.receiver.notifications
            if found.status == status and name in found.labels.values()
        ]


@contextmanager
def world(
    url: str,
    clock: FastClock,
    folder: Path,
    others: tuple[str, ...] = (),
) -> Iterator[World]:
    """Everything around a service with this clock.

    Args:
        url: of the service, which the deployments report to.
        clock: the service's.
        folder: for files of Prometheus and Alertmanager.
        others: addresses of further services that are scraped.
    """
    with ExitStack() as stack:
        receiver = stack.enter_context(closing(Receiver()))
        address = stack.enter_context(
            running_alertmanager(alertmanager_config(receiver.url, clock.scale), folder)
        )
        targets = [urlsplit(each).netloc for each in (url, *others)]
        running = stack.enter_context(prometheus(targets, address, folder, clock))
        deployments = stack.enter_context(Deployments(url, clock))
        yield World(deployments, running, receiver, clock)
