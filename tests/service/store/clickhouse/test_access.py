"""The way to a server: proxies only when asked for, a private authority by its file."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme

from moescope.service.remote.address import parse_address
from moescope.service.store.clickhouse.access import Access
from moescope.service.store.clickhouse.connection import Connection
from moescope.service.store.records import StoreError


@pytest.fixture
def refusing() -> Iterator[tuple[str, list[bytes]]]:
    """The address of a proxy that lets nothing pass, and what it was asked."""
    asked: list[bytes] = []

    def answer() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                asked.append(connection.recv(65536))
                connection.sendall(
                    b"HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
                )

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=answer, daemon=True).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", asked
        listener.shutdown(socket.SHUT_RDWR)


def test_a_proxy_of_the_environment_sees_no_password(
    url: str, refusing: tuple[str, list[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy, asked = refusing
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy"):
        monkeypatch.setenv(name, proxy)
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    Connection(url).close()
    with pytest.raises(StoreError):
        Connection("clickhouses://127.0.0.1:1/x", sleep=lambda _: None)
    assert asked == []


def test_a_proxy_that_is_asked_for_is_used(url: str, refusing: tuple[str, list[bytes]]) -> None:
    proxy, asked = refusing
    with pytest.raises(StoreError, match="403"):
        Connection(url, sleep=lambda _: None, access=Access(proxy=proxy))
    assert asked[0].startswith(f"POST http://127.0.0.1:{parse_address(url).port}/".encode())


@pytest.fixture
def secure(url: str, tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """The URL of the server behind TLS, and the file of the authority of its certificate."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    plain = parse_address(url)

    def pass_on(source: socket.socket, target: socket.socket) -> None:
        try:
            while data := source.recv(65536):
                target.sendall(data)
        except OSError:
            pass
        finally:
            target.close()

    def serve() -> None:
        while True:
            try:
                raw, _ = listener.accept()
            except OSError:
                return
            try:
                client = context.wrap_socket(raw, server_side=True)
            except OSError:
                continue
            server = socket.create_connection(("127.0.0.1", plain.port))
            for pair in ((client, server), (server, client)):
                threading.Thread(target=pass_on, args=pair, daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=serve, daemon=True).start()
        port = listener.getsockname()[1]
        yield f"clickhouses://127.0.0.1:{port}/{plain.database}", tmp_path / "ca.pem"
        listener.shutdown(socket.SHUT_RDWR)


def test_a_private_authority_is_given_by_its_file(secure: tuple[str, Path]) -> None:
    url, ca_file = secure
    connection = Connection(url, access=Access(ca_file=ca_file))
    assert connection.rows("SELECT toInt64(1)", "i") == [(1,)]
    connection.close()
    with pytest.raises(StoreError, match="certificate verify failed"):
        Connection(url, sleep=lambda _: None)
