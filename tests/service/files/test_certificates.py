"""Certificates and keys: none makes the process wait at its terminal."""

from __future__ import annotations

import os
import ssl
from pathlib import Path

import pytest
import trustme
from cryptography.hazmat.primitives import serialization

from moescope.service.files.certificates import load_authority, load_chain, trusting
from moescope.service.files.text import FileError


@pytest.fixture(scope="module")
def issued() -> trustme.LeafCert:
    return trustme.CA().issue_cert("127.0.0.1")


def _context() -> ssl.SSLContext:
    return ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)


@pytest.mark.parametrize("apart", [True, False])
def test_a_key_with_a_pass_phrase_is_refused(issued: trustme.LeafCert, tmp_path: Path, apart: bool) -> None:
    plain = serialization.load_pem_private_key(issued.private_key_pem.bytes(), None)
    locked = plain.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"secret"),
    )
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    cert.write_bytes(issued.cert_chain_pems[0].bytes() + (b"" if apart else locked))
    key.write_bytes(locked)
    with pytest.raises(FileError, match="has a pass phrase: give a key without one"):
        load_chain(_context(), cert, key if apart else None)


def test_good_files_are_loaded(issued: trustme.LeafCert, tmp_path: Path) -> None:
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    issued.cert_chain_pems[0].write_to_path(str(cert))
    issued.private_key_pem.write_to_path(str(key))
    load_chain(_context(), cert, key)
    load_authority(_context(), cert)
    trusting(cert)
    with pytest.raises(FileError, match=r"cert.pem can't be used"):
        load_chain(_context(), cert, None)  # it has no key


def test_a_pipe_is_refused_before_the_library_opens_it(issued: trustme.LeafCert, tmp_path: Path) -> None:
    pipe, cert = tmp_path / "pipe", tmp_path / "cert.pem"
    os.mkfifo(pipe)
    issued.cert_chain_pems[0].write_to_path(str(cert))
    for load in (
        lambda: load_chain(_context(), pipe, None),
        lambda: load_chain(_context(), cert, pipe),
        lambda: load_authority(_context(), pipe),
        lambda: trusting(pipe),
    ):
        with pytest.raises(FileError, match="no regular file"):
            load()
