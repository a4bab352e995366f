"""Clients who give up: scrapers and pages whose timeout is shorter than an answer of 256 ranks takes."""

from __future__ import annotations

import contextlib
import http.client
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import httpx

from devkit.soak.gate import Options, Outcome
from devkit.soak.serving import Meter, Serving, serving

RANKS: Final = 256
SCRAPERS: Final = 4  # with and without gzip, in text and OpenMetrics
PAGES: Final = 12
SCRAPE_PATIENCE_S: Final = 0.3
PAGE_PATIENCE_S: Final = 1.0
HONEST_S: Final = 5.0
MOST_MIB: Final = 700
GROWTH_MIB: Final = 64
ACCEPTS: Final = ("text/plain", "application/openmetrics-text;version=1.0.0")
QUERIES: Final = (
    "/v1/view?start=-60s",
    "/v1/balance?start=-60s",
    "/v1/histogram",
    "/v1/trend?points=60",
)


@contextlib.contextmanager
def _simulated(service: Serving, log: Path) -> Iterator[None]:
    """A fleet that reports phases and steps; few steps, as making them takes the most time here."""
    command = [sys.executable, "-m", "moescope.service", "simulate", "--url", service.url]
    command += ["--ranks", str(RANKS), "--interval", "5", "--steps", "0.4"]
    with log.open("wb") as output, subprocess.Popen(command, stdout=output, stderr=output) as process:
        try:
            yield
        finally:
            process.terminate()


def _give_up(
    service: Serving, number: int, scrapes: bool, counts: Counter[str], stop: threading.Event
) -> None:
    encoding, accept = ("identity", "gzip")[number % 2], ACCEPTS[number // 2 % 2]
    headers = {"accept-encoding": encoding, "accept": accept} if scrapes else {}
    patience = SCRAPE_PATIENCE_S if scrapes else PAGE_PATIENCE_S
    turn, parts = number, urlsplit(service.url)
    while not stop.wait(0.1):
        path = "/metrics" if scrapes else QUERIES[turn % len(QUERIES)]
        turn += 1
        # Making a client of httpx takes more of the machine than answering it.
        connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=patience)
        try:
            connection.request("GET", path, headers=headers)
            answer = connection.getresponse()
            answer.read()
            counts["answered" if answer.status == 200 else str(answer.status)] += 1
        except (OSError, http.client.HTTPException):
            counts["given up"] += 1
        finally:
            connection.close()


def _scrape(service: Serving) -> float:
    """Seconds of one scrape by a client who waits."""
    began = time.perf_counter()
    answer = httpx.get(f"{service.url}/metrics", timeout=60)
    assert answer.status_code == 200, answer.text[:300]
    return time.perf_counter() - began


def giving_up(options: Options) -> Outcome:
    """Memory, and the time of an honest scrape, while other clients ask and don't wait for the answer."""
    seconds = 20 if options.quick else 180
    counts: Counter[str] = Counter()
    flags = ("--metrics-level", "layer_expert")
    with serving(options.folder, *flags) as service, _simulated(service, options.folder / "simulate.log"):
        time.sleep(30)  # history is full then
        quiet = [_scrape(service) for _ in range(3)]
        before = _memory(service, 10)
        stop = threading.Event()
        threads = [
            threading.Thread(target=_give_up, args=(service, n, n < SCRAPERS, counts, stop))
            for n in range(SCRAPERS + PAGES)
        ]
        meter = Meter(service.process.pid)
        for thread in threads:
            thread.start()
        honest, until = [], time.monotonic() + seconds
        while time.monotonic() < until:
            time.sleep(5)
            honest.append(_scrape(service))
        stop.set()
        for thread in threads:
            thread.join(60)
        meter.stop()
        time.sleep(10)
        after = _memory(service, 10)
    most = max(meter.rss_mib)
    others = {key: count for key, count in counts.items() if key not in ("answered", "given up")}
    passed = most <= MOST_MIB and after - before <= GROWTH_MIB and max(honest) <= HONEST_S and not others
    return Outcome(
        passed and counts["given up"] > counts["answered"] / 10,
        f"{RANKS} ranks, {seconds} s: {counts['given up']} requests given up, {counts['answered']} answered"
        f"{f', others {others}' if others else ''}; memory {before:.0f} MiB before, {most:.0f} at most, "
        f"{after:.0f} after; an honest scrape {min(quiet) * 1e3:.0f} ms before, "
        f"{max(honest) * 1e3:.0f} ms at most",
    )


def _memory(service: Serving, seconds: float) -> float:
    """The most memory that it takes within some seconds, MiB."""
    meter = Meter(service.process.pid)
    time.sleep(seconds)
    meter.stop()
    return max(meter.rss_mib)
