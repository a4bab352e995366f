"""Clients that are slow on purpose: none of them keeps an honest one waiting, none stays for ever."""

from __future__ import annotations

import contextlib
import select
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from devkit.processes import free_port
from moescope.capture import wire
from moescope.service.serving import connections
from tests.service.conftest import Service
from tests.service.frames import frame
from tests.waiting import PATIENCE_S, wait_until

HALF_OPEN = 500
NEVER_S = 10 * PATIENCE_S
INGEST = f"POST /v1/ingest HTTP/1.1\r\nHost: x\r\nContent-Type: {wire.CONTENT_TYPE}\r\n".encode()


@contextlib.contextmanager
def half_open(service: Service, count: int, first: bytes) -> Iterator[list[socket.socket]]:
    """So many connections that have sent the beginning of something."""
    parts = urlsplit(service.url)
    with contextlib.ExitStack() as stack:
        made = []
        for _ in range(count):
            connection = stack.enter_context(
                socket.create_connection((parts.hostname, parts.port), timeout=60)
            )
            connection.sendall(first)
            made.append(connection)
        yield made


def ended(connection: socket.socket) -> bool:
    """Whether the service has hung up, waiting up to the socket's timeout for each piece before it."""
    try:
        while connection.recv(65536):
            pass
        return True
    except ConnectionResetError:
        return True
    except TimeoutError:
        return False


def assert_answers_a_scrape(service: Service) -> None:
    """A new client's scrape is answered before anything below that takes a minute has ended."""
    assert httpx.get(f"{service.url}/metrics", timeout=PATIENCE_S).status_code == 200


@pytest.mark.parametrize(
    "first",
    [b"", b"GET /metrics HTTP/1.1\r\nHost: x\r\n", INGEST + b"Content-Length: 9\r\n\r\n123"],
    ids=["silent", "in the head", "in the body"],
)
def test_an_honest_scrape_is_answered_among_500_half_open_connections(
    start_service: Callable[..., Service], first: bytes
) -> None:
    settings = {"max_bodies_per_client": HALF_OPEN + 1}
    service = start_service(header_timeout_s=NEVER_S, body_timeout_s=NEVER_S, **settings)
    service.push(frame({0: [1, 1]}))
    with half_open(service, HALF_OPEN, first):
        for _ in range(5):
            assert_answers_a_scrape(service)
        assert service.push(frame({0: [2, 2]}, seq=2)).status_code == 200
    service = start_service(header_timeout_s=1, body_timeout_s=1, **settings)
    with half_open(service, HALF_OPEN, first) as made:
        gone = 0
        for connection in made:
            connection.settimeout(60)
            data = b""
            with contextlib.suppress(ConnectionResetError):
                data = connection.recv(65536)  # those in the body get an answer first
            gone += not data or b" 408 " in data or b" 429 " in data
        assert gone == HALF_OPEN


def test_a_head_that_trickles_has_one_deadline(start_service: Callable[..., Service]) -> None:
    service = start_service(header_timeout_s=0.6)
    began = time.monotonic()
    with (
        half_open(service, 1, b"GET / HTTP/1.1\r\n") as [connection],
        contextlib.suppress(ConnectionError),
    ):
        while time.monotonic() - began < 30:
            connection.sendall(b"X: y\r\n")
            time.sleep(0.05)
    assert 0.5 < time.monotonic() - began < 25


ENDLESS = {
    "heads": (b"GET /metrics HTTP/1.1\r\nHost: x\r\n", b"X-%d: " + b"y" * 4000 + b"\r\n"),
    "one header": (b"GET /metrics HTTP/1.1\r\nHost: x\r\nX: ", b"y" * 4000),
    "path": (b"GET /metrics?", b"y" * 4000),
    "trailers": (
        INGEST + b"Transfer-Encoding: chunked\r\n\r\n1\r\nz\r\n0\r\n",
        b"X-%d: " + b"y" * 4000 + b"\r\n",
    ),
}


# Far above the bound: what is sent waits in the system's buffers while the service gets no processor.
_TOO_MUCH = 1 << 24


@pytest.mark.parametrize("kind", ENDLESS)
def test_a_head_without_end_is_cut_off_before_it_takes_memory(
    start_service: Callable[..., Service], kind: str
) -> None:
    service = start_service(header_timeout_s=30, body_timeout_s=30)
    first, more = ENDLESS[kind]
    sent = 0
    with half_open(service, 1, first) as [connection]:
        with contextlib.suppress(ConnectionError):
            while sent < _TOO_MUCH:
                piece = more.replace(b"%d", str(sent).encode())
                connection.sendall(piece)
                sent += len(piece)
                time.sleep(0.001)
        assert connections.MAX_HEAD - 8000 < sent < _TOO_MUCH
        connection.settimeout(60)
        with contextlib.suppress(ConnectionError):
            assert ended(connection)


def test_large_bodies_and_many_requests_are_no_large_heads(start_service: Callable[..., Service]) -> None:
    service = start_service(max_frames_per_s=1000)
    wide = {layer: [1] * 512 for layer in range(60)}
    for seq in range(1, 4):
        assert service.push(frame(wide, top_k=512, seq=seq)).status_code == 200  # 240 KB, on one connection
    ask = b"GET /healthz HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 3000 + b"\r\n\r\n"
    with half_open(service, 1, b"") as [connection]:
        for _ in range(40):
            connection.sendall(ask)
            assert b"200 OK" in connection.recv(65536)


def test_the_other_parser_has_such_bounds_too(tmp_path: Path) -> None:
    """Where httptools can't be had uvicorn takes h11."""
    port = free_port()
    program = (
        "import sys; sys.modules['httptools'] = None; from moescope.service.cli import main; "
        f"sys.argv[1:] = ['serve', '--port', '{port}']; main()"
    )
    with (
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client,
        subprocess.Popen([sys.executable, "-c", program], cwd=tmp_path, stderr=subprocess.DEVNULL) as process,
    ):
        try:
            while True:
                with contextlib.suppress(httpx.TransportError):
                    if client.get("/readyz").status_code == 200:
                        break
                assert process.poll() is None
                time.sleep(0.05)
            body = wire.encode_frame(frame({layer: [1] * 512 for layer in range(60)}, top_k=512))
            headers = {"content-type": wire.CONTENT_TYPE}
            for _ in range(2):
                assert client.post("/v1/ingest", content=body, headers=headers).status_code == 200
            with contextlib.suppress(httpx.TransportError):
                assert client.get("/healthz", headers={"x": "y" * 2_000_000}).status_code == 400
        finally:
            process.kill()


def test_a_kept_connection_may_idle_but_its_next_head_has_a_deadline(
    start_service: Callable[..., Service],
) -> None:
    service = start_service(header_timeout_s=1.5)  # a busy machine takes a while from connecting to sending
    with half_open(service, 1, b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n") as [connection]:
        assert b"200 OK" in connection.recv(65536)
        time.sleep(2)
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b"200 OK" in connection.recv(65536)
        began = time.monotonic()
        connection.sendall(b"GET /healthz HT")
        connection.settimeout(60)
        assert ended(connection)
        assert 0.3 < time.monotonic() - began < 25


def test_beyond_max_connections_those_that_ask_nothing_go_first(
    start_service: Callable[..., Service],
) -> None:
    service = start_service(max_connections=16, header_timeout_s=NEVER_S)
    assert service.client.get("/healthz").status_code == 200  # a kept connection
    with half_open(service, 20, b"GET") as made:
        time.sleep(0.2)
        assert service.client.get("/healthz").status_code == 200
        assert_answers_a_scrape(service)
        for connection in made:
            connection.settimeout(0.05)
        wait_until(lambda: sum(ended(connection) for connection in made) >= 5, "too many are still open")


def test_who_does_not_read_its_answer_is_cut_off(
    start_service: Callable[..., Service], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "STALL_S", 0.3)
    service = start_service()
    for layer_ranks in range(4):
        counts = {layer: [1] * 512 for layer in range(40)}
        who = wire.Producer(server="prod", model="tiny", dp_rank=layer_ranks, dp_size=4)
        assert service.push(frame(counts, top_k=512, who=who)).status_code == 200
    parts = urlsplit(service.url)
    with socket.socket() as reader:
        reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        reader.settimeout(60)
        reader.connect((parts.hostname, parts.port))
        ask = b"GET /v1/histogram HTTP/1.1\r\nHost: x\r\n\r\n"
        reader.sendall(ask * 60)
        time.sleep(1.5)
        assert ended(reader)
    assert_answers_a_scrape(service)


@pytest.mark.parametrize(("max_unread_mib", "some_go"), [(16, True), (256, False)])
def test_answers_that_wait_to_be_read_share_a_budget(
    start_service: Callable[..., Service],
    caplog: pytest.LogCaptureFixture,
    max_unread_mib: int,
    some_go: bool,
) -> None:
    service = start_service(max_unread_mib=max_unread_mib)
    counts = {layer: [10**12] * 4096 for layer in range(120)}
    assert service.push(frame(counts, top_k=512)).status_code == 200
    # More than the system takes of each: the rest waits in the service.
    with half_open(service, 12, b"GET /v1/histogram HTTP/1.1\r\nHost: x\r\n\r\n") as made:
        deadline = time.monotonic() + 60
        while not _all_answered(made):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        for connection in made:
            connection.settimeout(0.3)
        went = [ended(connection) for connection in made]
    assert any(went) == some_go
    assert not all(went)
    assert not [record for record in caplog.records if record.exc_info]


def _all_answered(made: list[socket.socket]) -> bool:
    """Whether each has the beginning of its answer, of which nothing is read here."""
    return len(select.select(made, [], [], 0)[0]) == len(made)


def test_bodies_that_arrive_share_a_budget(start_service: Callable[..., Service]) -> None:
    service = start_service(max_waiting_mib=1, max_body_mib=8)
    with half_open(service, 4, INGEST + b"Content-Length: 400000\r\n\r\n" + b"\0" * 300_000) as made:
        answers = []
        assert select.select(made, [], [], PATIENCE_S)[0], "none is refused"
        for connection in made:
            connection.settimeout(0.5)
            with contextlib.suppress(TimeoutError):
                answers.append(connection.recv(65536))
        assert len(answers) == 1, "one too many, and no more than one"
        assert b" 503 " in answers[0]
        assert b"retry-after" in answers[0].lower()
    # Once the service has seen that those went away there is room again.
    wait_until(lambda: service.push(frame({0: [1, 1]})).status_code == 200, "there is no room")


def test_bodies_of_one_address_have_a_limit(start_service: Callable[..., Service]) -> None:
    service = start_service(max_bodies_per_client=3)
    with half_open(service, 3, INGEST + b"Content-Length: 9\r\n\r\n"):
        wait_until(lambda: service.push(frame({0: [1, 1]})).status_code == 429, "there is no limit")
        answer = service.push(frame({0: [1, 1]}))
        assert answer.status_code == 429
        assert answer.headers["retry-after"] == "1"
        assert "max_bodies_per_client" in answer.json()["detail"]
    wait_until(lambda: service.push(frame({0: [1, 1]})).status_code == 200, "the limit stays reached")


def test_a_producer_that_floods_is_told_to_wait_and_others_are_not(
    start_service: Callable[..., Service],
) -> None:
    service = start_service(max_frames_per_s=0.01)  # two at once, then one in 100 s
    answers = [service.push(frame({0: [n, n]}, seq=n)) for n in range(1, 5)]
    assert [answer.status_code for answer in answers] == [200, 200, 429, 429]
    assert 30 < int(answers[-1].headers["retry-after"]) <= 100
    assert "MOESCOPE_INTERVAL" in answers[-1].json()["detail"]
    who = wire.Producer(server="prod", model="tiny", dp_rank=1, dp_size=2)
    assert service.push(frame({0: [1, 1]}, who=who)).status_code == 200
