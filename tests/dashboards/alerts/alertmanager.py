"""A real Alertmanager with the shipped configuration, and a receiver of its notifications."""

from __future__ import annotations

import json
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx

from devkit.processes import free_port

CONFIG = Path(__file__).parents[3] / "deploy" / "alertmanager" / "alertmanager.yml"
AT_HOME = "http://127.0.0.1:5001"
"""Where the shipped configuration has its receivers."""


@dataclass(frozen=True)
class Notification:
    """One call of a webhook, as Alertmanager makes it."""

    receiver: str
    status: str
    labels: dict[str, str]
    alerts: tuple[dict[str, Any], ...]
    at: float

    @property
    def names(self) -> list[str]:
        """Names of the alerts in it, of those that fire if any does."""
        wanted = [item for item in self.alerts if item["status"] == self.status]
        return sorted(item["labels"]["alertname"] for item in wanted)


class Receiver:
    """An HTTP server that keeps what it is sent."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: list[Notification] = []
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                receiver.keep(body)
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_arguments: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})
        self._thread.start()

    def keep(self, body: dict[str, Any]) -> None:
        found = Notification(
            body["receiver"], body["status"], body["groupLabels"], tuple(body["alerts"]), time.monotonic()
        )
        with self._lock:
            self._kept.append(found)

    @property
    def notifications(self) -> list[Notification]:
        """All that came, in order."""
        with self._lock:
            return list(self._kept)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(10)


@contextmanager
def running_alertmanager(config: str, folder: Path) -> Iterator[str]:
    """Alertmanager with this configuration's text; its address, as Prometheus takes it."""
    binary = shutil.which("prometheus-alertmanager") or shutil.which("alertmanager")
    assert binary is not None, "Alertmanager is missing: install the package prometheus-alertmanager"
    (folder / "alertmanager.yml").write_text(config)
    address = f"127.0.0.1:{free_port()}"
    arguments = [
        f"--config.file={folder / 'alertmanager.yml'}",
        f"--storage.path={folder / 'alertmanager'}",
        f"--web.listen-address={address}",
        "--cluster.listen-address=",
    ]
    with (folder / "alertmanager.log").open("wb") as log:
        process = subprocess.Popen([binary, *arguments], stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 60
        while not _is_ready(address):
            assert process.poll() is None, (folder / "alertmanager.log").read_text()
            assert time.monotonic() < deadline, "Alertmanager did not start"
            time.sleep(0.1)
        yield address
    finally:
        process.terminate()
        process.wait(60)


def _is_ready(address: str) -> bool:
    try:
        return httpx.get(f"http://{address}/-/ready", timeout=60).status_code == 200
    except httpx.TransportError:
        return False
