"""TLS and mutual TLS between a real service, a real capturer's transport and the command line."""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Callable
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
import trustme

from moescope.capture.delivery.transport import DeliveryError, HttpTransport
from moescope.capture.settings.access import NO_ACCESS, Access
from moescope.capture.settings.environment import CaptureSettings, SettingsError
from moescope.capture.wire import encode_frame
from moescope.service.client.http import ServiceUnavailableError, get_json
from moescope.service.serving.tls import TlsError
from tests.service.conftest import Service
from tests.service.frames import frame
from tests.waiting import wait_until


@dataclass
class Files:
    """An authority, with certificates of a server and of a client."""

    authority: trustme.CA
    folder: Path

    def path(self, name: str) -> Path:
        return self.folder / f"{name}.pem"

    def issue(self, name: str, identity: str) -> None:
        made = self.authority.issue_cert(identity)
        made.private_key_and_cert_chain_pem.write_to_path(str(self.path(name)))


@pytest.fixture
def files(tmp_path: Path) -> Files:
    made = Files(trustme.CA(), tmp_path)
    made.authority.cert_pem.write_to_path(str(made.path("ca")))
    made.issue("server", "127.0.0.1")
    made.issue("client", "vllm@example.org")
    return made


def send(url: str, access: Access = NO_ACCESS) -> None:
    with closing(HttpTransport(url, None, access=access)) as transport:
        transport.post(encode_frame(frame({0: [1, 1]})))


def secure(service: Service) -> str:
    return service.url.replace("http://", "https://")


def test_frames_come_over_tls_that_is_checked(start_service: Callable[..., Service], files: Files) -> None:
    service = start_service(tls_cert=files.path("server"))
    send(secure(service), Access(ca_file=files.path("ca")))
    with pytest.raises(DeliveryError, match="CERTIFICATE_VERIFY_FAILED") as caught:
        send(secure(service))
    assert not caught.value.permanent
    with pytest.raises(DeliveryError, match="can't be reached"):
        send(service.url)
    with pytest.raises(ServiceUnavailableError, match=r"is not trusted .*MOESCOPE_CA_FILE"):
        get_json(secure(service), "/v1/ranks", {})


def test_with_mutual_tls_only_known_clients_get_anything(
    start_service: Callable[..., Service], files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = start_service(tls_cert=files.path("server"), tls_client_ca=files.path("ca"))
    access = Access(ca_file=files.path("ca"), cert_file=files.path("client"))
    send(secure(service), access)
    with pytest.raises(DeliveryError, match="can't be reached"):
        send(secure(service), Access(ca_file=files.path("ca")))
    monkeypatch.setenv("MOESCOPE_CA_FILE", str(files.path("ca")))
    with pytest.raises(ServiceUnavailableError):
        get_json(secure(service), "/v1/ranks", {})
    monkeypatch.setenv("MOESCOPE_CERT_FILE", str(files.path("client")))
    assert get_json(secure(service), "/v1/ranks", {})["deployments"]


def test_a_renewed_certificate_is_used_without_a_restart(
    start_service: Callable[..., Service], files: Files
) -> None:
    service = start_service(tls_cert=files.path("server"))
    context = ssl.create_default_context(cafile=files.path("ca"))

    def serial() -> str:
        with (
            httpx.Client(verify=context, timeout=60) as client,
            client.stream("GET", f"{secure(service)}/healthz") as answer,
        ):
            found = answer.extensions["network_stream"].get_extra_info("ssl_object").getpeercert()
            return str(found["serialNumber"])

    first = serial()
    files.issue("server", "127.0.0.1")
    deadline = time.monotonic() + 60
    while serial() == first:
        assert time.monotonic() < deadline, "the new certificate is not used"
        time.sleep(0.05)
    files.path("server").write_text("no certificate")  # and a bad one doesn't take the good one away
    time.sleep(1.2)  # it is looked at once a second
    assert serial() != first


def test_files_that_can_not_be_used_are_named(start_service: Callable[..., Service], files: Files) -> None:
    with pytest.raises(TlsError, match=r"tls_cert .*none\.pem"):
        start_service(tls_cert=files.path("none"))
    files.path("bad").write_text("bad")
    with pytest.raises(TlsError, match="tls_client_ca"):
        start_service(tls_cert=files.path("server"), tls_client_ca=files.path("bad"))
    with pytest.raises(SettingsError, match="MOESCOPE_CA_FILE"):
        CaptureSettings.from_environment({"MOESCOPE_CA_FILE": str(files.path("bad"))})
    with pytest.raises(SettingsError, match="MOESCOPE_KEY_FILE: it needs MOESCOPE_CERT_FILE"):
        CaptureSettings.from_environment({"MOESCOPE_KEY_FILE": str(files.path("client"))})


def test_a_worker_reads_a_replaced_token(start_service: Callable[..., Service], tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("the-old-token")
    service = start_service(token="the-new-token")
    environment = {"MOESCOPE_TOKEN_FILE": str(path), "MOESCOPE_ENDPOINT": service.url}
    settings = CaptureSettings.from_environment(environment)
    transport = HttpTransport(settings.endpoint, settings.token, access=settings.access)
    body = encode_frame(frame({0: [1, 1]}))
    path.write_text("the-new-token\n")
    with pytest.raises(DeliveryError, match="401"):
        transport.post(body)
    transport.post(body)
    transport.close()


def _said(caplog: pytest.LogCaptureFixture, words: str) -> None:
    wait_until(lambda: words in caplog.text, lambda: caplog.text)


def test_each_handshake_that_fails_is_told_on_both_sides(
    start_service: Callable[..., Service], files: Files, caplog: pytest.LogCaptureFixture
) -> None:
    authority = {"ca_file": files.path("ca")}
    mutual = {"tls_cert": files.path("server"), "tls_client_ca": files.path("ca")}
    service = start_service(**mutual)
    with pytest.raises(DeliveryError, match="MOESCOPE_CERT_FILE"):
        send(secure(service), Access(**authority))
    _said(caplog, "it has no certificate of its own, which tls_client_ca asks for: give it one with")

    made = trustme.CA().issue_cert("vllm@example.org")
    made.private_key_and_cert_chain_pem.write_to_path(str(files.path("foreign")))
    service = start_service(**mutual)
    with pytest.raises(DeliveryError, match="MOESCOPE_CERT_FILE"):
        send(secure(service), Access(**authority, cert_file=files.path("foreign")))
    _said(caplog, "its certificate is not taken (")

    expired = files.authority.issue_cert("vllm@example.org", not_after=datetime(2020, 1, 1, tzinfo=UTC))
    expired.private_key_and_cert_chain_pem.write_to_path(str(files.path("expired")))
    service = start_service(**mutual)
    with pytest.raises(DeliveryError, match="MOESCOPE_CERT_FILE"):
        send(secure(service), Access(**authority, cert_file=files.path("expired")))
    _said(caplog, "certificate has expired): tls_client_ca names who may issue one")

    service = start_service(tls_cert=files.path("server"))
    with pytest.raises(DeliveryError, match="https://"):
        send(service.url)
    _said(caplog, "it sent plain HTTP to the port of HTTPS: give it an address with https://")
    with pytest.raises(DeliveryError, match="MOESCOPE_CA_FILE"):
        send(secure(service))
    _said(caplog, "it doesn't trust the certificate of this service: give it the authority with")


def test_connections_that_send_nothing_are_counted_and_ended_from_accept_on(
    start_service: Callable[..., Service], files: Files, caplog: pytest.LogCaptureFixture
) -> None:
    """2,200 of them, with 1,024 files, kept everybody waiting for 60 s, without a line."""
    service = start_service(tls_cert=files.path("server"), max_connections=64, header_timeout_s=2)
    parts = urlsplit(service.url)
    context = ssl.create_default_context(cafile=files.path("ca"))
    with ExitStack() as stack:
        made = [
            stack.enter_context(socket.create_connection((parts.hostname, parts.port), timeout=60))
            for _ in range(300)
        ]
        with httpx.Client(verify=context, timeout=60) as client:
            assert client.get(f"{secure(service)}/healthz").status_code == 200
        for connection in made:
            with suppress(ConnectionResetError):
                assert connection.recv(100) == b""
    assert "over max_connections (64)" in caplog.text
    assert "no whole TLS handshake in 2 s" in caplog.text
