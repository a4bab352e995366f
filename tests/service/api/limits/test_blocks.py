"""Traces over a real connection, block by block: whole, cut off, not read, left, too many."""

from __future__ import annotations

import socket
import sqlite3
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest

from moescope.capture.wire import MoeLayer
from moescope.capture.wire.traces import TRACE_CONTENT_TYPE, encode_part
from moescope.service.api.limits import downloads as downloads_module
from moescope.service.api.limits.downloads import Downloads
from moescope.service.store.worker_trace import WorkerTrace
from tests.service.conftest import Service
from tests.service.trace_parts import part

LAYERS = [MoeLayer(layer, 64, 8) for layer in range(40)]
TOKENS = 7000  # of 640 bytes: five blocks
EXPERTS = [np.full((TOKENS, 8), layer, np.uint8) for layer in range(40)]


@pytest.fixture
def rooms(monkeypatch: pytest.MonkeyPatch) -> list[Downloads]:
    """The room for downloads of each service that is started."""
    made: list[Downloads] = []
    init = Downloads.__init__

    def noted(self: Downloads, *args: Any) -> None:
        init(self, *args)
        made.append(self)

    monkeypatch.setattr(Downloads, "__init__", noted)
    return made


@pytest.fixture
def service(start_service: Callable[..., Service], store_setting: str, rooms: list[Downloads]) -> Service:
    service = start_service(store=store_setting, max_download_mib=16)
    send(service)
    return service


def send(service: Service) -> None:
    body = encode_part(part(1, experts=EXPERTS, layers=LAYERS, tokens=TOKENS))
    answer = service.client.post("/v1/traces", content=body, headers={"content-type": TRACE_CONTENT_TYPE})
    assert answer.status_code == 200, answer.text


class Reads:
    """Blocks of traces that were read from the store; ``before`` is called with their number."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        self.before: Callable[[int], None] = lambda _: None
        for name in ("read", "side_by_side"):
            self._count(monkeypatch, name)

    def _count(self, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        read = getattr(WorkerTrace, name)

        def counted(trace: WorkerTrace, start: int, end: int) -> Any:
            self.count += 1
            self.before(self.count)
            return read(trace, start, end)

        monkeypatch.setattr(WorkerTrace, name, counted)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Reads:
    return Reads(monkeypatch)


def wait_until(holds: Callable[[], bool]) -> None:
    done = threading.Event()
    for _ in range(6000):
        if holds():
            return
        done.wait(0.01)
    raise AssertionError("it did not happen in a minute")


def test_a_raw_trace_says_its_length_and_is_whole(service: Service, rooms: list[Downloads]) -> None:
    answer = service.client.get("/v1/traces/x1.raw")
    assert int(answer.headers["content-length"]) == len(answer.content) == TOKENS * 40 * 8 * 2
    expected = np.broadcast_to(np.arange(40)[:, np.newaxis], (TOKENS, 40, 8))
    np.testing.assert_array_equal(np.frombuffer(answer.content, "<i2").reshape(TOKENS, 40, 8), expected)
    wait_until(lambda: rooms[-1].held_bytes == 0)


@pytest.mark.parametrize("kind", ["raw", "npz", "json", "parquet"])
def test_what_is_removed_while_it_is_sent_is_cut_off_and_frees_its_room(
    start_service: Callable[..., Service],
    tmp_path: Path,
    rooms: list[Downloads],
    reads: Reads,
    caplog: pytest.LogCaptureFixture,
    kind: str,
) -> None:
    service = start_service(store=tmp_path)
    send(service)

    def remove(count: int) -> None:
        if count == 2:
            with sqlite3.connect(tmp_path / "moescope.sqlite", timeout=60) as connection:
                connection.execute("PRAGMA foreign_keys = ON")
                connection.execute("DELETE FROM request")

    reads.before = remove
    if kind == "parquet":  # one row group, which needs both reads: nothing was sent yet
        remove(2)
    with pytest.raises(httpx.RemoteProtocolError) if kind != "parquet" else ExitStack():
        answer = service.client.get(f"/v1/traces/x1.{kind}")
        assert (kind, answer.status_code) == ("parquet", 404)
    wait_until(lambda: rooms[-1].held_bytes == 0)
    if kind != "parquet":
        assert "was removed while it was read" in caplog.text
    assert not [record for record in caplog.records if record.exc_info]


def test_a_head_reads_one_block(service: Service, reads: Reads, rooms: list[Downloads]) -> None:
    assert service.client.head("/v1/traces/x1.raw").headers["x-moescope-shape"] == f"{TOKENS},40,8"
    wait_until(lambda: rooms[-1].held_bytes == 0)
    assert reads.count == 1


def test_clients_that_do_not_read_hold_a_block_each_and_leave_their_room(
    service: Service, rooms: list[Downloads], reads: Reads, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(downloads_module, "PATIENCE_S", 0.05)
    parts = urlsplit(service.url)
    with ExitStack() as stack:
        silent = []
        for _ in range(12):
            reader = stack.enter_context(socket.socket())
            reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            reader.connect((parts.hostname, parts.port))
            reader.sendall(b"GET /v1/traces/x1.raw HTTP/1.1\r\nHost: x\r\n\r\n")
            silent.append(reader)
        with ThreadPoolExecutor(1) as threads:
            honest = threads.submit(httpx.get, f"{service.url}/v1/traces/x1.raw", timeout=60)
            assert len(honest.result().content) == TOKENS * 40 * 8 * 2
        assert rooms[-1].held_bytes <= 16 << 20
        # Five blocks are the whole trace: of what nobody reads no more than the system takes is made.
        assert reads.count < 5 * 13
    wait_until(lambda: rooms[-1].held_bytes == 0)


def test_one_that_leaves_ends(service: Service, rooms: list[Downloads], reads: Reads) -> None:
    begun, left = threading.Event(), threading.Event()

    def hold(count: int) -> None:
        if count == 2:
            begun.set()
            assert left.wait(60)

    reads.before = hold
    parts = urlsplit(service.url)
    with socket.create_connection((parts.hostname, parts.port), timeout=60) as client:
        client.sendall(b"GET /v1/traces/x1.raw HTTP/1.1\r\nHost: x\r\n\r\n")
        client.settimeout(0.05)
        while not begun.is_set():
            with suppress(TimeoutError):
                assert client.recv(1 << 20)
    left.set()
    wait_until(lambda: rooms[-1].held_bytes == 0)
    assert reads.count <= 3


def test_without_room_it_is_said(
    service: Service, rooms: list[Downloads], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rooms[-1], "_taken", 16 << 20)
    monkeypatch.setattr(downloads_module, "WAIT_S", 0.0)
    answer = service.client.get("/v1/traces/x1.raw")
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
    monkeypatch.setattr(rooms[-1], "_most", 1 << 10)
    answer = service.client.get("/v1/traces/x1.raw")
    assert (answer.status_code, answer.json()["type"]) == (400, "urn:moescope:problem:too-large")
