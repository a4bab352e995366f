"""Certificates and keys in PEM files, loaded without a terminal."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import NoReturn

from moescope.service.files.text import FileError, check_regular


def load_chain(context: ssl.SSLContext, cert: Path, key: Path | None) -> None:
    """Load a certificate with its key into a context.

    A key with a pass phrase is refused: the library would ask for it at the terminal and wait.

    Raises:
        FileError: a file can't be used.
    """
    for path in (cert, key):
        if path is not None:
            check_regular(path)

    def refuse() -> NoReturn:
        raise FileError(
            f"the key in {key or cert} has a pass phrase: give a key without one, such as "
            "`openssl pkey -in KEY -out NEW` writes it"
        )

    try:
        context.load_cert_chain(cert, key, password=refuse)
    except OSError as error:  # ssl.SSLError is one
        raise FileError(f"{cert}{f' with {key}' if key else ''} can't be used: {error}") from error


def load_authority(context: ssl.SSLContext, path: Path) -> None:
    """Trust the certificates of an authority's PEM file.

    Raises:
        FileError: it can't be used.
    """
    check_regular(path)
    try:
        context.load_verify_locations(path)
    except OSError as error:
        raise FileError(f"{path} can't be used: {error}") from error


def trusting(authority: Path | None) -> ssl.SSLContext:
    """A client's context, which trusts this authority's PEM file, or the system's authorities.

    Raises:
        FileError: the file can't be used.
    """
    if authority is not None:
        check_regular(authority)
    try:
        return ssl.create_default_context(cafile=authority)
    except OSError as error:
        raise FileError(f"{authority} can't be used: {error}") from error
