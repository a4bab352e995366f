"""Files with the token and certificates: read anew each time, and what can't be read is no token."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest

from moescope.capture.settings.access import NO_ACCESS, Access, printable


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
