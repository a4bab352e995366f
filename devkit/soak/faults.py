"""Ends, damage, full disks and slow clients."""

from __future__ import annotations

import socket
import subprocess
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import httpx

from devkit.soak.gate import Options, Outcome
from devkit.soak.load import TOKENS_A_FRAME, Fleet, Rank, drive
from devkit.soak.serving import serving
from moescope.capture import wire
from tests.service.store.sqlite import damage as damaging
from tests.service.store.sqlite import kills as killing

READY_S: Final = 5.0
END_S: Final = 5.0


def kills(options: Options) -> Outcome:
    """kill -9 at random moments while frames and traces come."""
    count = options.cases(50)
    slowest = killing.kill_and_check(options.folder / "kills", count)
    return Outcome(
        slowest <= READY_S,
        f"{count} kills: every acknowledged frame and trace was there, none doubled; ready in "
        f"{slowest:.1f} s at "
        "most",
    )


def damage(options: Options) -> Outcome:
    """Bit flips, truncations and overwritten pages of a store's file, then a service on some of them."""
    whole = damaging.whole_store(Path(tempfile.mkdtemp(dir=options.folder)))
    count, kept = options.cases(100), Counter()
    for seed in range(count):
        folder = Path(tempfile.mkdtemp(dir=options.folder))
        accounts, traces = damaging.damage(folder, whole, seed)
        kept["accounts"] += accounts
        kept["traces"] += traces
    slowest, served = 0.0, options.cases(20)
    for seed in range(served):
        folder = Path(tempfile.mkdtemp(dir=options.folder))
        damaging.break_file(folder, whole, seed)
        with serving(folder, store=folder) as service:
            slowest = max(slowest, service.ready_s)
    return Outcome(
        slowest <= READY_S,
        f"{count} damaged files: all opened and went on, of their accounts {kept['accounts']} of "
        f"{count * damaging.RANKS} and of their traces {kept['traces']} of "
        f"{count * damaging.TRACES} were "
        f"kept; a service on {served} of them was ready in {slowest:.1f} s at most",
    )


def full_disk(options: Options) -> Outcome:
    """A file system of 12 MiB that fills up under the service, then gets room."""
    disk = options.folder / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", str(disk)], capture_output=True, check=False
    )
    if mounted.returncode:
        return Outcome(False, "not run: this user may not mount a file system; a test does it with a limit")
    try:
        return _fill(options, disk)
    finally:
        subprocess.run(["umount", str(disk)], check=False)


def _fill(options: Options, disk: Path) -> Outcome:
    store, ballast = disk / "store", disk / "ballast"
    rank = Rank(Fleet(1, 16, 256, 1), 0, time.time_ns())
    with serving(options.folder, store=store) as service, httpx.Client(base_url=service.url) as client:
        assert _post(client, rank) == 200
        with suppress(OSError):
            ballast.write_bytes(b"x" * (32 << 20))
        statuses = [_post(client, rank) for _ in range(200)]
        assert statuses[-1] == 503, "the disk did not fill up"
        assert client.get("/metrics").status_code == 200
        assert "the store failed" in service.text
        service.process.kill()
        service.process.wait()
    try:
        with serving(options.folder, store=store) as service:
            start = f"is ready in {service.ready_s:.1f} s"
    except AssertionError as error:
        start = f"ends with its reason ({str(error).strip().splitlines()[-1]})"
    ballast.unlink()
    with serving(options.folder, store=store) as service, httpx.Client(base_url=service.url) as client:
        assert _post(client, rank) == 200
        loads = client.get("/v1/balance").json()["dp_tokens"]["loads"]
        assert loads == [rank.sent * TOKENS_A_FRAME]
    return Outcome(
        True,
        f"full: {statuses.count(503)} frames got 503, the log says why, /metrics answers; a start "
        f"on a full disk "
        f"{start}; with room again all totals are there",
    )


def _post(client: httpx.Client, rank: Rank) -> int:
    headers = {"content-type": wire.CONTENT_TYPE}
    return client.post("/v1/ingest", content=rank.next(), headers=headers, timeout=30).status_code


def shutdown(options: Options) -> Outcome:
    """SIGTERM under load, with half-open connections and someone who follows /v1/live."""
    times = []
    for _ in range(options.cases(20)):
        store = Path(tempfile.mkdtemp(dir=options.folder))
        with serving(options.folder, store=store) as service, half_open(service.url, 50, b"GET /"):
            live = threading.Thread(target=_follow, args=(service.url,))
            live.start()
            ending = threading.Thread(target=_end_soon, args=(service.process, times))
            ending.start()
            _, ranks = drive(service, Fleet(4, 16, 256, 10), 2.0)
            ending.join()
            live.join()
            assert service.process.returncode == 0, service.text
            assert "Traceback" not in service.text, service.text
        with serving(options.folder, store=store) as service:
            loads = httpx.get(f"{service.url}/v1/balance").json()["dp_tokens"]["loads"]
            for rank, tokens in zip(ranks, loads, strict=True):
                assert rank.acknowledged * TOKENS_A_FRAME <= tokens <= rank.sent * TOKENS_A_FRAME
    return Outcome(
        max(times) <= END_S,
        f"{len(times)} ends under load: {max(times):.1f} s at most, nothing acknowledged lost",
    )


def _end_soon(process: subprocess.Popen[bytes], times: list[float]) -> None:
    time.sleep(1.2)
    began = time.monotonic()
    process.terminate()
    process.wait(30)
    times.append(time.monotonic() - began)


def _follow(url: str) -> None:
    with suppress(httpx.TransportError), httpx.stream("GET", f"{url}/v1/live", timeout=30) as answer:
        for _ in answer.iter_lines():
            pass


def slow_clients(options: Options) -> Outcome:
    """500 half-open connections of each kind, renewed as they are cut off, and scrapes beside them."""
    slowest = 0.0
    head = f"POST /v1/ingest HTTP/1.1\r\nHost: x\r\nContent-Type: {wire.CONTENT_TYPE}\r\n".encode()
    kinds = (b"", b"GET /metrics HTTP/1.1\r\nHost: x\r\n", head + b"Content-Length: 99\r\n\r\nx")
    until = time.monotonic() + options.cases(60)
    with serving(options.folder) as service:
        drive(service, Fleet(16, 58, 256, 1), 3)
        while time.monotonic() < until:
            for first in kinds:
                with half_open(service.url, 500, first):
                    for _ in range(5):
                        began = time.monotonic()
                        answer = httpx.get(f"{service.url}/metrics", timeout=30)
                        slowest = max(slowest, time.monotonic() - began)
                        assert answer.status_code == 200
                        time.sleep(0.3)
    return Outcome(slowest <= 1, f"slowest honest scrape of 16 ranks x 58 layers: {slowest * 1e3:.0f} ms")


@contextmanager
def half_open(url: str, count: int, first: bytes) -> Iterator[None]:
    """Connections, as many as asked for, each of which has sent the beginning of something."""
    parts = urlsplit(url)
    with ExitStack() as stack:
        for _ in range(count):
            made = stack.enter_context(socket.create_connection((parts.hostname, parts.port), timeout=10))
            made.sendall(first)
        yield
