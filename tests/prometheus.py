"""A real Prometheus for tests."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from devkit.processes import free_port


@contextmanager
def running_prometheus(config: str, folder: Path) -> Iterator[httpx.Client]:
    """Prometheus with this configuration file's text and its files in `folder`; a client of its HTTP API."""
    binary = shutil.which("prometheus")
    assert binary is not None, "Prometheus is missing: install the package prometheus"
    (folder / "prometheus.yml").write_text(config)
    port = free_port()
    arguments = [
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([binary, *arguments], stdout=log, stderr=log)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            deadline = time.monotonic() + 60
            while not _is_ready(client):
                assert process.poll() is None, (folder / "log").read_text()
                assert time.monotonic() < deadline, "Prometheus did not start"
                time.sleep(0.1)
            yield client
    finally:
        process.terminate()
        process.wait(60)


def _is_ready(client: httpx.Client) -> bool:
    try:
        return client.get("/-/ready").status_code == 200
    except httpx.TransportError:
        return False
