"""`moescope serve` as an operator starts it, and what it takes of the machine."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import numpy as np
import psutil

from devkit.processes import free_port


@dataclass
class Serving:
    """A running service."""

    url: str
    process: subprocess.Popen[bytes]
    log: Path
    ready_s: float

    @property
    def text(self) -> str:
        """The service's log."""
        return self.log.read_text()


@contextlib.contextmanager
def serving(
    folder: Path, *flags: str, store: Path | None = None, port: int | None = None
) -> Iterator[Serving]:
    """A service on loopback; killed at the end if it still runs."""
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / f"serve-{time.time_ns()}.log"
    port = free_port() if port is None else port
    command = [sys.executable, "-m", "moescope.service", "serve", "--port", str(port), *flags]
    command += ["--no-store"] if store is None else ["--store", str(store)]
    began = time.monotonic()
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output)
    url = f"http://127.0.0.1:{port}"
    try:
        while True:
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"{url}/readyz", timeout=5).status_code == 200:
                    break
            assert process.poll() is None, f"the service ended: {log.read_text()}"
            assert time.monotonic() - began < 240, "the service did not start"
            time.sleep(0.02)
        yield Serving(url, process, log, time.monotonic() - began)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


@dataclass
class Meter:
    """Samples memory and CPU of a process once a second, from a thread of its own."""

    pid: int
    at: list[float] = field(default_factory=list)
    rss_mib: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Sample no more."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        process = psutil.Process(self.pid)
        while True:
            with contextlib.suppress(psutil.Error):
                times = process.cpu_times()
                self.rss_mib.append(process.memory_info().rss / 2**20)
                self.cpu_s.append(times.user + times.system)
                self.at.append(time.monotonic())
            if self._stop.wait(1):
                return

    @property
    def cores(self) -> float:
        """CPU seconds a second."""
        return (self.cpu_s[-1] - self.cpu_s[0]) / (self.at[-1] - self.at[0])

    def slope(self, since: float) -> float:
        """Growth of the memory from this share of the time on, MiB a minute, by least squares."""
        first = int(len(self.at) * since)
        minutes = np.array(self.at[first:]) / 60
        return float(np.polyfit(minutes - minutes[0], self.rss_mib[first:], 1)[0])


def percentile(values: list[float], share: float) -> float:
    """A percentile of some times, in milliseconds."""
    return float(np.percentile(values, share)) * 1e3 if values else float("nan")
