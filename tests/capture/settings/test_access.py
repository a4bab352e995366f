"""Files with the token and certificates: read anew each time, and what can't be read is no token."""

from __future__ import annotations

import os
import ssl
from pathlib import Path

import pytest
import trustme
from cryptography.hazmat.primitives import serialization

from moescope.capture.settings.access import NO_ACCESS, Access, printable
from moescope.capture.settings.environment import CaptureSettings, SettingsError


def test_the_token_is_the_one_that_the_file_has_now(tmp_path: Path) -> None:
    access = Access(token_file=tmp_path / "token")
    assert access.token_now() is None
    for token in ("first", "second"):
        (tmp_path / "token").write_text(f"{token}\n")
        assert access.token_now() == token


@pytest.mark.parametrize("content", [b"two words", b"\xff\xfe", "sch\u00f6n".encode(), b"a\nb"])
def test_what_no_header_can_carry_is_no_token(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "token"
    path.write_bytes(content)
    assert Access(token_file=path).token_now() is None


def test_without_a_file_there_is_no_token_to_read_again() -> None:
    assert NO_ACCESS.token_now() is None


@pytest.mark.parametrize(
    ("token", "is_printable"), [("", True), ("!~", True), (" ", False), ("\x7f", False), ("\t", False)]
)
def test_visible_ascii_is_printable(token: str, is_printable: bool) -> None:
    assert printable(token) is is_printable


def test_the_services_certificate_is_checked() -> None:
    context = NO_ACCESS.context()
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.check_hostname


@pytest.mark.parametrize("which", ["ca_file", "cert_file"])
@pytest.mark.parametrize("content", [None, "no certificate"])
def test_files_that_cannot_be_used_are_an_os_error(tmp_path: Path, which: str, content: str | None) -> None:
    path = tmp_path / "file.pem"
    if content is not None:
        path.write_text(content)
    with pytest.raises(OSError, match=r"."):
        Access(**{which: path}).context()


@pytest.mark.parametrize("which", ["token_file", "ca_file", "cert_file", "key_file"])
def test_a_pipe_does_not_make_vllm_wait(tmp_path: Path, which: str) -> None:
    os.mkfifo(tmp_path / "pipe")
    access = Access(**{which: tmp_path / "pipe"})
    if which == "token_file":
        assert access.token_now() is None
        with pytest.raises(SettingsError, match=r"MOESCOPE_TOKEN_FILE: .* no regular file"):
            CaptureSettings.from_environment({"MOESCOPE_TOKEN_FILE": str(tmp_path / "pipe")})
    else:
        with pytest.raises(OSError, match="no regular file"):
            access.context()


def test_a_key_with_a_pass_phrase_is_refused_rather_than_asked_for(tmp_path: Path) -> None:
    issued = trustme.CA().issue_cert("127.0.0.1")
    locked = serialization.load_pem_private_key(issued.private_key_pem.bytes(), None).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"secret"),
    )
    (tmp_path / "both.pem").write_bytes(issued.cert_chain_pems[0].bytes() + locked)
    with pytest.raises(OSError, match="has a pass phrase"):
        Access(cert_file=tmp_path / "both.pem").context()


def test_the_mark_of_some_editors_is_no_part_of_the_token(tmp_path: Path) -> None:
    (tmp_path / "token").write_bytes(b"\xef\xbb\xbfsecret\n")
    assert Access(token_file=tmp_path / "token").token_now() == "secret"
    assert Access(token_file=Path("a\0b")).token_now() is None
