"""What a client needs to reach a service: its token and its certificates, from the environment."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest
import trustme

from moescope.service.client.settings import client_settings
from moescope.service.settings import SettingsError


def test_without_settings_there_is_no_header() -> None:
    assert client_settings().headers() == {}


def test_the_token_is_a_bearer_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOESCOPE_TOKEN", "secret")
    settings = client_settings()
    assert settings.headers() == {"Authorization": "Bearer secret"}
    assert "secret" not in repr(settings)


def test_the_file_of_the_token_is_read_at_each_request(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "token"
    monkeypatch.setenv("MOESCOPE_TOKEN_FILE", str(path))
    settings = client_settings()
    with pytest.raises(SettingsError, match="MOESCOPE_TOKEN_FILE"):
        settings.headers()
    for token in ("the-first-token", "the-second-token"):
        path.write_text(f"{token}\n")
        assert settings.headers() == {"Authorization": f"Bearer {token}"}


def test_a_token_that_is_no_header_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOESCOPE_TOKEN", "sécret")
    with pytest.raises(SettingsError, match="MOESCOPE_TOKEN: only printable ASCII"):
        client_settings().headers()


def test_certificates_are_checked_with_the_authority_that_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    authority = tmp_path / "ca.pem"
    made = trustme.CA()
    made.cert_pem.write_to_path(authority)
    monkeypatch.setenv("MOESCOPE_CA_FILE", str(authority))
    context = client_settings().context()
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert [len(context.get_ca_certs())] == [1]


@pytest.mark.parametrize("name", ["MOESCOPE_CA_FILE", "MOESCOPE_CERT_FILE"])
def test_a_file_that_can_not_be_used_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    bad = tmp_path / "bad.pem"
    bad.write_text("no certificate")
    monkeypatch.setenv(name, str(bad))
    with pytest.raises(SettingsError, match=name):
        client_settings().context()
