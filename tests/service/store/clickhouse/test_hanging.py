"""A server that is silent: the service says that it isn't ready, goes on by itself, and ends when told to."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from devkit.soak.proxy import TcpProxy
from moescope.capture import wire
from moescope.service.remote.address import parse_address
from tests.service.conftest import Service
from tests.service.frames import EPOCH, frame
from tests.waiting import PATIENCE_S, wait_until


@pytest.fixture
def proxy(clickhouse: str) -> Iterator[TcpProxy]:
    with TcpProxy(parse_address(clickhouse).port) as made:
        yield made


def store_behind(proxy: TcpProxy) -> str:
    """The setting of an empty store."""
    return f"clickhouse://127.0.0.1:{urlsplit(proxy.url).port}/test_{uuid.uuid4().hex}"


@contextmanager
def serving(proxy: TcpProxy, log: Path, timeout_s: float) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """`moescope serve` with a store behind the proxy, and its address."""
    command = [sys.executable, "-m", "moescope.service", "serve", "--port", "0"]
    environment = {"MOESCOPE_CLICKHOUSE_TIMEOUT_S": str(timeout_s), "MOESCOPE_STORE": store_behind(proxy)}
    with (
        log.open("wb") as output,
        subprocess.Popen(command, stderr=output, stdout=output, env=environment) as process,
    ):
        try:
            wait_until(lambda: "serves at " in log.read_text(), log.read_text)
            yield process, log.read_text().partition("serves at ")[2].split()[0]
        finally:
            process.kill()


def push(url: str, seq: int) -> int:
    body = wire.encode_frame(frame({1: [10 * seq, 0]}, seq=seq, epoch=EPOCH, after_s=seq))
    headers = {"content-type": wire.CONTENT_TYPE}
    try:
        return httpx.post(f"{url}/v1/ingest", content=body, headers=headers, timeout=PATIENCE_S).status_code
    except httpx.TransportError:
        return 0


def test_the_end_does_not_wait_for_a_server_that_is_silent(proxy: TcpProxy, tmp_path: Path) -> None:
    """Two frames wait for it, and a question."""
    log = tmp_path / "log"
    with serving(proxy, log, timeout_s=300) as (process, url):
        assert push(url, 1) == 200
        proxy.partition()
        answers: list[int] = []

        def ask() -> None:
            try:
                answers.append(httpx.get(f"{url}/v1/traces", timeout=PATIENCE_S).status_code)
            except httpx.TransportError:
                answers.append(0)

        waiting = [threading.Thread(target=lambda seq=seq: answers.append(push(url, seq))) for seq in (2, 3)]
        waiting.append(threading.Thread(target=ask))
        for thread in waiting:
            thread.start()
        wait_until(
            lambda: httpx.get(f"{url}/readyz").status_code == 503, "a server that hangs is not noticed"
        )
        assert "has not answered for" in httpx.get(f"{url}/readyz").json()["detail"]
        began = time.monotonic()
        process.terminate()
        assert process.wait(PATIENCE_S) == 0
        lasted = time.monotonic() - began
        for thread in waiting:
            thread.join(PATIENCE_S)
        assert lasted < 30, "of 300 seconds of silence"
        assert 200 not in answers, "nothing was kept, so nothing is acknowledged"
    told = log.read_text()
    assert (
        "2 frames, 0 parts of traces and 0 documents that came to it are not known to be in the store" in told
    )
    assert "Traceback" not in told


def test_a_service_is_ready_again_as_soon_as_its_server_answers(
    start_service: Callable[..., Service], proxy: TcpProxy
) -> None:
    """Nobody sends it a frame meanwhile: a balancer sends nothing to who isn't ready."""
    url = start_service(store=store_behind(proxy), clickhouse_timeout_s=4).url
    assert push(url, 1) == 200
    assert httpx.get(f"{url}/readyz").status_code == 200
    proxy.partition()
    assert push(url, 2) == 503
    answer = httpx.get(f"{url}/readyz")
    assert answer.status_code == 503
    assert answer.json()["type"] == "urn:moescope:problem:not-ready"
    assert "failed" in answer.json()["detail"]
    assert "moescope_store_ready 0.0" in httpx.get(f"{url}/metrics").text
    proxy.heal()
    wait_until(lambda: httpx.get(f"{url}/readyz").status_code == 200, "it is never ready again")
    assert "moescope_store_ready 1.0" in httpx.get(f"{url}/metrics").text
    assert push(url, 3) == 200
