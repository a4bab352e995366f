"""A full disk under a running service: it says so, serves on, and keeps everything again when there is space.

A limit on the size of files stands for the disk, since it can be set and taken away from outside; `make soak`
does the same with a small file system of its own.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from pathlib import Path

import httpx

from moescope.capture import wire
from tests.service.frames import frame

EXPERTS = 512


def start(folder: Path, log: Path) -> tuple[subprocess.Popen[bytes], str]:
    """`moescope serve`, and its address."""
    command = [sys.executable, "-m", "moescope.service", "serve", "--port", "0", "--store", str(folder)]
    with log.open("wb") as output:
        process = subprocess.Popen(command, stderr=output, stdout=output)
    deadline = time.monotonic() + 60
    while "serves at " not in log.read_text():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return process, log.read_text().partition("serves at ")[2].split()[0]


def push(client: httpx.Client, seq: int) -> int:
    counts = {layer: [seq * (e + layer + 1) for e in range(EXPERTS)] for layer in range(4)}
    body = wire.encode_frame(frame(counts, top_k=1, seq=seq, after_s=seq))
    return client.post("/v1/ingest", content=body, headers={"content-type": wire.CONTENT_TYPE}).status_code


def first_expert(client: httpx.Client) -> int:
    found: int = client.get("/v1/histogram").json()["layers"][0]["counts"][0]
    return found


def test_a_full_disk_is_said_and_survived(tmp_path: Path) -> None:
    log = tmp_path / "log"
    process, url = start(tmp_path / "store", log)
    try:
        with httpx.Client(base_url=url, timeout=60) as client:
            assert push(client, 1) == 200
            used = max(file.stat().st_size for file in (tmp_path / "store").iterdir())
            full = (used + 60_000, resource.RLIM_INFINITY)
            before = resource.prlimit(process.pid, resource.RLIMIT_FSIZE, full)
            seq = 1
            while (status := push(client, seq + 1)) == 200:
                seq += 1
                assert seq < 200, "the limit does not bite"
            assert status == 503
            problem = client.get("/v1/histogram")
            assert problem.status_code == 200, "what is in memory is answered"
            assert client.get("/metrics").status_code == 200
            ready = client.get("/readyz")
            assert (ready.status_code, "is its disk full" in ready.json()["detail"]) == (503, True), (
                ready.text
            )
            assert push(client, seq + 2) == 503
            resource.prlimit(process.pid, resource.RLIMIT_FSIZE, before)
            seq += 3
            assert push(client, seq) == 200, "there is space again"
            assert client.get("/readyz").status_code == 200
            assert first_expert(client) == seq
    finally:
        process.kill()
        process.wait()
    assert log.read_text().count("the store failed (logged once a minute)") == 1
    again, url = start(tmp_path / "store", tmp_path / "log2")
    try:
        with httpx.Client(base_url=url, timeout=60) as client:
            assert first_expert(client) == seq
    finally:
        again.terminate()
        assert again.wait(60) == 0
